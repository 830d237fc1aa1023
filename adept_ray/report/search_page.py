"""``report.html``: one self-contained page about a search, or about a training at full length.

Reads only a results folder (see :mod:`adept_ray.report.evidence`), so a report can be written again long after
the run. The page needs no network, and its few lines of script only show what is also in its tables. The same
folder always gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

import yaml

from adept_ray.config.errors import UserError
from adept_ray.report import figures
from adept_ray.report.comparison_page import draw_figures, express_verdict
from adept_ray.report.evidence import (
    ELSEWHERE,
    FILES,
    RIVALS,
    Depth,
    Evidence,
    Rate,
    Side,
    Trial,
    read_evidence,
)
from adept_ray.report.html import (
    NONE,
    definition_list,
    format_count,
    format_duration,
    format_signed,
    inline_figure,
    make_card,
    make_figure,
    make_responsive,
    make_scrollable,
    write_page,
)
from adept_ray.report.model_card import write_card
from adept_ray.storage.results import Results


def _layers(k: int) -> str:
    return "No layer" if k == 0 else f"{k} layer{'s' * (k > 1)}"


def _verdict(side: Side) -> str:
    """In words, whether Δ stands out of its noise (two standard errors)."""
    if abs(side.delta) <= 2 * figures.value_or_zero(side.standard_error):
        return "no clear change"
    return "better" if side.delta > 0 else "worse"


HEADINGS = {
    "recompute_every": "recompute every",
    "base_lr": "base rate",
    "general_bpb": "general bpb",
    "domain_bpb": "domain bpb",
    "general_accuracy": "general accuracy",
    "domain_accuracy": "domain accuracy",
    "general_delta": "general Δ",
    "domain_delta": "domain Δ",
    "score_se": "±\u00a0s.e.",
}
DIGITS = {
    "general_bpb": ".4f",
    "domain_bpb": ".4f",
    "general_accuracy": ".1%",
    "domain_accuracy": ".1%",
    "score_se": ".3f",
    "tokens": ",.0f",
    "seconds": ".0f",
}
WORDS = ("trial", "layers", "normalization", "granularity", "sign", "placement", "state")
NUMBERS = (*DIGITS, "general_delta", "domain_delta", "score")
SIGNED = {"general_delta": 2, "domain_delta": 2, "score": 3}


def _cell(column: str, text: str) -> str:
    """A field of trials.csv, rounded to what a reader can use."""
    if column in WORDS or not text:
        return text or NONE
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        return NONE
    if column in SIGNED:
        return format_signed(value, SIGNED[column])
    return format(value, DIGITS.get(column, "g" if value.is_integer() else ".3g")).replace("-", "−", 1)


# ---------------------------------------------------------------- the first screen


def _side_card(title: str, side: Side) -> str:
    error = "" if side.standard_error is None else f"± {side.standard_error:.2f}, "
    return make_card(
        title, f"{format_signed(side.delta, 2)} {side.unit}", f"{error}{_verdict(side)}", side.levels("bpb")
    )


def _gains(results: Evidence) -> str:
    test = results.best.test
    return _side_card(f"Domain: {_ran(results, 'domain')}", test.domain) + _side_card(
        f"General: {_ran(results, 'general')}", test.general
    )


def _costs(results: Evidence) -> str:
    run, k, cost = results.run, results.best.k, results.cost
    depth = len(results.importance.layers)
    cards = make_card("Layers", f"{depth} → {depth + k}", _more(depth + k, depth))
    if cost:
        before = cost.parameters - cost.added
        share = f"{_more(cost.parameters, before)}, {format_count(cost.parameters)} in all"
        cards += make_card("Parameters", f"+{format_count(cost.added)}" if k else "none added", share)
        slower = "operations per token of a forward pass"
        cards += make_card("Inference", _more(cost.flops, cost.flops_before), slower)
    total = run.seconds.get("total", sum(run.seconds.values()))
    count = sum(trial.state != "untouched" for trial in results.trials)
    tried = f"{count} trials" if count else "training at full length"
    memory = "" if run.peak_memory_gib is None else f"peak memory {run.peak_memory_gib:.1f} GiB"
    return cards + make_card("Wall clock", format_duration(total), tried, memory)


def _more(after: float, before: float) -> str:
    return f"{format_signed(100 * (after / max(before, 1) - 1), 1)} %" if after != before else "as before"


def _ran(results: Evidence, name: str) -> str:
    """The run's backbone or corpus; of a path its last part, the whole is in the last section."""
    return Path(str(results.best.run.get(name, NONE))).name


def _edges(results: Evidence) -> str:
    choice = results.best.choice
    warnings = ""
    for edge in choice.edges if choice else ():
        beyond = "" if edge.held else ", so the best may lie beyond it"
        further = f" This searches further:<pre>{escape(edge.command)}</pre>" if edge.command else ""
        warnings += f'<div class="warning">{escape(edge.place)}{beyond}.{further}</div>'
    return warnings


def _first_screen(results: Evidence) -> str:
    best = results.best
    k, layers = best.k, ", ".join(map(str, best.layers))
    copied = f" {'Copy of layer' if k == 1 else 'Copies of layers'} {layers}." if k else ""
    backbone = _ran(results, "backbone")
    head, answer = f"k = {k}", f"{_layers(k)} added to {backbone} to learn {_ran(results, 'domain')}.{copied}"
    if results.unadvised:
        head = "Advice: k = 0"
        answer = f"Leave {backbone} as it is: nothing is surely better. Exported is k = {k}: {answer}"
    why = f'<p class="why">{escape(best.choice.reason)}</p>' if best.choice else ""
    return (
        f'<p class="eyebrow">adept_ray · {escape(results.name)}</p>'
        f'<h1>{head}</h1><p class="lead">{escape(answer)}</p>{why}'
        f'<div class="answers"><div><h2>Gained</h2><div class="cards one">{_gains(results)}</div></div>'
        f'<div><h2>Cost</h2><div class="cards">{_costs(results)}</div></div></div>'
        f'<p class="note">Gains are measured once, on the test split, against the untouched backbone: the '
        f"reduction of bits per byte (bpb) in percent, or on a side judged by tasks the gain in accuracy in "
        f"points, ± one standard error, so positive is better; less than two of them is called no clear "
        f"change. Test score{_formula(results)} {format_signed(best.test.score, 3)}.</p>{_edges(results)}"
    )


def _formula(results: Evidence) -> str:
    weights = results.best.score
    return f" ({escape(weights.said)})" if weights else ""


# ---------------------------------------------------------------- the sections


def _tip(trial: Trial, row: Mapping[str, str], won: bool) -> str:
    """What a reader is told of a trial's mark in a figure."""
    settings = [n for n in row if n not in NUMBERS and n not in ("trial", "k", "layers", "state") and row[n]]
    said = ", ".join(f"{HEADINGS.get(name, name)} {_cell(name, row[name])}" for name in settings)
    error = f" ± {trial.score_se:.2f}" if figures.is_known(trial.score_se) else ""
    lines = (
        f"{trial.trial}, k = {NONE if trial.k is None else trial.k}, {'chosen' if won else trial.state}",
        f"score {format_signed(trial.score, 2)}{error}",
        f"general Δ {format_signed(trial.general_delta, 2)}, domain Δ {format_signed(trial.domain_delta, 2)}",
        said,
    )
    return "\n".join(line for line in lines if line)


def _tips(results: Evidence) -> dict[str, str]:
    pairs_ = zip(results.trials, results.rows, strict=True)
    won = results.best.trial
    return {f"trial{i}": _tip(trial, row, trial.trial == won) for i, (trial, row) in enumerate(pairs_)}


def _score_section(results: Evidence) -> str:
    choice = results.best.choice
    dashed = "" if not choice or choice.threshold is None else " Dashed: what a trial of the chosen k needed."
    label = f"Score of every trial against k; chosen k = {results.best.k}"
    score = make_figure(
        inline_figure(figures.score_figure(results), "score", label, _tips(results)),
        f"Validation score{_formula(results)}; 0 is the untouched backbone. Filled: finished, hollow: "
        f"stopped early.{dashed}",
    )
    return f'<div class="two">{score}<div>{_depth_table(results)}{_price(results)}</div></div>'


def _depth_table(results: Evidence) -> str:
    """A row for each k: its best trial, and what it gains over the next smaller one."""
    depths = results.depths
    paired = any(depth.gain is not None for depth in depths)
    steps = any(depth.per_layer != depth.gain for depth in depths if depth.per_layer is not None)
    names = ["k", "trials", "best score", *["gain"] * paired, *["a layer"] * steps, *["apart"] * paired]
    head = "".join(f"<th>{name}</th>" for name in names)
    unfinished = results.best.choice.unfinished if results.best.choice else {}
    rows = {
        k: f'<tr><td>{k}</td><td>{trials}</td><td colspan="{len(names) - 2}">none finished</td></tr>'
        for k, trials in unfinished.items()
    }
    for depth in depths:
        cells = [str(depth.k), NONE if depth.trials is None else str(depth.trials)]
        cells.append(_with_error(depth.score, depth.standard_error) if depth.k else "0")
        cells += [_with_error(depth.gain, depth.gain_error)] * paired
        cells += [format_signed(depth.per_layer, 2)] * steps + [_differs(depth)] * paired
        won = ' class="won"' if depth.k == results.best.k else ""
        rows[depth.k] = f"<tr{won}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    body = "".join(rows[k] for k in sorted(rows))
    note = (
        "Gain: over the next smaller k, paired on the same validation text, ± standard error; "
        f"{'a layer: by the layers added; ' * steps}apart: whether it stands out of that noise."
        if paired
        else "The best finished trial of each k, ± standard error over validation text."
    )
    table = f'<table class="narrow"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return make_scrollable(table, "Best score of each k") + f'<p class="note">{note}</p>'


def _with_error(value: float | None, error: float | None) -> str:
    return format_signed(value, 2) + (
        f" ± {error:.2f}" if figures.is_known(value) and figures.is_known(error) else ""
    )


def _differs(depth: Depth) -> str:
    return {None: NONE, True: "yes", False: "no"}[depth.differs]


def _price(results: Evidence) -> str:
    least = results.best.choice.min_gain_per_layer if results.best.choice else None
    if not least:
        return ""
    return f'<p class="note">A layer had to earn {least:g} points of score to be added.</p>'


def _search_section(results: Evidence) -> str:
    tips = _tips(results)
    dashed = " Dashed: the front, trials that no other beats on both sides."
    front = dashed if len(results.front) > 1 else ""
    trade = make_figure(
        inline_figure(
            figures.trade_figure(results), "trade", "General against domain change of every trial", tips
        ),
        f"What each trial gained in the domain and kept or lost in general, on the validation split.{front}",
    )
    shares = _hyperparameters(results)
    return f'<div class="two">{trade}<div>{shares}</div></div>'


def _hyperparameters(results: Evidence) -> str:
    choice = results.best.choice
    if not choice or not choice.hyperparameters:
        return ""
    ranked = sorted(choice.hyperparameters.items(), key=lambda item: -item[1])
    rows = "".join(_share(HEADINGS.get(name, name), f"{share:.0%}", share) for name, share in ranked)
    doubt = (
        ""
        if choice.hyperparameters_reliable
        else " Unreliable: too few trials finished to tell one parameter's part from another's."
    )
    return (
        f"<h3>What made the difference</h3>{_shares(rows)}"
        '<p class="note">Share of each searched parameter in a finished trial being in the better half '
        f"(PED-ANOVA).{doubt}</p>"
    )


def _share(name: str, said: str, share: float, css: str = "") -> str:
    """A row with a bar."""
    bar = f'<td class="bar"><i style="width:{100 * share:.1f}%"></i></td>'
    return f'<tr class="{css}"><td>{escape(name)}</td><td>{said}</td>{bar}</tr>'


def _shares(rows: str) -> str:
    return f'<table class="shares"><tbody>{rows}</tbody></table>'


def _importance_section(results: Evidence) -> str:
    importance, chosen = results.importance, results.best.layers
    source = importance.made_from
    on = (
        f" on {source['tokens']} tokens of {source['corpus']}"
        if {"tokens", "corpus"} <= source.keys()
        else ""
    )
    base = (
        "" if importance.base_loss is None else f" The whole backbone's loss is {importance.base_loss:.3f}."
    )
    label = f"Importance of {len(importance.layers)} layers; chosen: {', '.join(map(str, chosen)) or 'none'}"
    doubt = importance.doubt(chosen)
    race = (
        " Raced: layers whose place is clear were measured on fewer sequences; the order goes by differences "
        "on the same ones."
        if importance.probe == "raced"
        else ""
    )
    caption = f"Mean ± standard error{on}, logarithmic axis.{base}{race} {doubt}".rstrip()
    tips = {
        f"layer{row.layer}": f"layer {row.layer}: {row.mean:.3g} ± {row.standard_error:.2g} nats per token"
        for row in importance.layers
    }
    pictures = (
        inline_figure(figures.layer_figure(importance, chosen, size), name, label, tips)
        for name, size in (("importance", figures.WIDE), ("importance-narrow", figures.NARROW))
    )
    return make_figure(make_responsive(*pictures), caption) + _layer_table(results)


def _layer_table(results: Evidence) -> str:
    """Every layer's numbers, least important first."""
    importance = results.importance
    rows = {row.layer: row for row in importance.layers}
    order = importance.order or tuple(sorted(rows, key=lambda layer: rows[layer].mean))
    body = ""
    for layer in order:
        row = rows[layer]
        low, high = row.places or (None, None)
        places = (
            NONE if low is None or high is None else f"{low + 1}" + (f" to {high + 1}" if high > low else "")
        )
        won = ' class="won"' if layer in results.best.layers else ""
        body += (
            f"<tr{won}><td>{layer}</td><td>{row.mean:.4g}</td><td>{row.standard_error:.2g}</td>"
            f"<td>{places}</td></tr>"
        )
    head = "<tr><th>layer</th><th>importance</th><th>± s.e.</th><th>place</th></tr>"
    return (
        "<details><summary>Every layer, least important first</summary><table><caption>Loss increase in nats "
        f"per token; place: what the probe leaves open at {importance.confidence:.0%} confidence.</caption>"
        f"<thead>{head}</thead><tbody>{body}</tbody></table></details>"
    )


def _curves_section(results: Evidence) -> str:
    tips = _tips(results)
    grown = " Each depth goes on from the end of the one before." if results.grown else ""
    parts = ""
    for what, label, caption in (
        ("score", "Score of every trial as it trained", "Validation score at every report of a trial."),
        (
            "loss",
            "Training loss of every trial",
            "Loss of the step before each report, on the training text.",
        ),
    ):
        svg = inline_figure(figures.curve_figure(results, what), f"curve-{what}", label, tips)  # type: ignore[arg-type]
        parts += make_figure(svg, caption + grown)
    return f'<div class="two">{parts}</div>'


FRESH = "the one at step 0 was made on the source layers"
GROWN = (
    "at step 0, where the chosen depth began, copies that it added have the importance of their source "
    "layers, and those that it took over what they had at the end of the depth before"
)


def _rates_section(results: Evidence) -> str:
    if not results.rates:
        added = results.best.k > 0
        return (
            "<p>No unit rates were recorded.</p>"
            if added
            else "<p>No layer added, so no unit has a rate.</p>"
        )
    lines = figures.assign_lines(
        list(dict.fromkeys(figures.split_unit(rate.unit)[1] for rate in results.rates))
    )
    legend = "".join(f"<li>{_sample(line)}{escape(line.label)}</li>" for line in lines.values())
    panels = f'<ul class="legend">{legend}</ul><div class="panels">{_rate_panels(results, lines)}</div>'
    caption = (
        "Scale multiplies the base rate: 1 is the base rate itself, and important units get less. Each point "
        f"is a measurement, which holds until the next; {GROWN if results.grown else FRESH}. Layers are "
        "numbered as in the exported model."
    )
    return f"<figure>{panels}<figcaption>{caption}</figcaption></figure>"


def _sample(line: figures.Line) -> str:
    """A short piece of the line, for a legend that wraps with the page."""
    dash = {"-": "none", "--": "6 3", ":": "2 2", "-.": "7 2 2 2"}[line.dashes]
    return (
        f'<svg role="img" aria-label="line of {escape(line.label)}" viewBox="0 0 30 8" width="30" height="8">'
        f'<path d="M0 4H30" stroke="{line.color}" stroke-width="2" stroke-dasharray="{dash}"/></svg>'
    )


def _rate_panels(results: Evidence, lines: Mapping[str, figures.Line]) -> str:
    layers: dict[int, dict[str, list[Rate]]] = {}
    for rate in sorted(results.rates, key=lambda rate: rate.step):
        layer, kind = figures.split_unit(rate.unit)
        layers.setdefault(layer, {}).setdefault(kind, []).append(rate)
    last = max(rate.step for rate in results.rates)
    top = 1.05 * max(2.0, *(rate.scale for rate in results.rates))
    # A copy goes right after its source, so each copy made below has moved it up by one.
    source = {layer + i: layer for i, layer in enumerate(sorted(results.best.layers), 1)}
    panels = ""
    for layer, rows in sorted(layers.items()):
        title = f"Layer {layer}" + (f", copy of {source[layer]}" if layer in source else "")
        svg = inline_figure(
            figures.rate_figure(rows, lines, last, top), f"rates{layer}", f"{title}: scale of each unit"
        )
        panels += f"<div><h3>{title}</h3>{svg}</div>"
    return panels


def _trials_section(results: Evidence) -> str:
    columns = list(results.rows[0])
    winner = results.best.trial
    head = "".join(_field("th", name, HEADINGS.get(name, name.replace("_", " "))) for name in columns)
    body = ""
    for number, row in enumerate(results.rows):
        won = row["trial"] == winner
        cells = {name: _cell(name, row[name]) for name in columns}
        cells["trial"] += " ◆" if won else ""
        fields = "".join(_field("td", name, text) for name, text in cells.items())
        css = "won" if won else escape(row["state"])
        body += f'<tr class="{css}" data-of="trial{number}">{fields}</tr>\n'
    table = f'<table class="trials"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    legend = "" if winner is None else "◆ the chosen trial. "
    note = f'<p class="note">{legend}All numbers are from the validation split.</p>'
    return note + make_scrollable(table, "All trials")


def _rivals_section(results: Evidence) -> str:
    summaries = [rival.model_dump() for rival in results.rivals]
    note = (
        "Means over seeds ± half of the 95 % interval, of a comparison on equal tokens with a base rate of "
        "its own for each method; its trainings are others than the trials above."
    )
    return f'<p>{escape(express_verdict(summaries))}</p>{draw_figures(summaries)}<p class="note">{note}</p>'


def _field(tag: str, column: str, text: str) -> str:
    css = f' class="words {column}"' if column in WORDS else ""
    return f"<{tag}{css}>{escape(text)}</{tag}>"


def _stages(seconds: Mapping[str, float]) -> str:
    total = seconds.get("total", sum(seconds.values()))
    rows = ""
    for stage, spent in seconds.items():
        share = spent / total if total > 0 and stage != "total" else 0
        rows += _share(stage, format_duration(spent), share, "total" if stage == "total" else "")
    return _shares(rows)


def _making_section(results: Evidence) -> str:
    run, best = results.run, results.best
    return (
        f"<h3>Does the same again</h3><pre>{escape(run.repeats)}</pre>{_space(results)}"
        f"<h3>Licences and notes</h3>{definition_list(run.notes)}"
        f'<div class="two"><div><h3>Wall clock</h3>{_stages(run.seconds)}'
        f"<h3>Run</h3>{definition_list({name: best.run[name] for name in best.run if name not in ELSEWHERE})}</div>"
        f"<div><h3>Training of the winner</h3>{definition_list(best.training)}"
        f"<h3>Versions</h3>{definition_list(run.versions)}"
        f"<h3>Fingerprints</h3>{definition_list(run.fingerprints)}</div></div>"
    )


def _space(results: Evidence) -> str:
    """The search space, which may have been another file's since."""
    if not results.run.space:
        return ""
    text = yaml.safe_dump(results.run.space, sort_keys=False, default_flow_style=None, width=100)
    return f"<h3>Search space</h3><pre>{escape(text)}</pre>"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a results folder and return its path.

    Raises :class:`UserError` that names the file when one is missing or does not hold what it should.
    """
    return _page(folder, read_evidence(folder))


def _page(folder: Path, results: Evidence) -> Path:
    searched = bool(results.trials)
    sections = {
        "Why this k": _score_section if searched else None,
        "Domain against general": _search_section if searched else None,
        "Learning curves": _curves_section if results.curves else None,
        "Importance of each layer": _importance_section,
        "Unit rates": _rates_section,
        "All trials": _trials_section if searched else None,
        "Rivals": _rivals_section if results.rivals else None,
        "How this was made": _making_section,
    }
    parts = {title: section(results) for title, section in sections.items() if section}
    return write_page(folder / "report.html", f"{results.name}: adept_ray", _first_screen(results), parts)


def adopt_rivals(results: Results, comparison: str) -> None:
    """Copy the table of a comparison (a folder or URI) into `results`, where the report finds it.

    Raises :class:`UserError` where there is none, or one of another backbone or other corpora.
    """
    storage, _, name = comparison.rstrip("/").rpartition("/")
    rivals = Results(storage or ".", name)
    rivals.fetch((RIVALS, "run.json"))
    results.fetch(("run.json",))
    if not rivals.has(RIVALS):
        raise UserError(f"{comparison}: no {RIVALS} in it; give the results folder of scripts/compare.py")
    theirs, ours = (json.loads((r.folder / "run.json").read_text()) for r in (rivals, results))
    for key in ("backbone", "general", "domain"):
        names = [about["run"][key] for about in (theirs, ours)]
        if names[0] != names[1]:
            raise UserError(f"{comparison}: its {key} is {names[0]}, that of {results.place} {names[1]}")
    for key in ("backbone", "general corpus", "domain corpus"):
        known = {about["fingerprints"][key] for about in (theirs, ours) if key in about["fingerprints"]}
        if len(known) > 1:
            raise UserError(f"{comparison}: its {key} has the name but not the content of {results.place}'s")
    results.write(RIVALS, (rivals.folder / RIVALS).read_text())


def write_pages(results: Results) -> None:
    """Write report and model card of what lies in `results`, here or behind its URI.

    Raises :class:`UserError` as :func:`write_report` does.
    """
    results.fetch(FILES)
    evidence = read_evidence(results.folder)
    _page(results.folder, evidence)
    if results.has("model"):
        write_card(results.folder / "model", evidence)
