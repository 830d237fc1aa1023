"""``report.html``: one self-contained page about a search.

Reads only a results folder (``best.yaml``, ``trials.csv``, ``importance.json``, ``rates.jsonl``,
``run.json``), so a report can be written again long after the run. The page needs no script and no
network, and the same folder always gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

from adept_ray import figures
from adept_ray.evidence import Evidence, Rate, Side, read
from adept_ray.page import NONE, card, duration, figure_html, inline, pairs, signed, write_page


def _layers(k: int) -> str:
    return "No layer" if k == 0 else f"{k} layer{'s' * (k > 1)}"


def _verdict(side: Side) -> str:
    """In words, whether Δ stands out of its noise (two standard errors)."""
    if abs(side.delta) <= 2 * figures.or_zero(side.standard_error):
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
        return signed(value, SIGNED[column])
    return format(value, DIGITS.get(column, "g" if value.is_integer() else ".3g")).replace("-", "−", 1)


def _side_card(title: str, side: Side) -> str:
    error = "" if side.standard_error is None else f"± {side.standard_error:.2f}, "
    return card(title, f"{signed(side.delta, 2)} {side.unit}", f"{error}{_verdict(side)}", side.levels("bpb"))


def _cards(results: Evidence) -> str:
    test, run, k = results.best.test, results.run, results.best.choice.k
    depth = len(results.importance.layers)
    total = run.seconds.get("total", sum(run.seconds.values()))
    memory = "" if run.peak_memory_gib is None else f"peak memory {run.peak_memory_gib:.1f} GiB"
    deeper = f"{100 * k / max(depth, 1):.0f} % more layers to run" if k else "as before"
    return (
        _side_card(f"Domain: {_ran(results, 'domain')}", test.domain)
        + _side_card(f"General: {_ran(results, 'general')}", test.general)
        + card("Layers", f"{depth} → {depth + k}", deeper)
        + card("Wall clock", duration(total), f"{len(results.trials)} trials", memory)
    )


def _ran(results: Evidence, name: str) -> str:
    """The run's backbone or corpus; of a path its last part, the whole is in the last section."""
    return Path(str(results.best.run.get(name, NONE))).name


def _first_screen(results: Evidence) -> str:
    best = results.best
    k, layers = best.choice.k, ", ".join(map(str, best.layers))
    copied = f" {'Copy of layer' if k == 1 else 'Copies of layers'} {layers}." if k else ""
    answer = f"{_layers(k)} added to {_ran(results, 'backbone')} to learn {_ran(results, 'domain')}.{copied}"
    return (
        f'<p class="eyebrow">adept_ray · {escape(results.name)}</p>'
        f'<h1>k = {k}</h1><p class="lead">{escape(answer)}</p>'
        f"<p>{escape(best.choice.reason)}</p>"
        f'<div class="cards">{_cards(results)}</div>'
        f'<p class="note">Measured once, on the test split, against the untouched backbone: the reduction of '
        f"bits per byte (bpb) in percent, or on a side judged by tasks the gain in accuracy in points, ± one "
        f"standard error, so positive is better; less than two of them is called no clear change. "
        f"Test score {signed(best.test.score, 3)}.</p>"
    )


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
    order = f" Least important first: {', '.join(map(str, importance.order))}." if importance.order else ""
    label = f"Importance of {len(importance.layers)} layers; chosen: {', '.join(map(str, chosen)) or 'none'}"
    doubt = importance.doubt(chosen)
    race = (
        " Raced: layers whose place is clear were measured on fewer sequences; the order goes by differences "
        "on the same ones."
        if importance.probe == "raced"
        else ""
    )
    caption = f"Mean ± standard error{on}, logarithmic axis.{base}{order}{race} {doubt}".rstrip()
    return figure_html(inline(figures.layer_figure(importance, chosen), "importance", label), caption, "wide")


def _search_section(results: Evidence) -> str:
    choice = results.best.choice
    dashed = "" if choice.threshold is None else " Dashed: what a smaller k has to reach to be preferred."
    score = figure_html(
        inline(
            figures.score_figure(results), "score", f"Score of every trial against k; chosen k = {choice.k}"
        ),
        f"Validation score; 0 is the untouched backbone. Filled: finished, hollow: stopped early.{dashed}",
    )
    trade = figure_html(
        inline(figures.trade_figure(results), "trade", "General against domain change of every trial"),
        "What each trial gained in the domain and what it cost in general, on the validation split. "
        "The untouched backbone is at the origin.",
    )
    return f'<div class="two">{score}{trade}</div>'


RATES_CAPTION = (
    "Scale multiplies the base rate: 1 is the base rate itself, and important units get less. Each point "
    "is a measurement, which holds until the next; the one at step 0 was made on the source layers. Layers "
    "are numbered as in the exported model."
)


def _rates_section(results: Evidence) -> str:
    if not results.rates:
        added = results.best.choice.k > 0
        return (
            "<p>No unit rates were recorded.</p>"
            if added
            else "<p>No layer added, so no unit has a rate.</p>"
        )
    lines = figures.lines_of(list(dict.fromkeys(figures.place(rate.unit)[1] for rate in results.rates)))
    legend = "".join(f"<li>{_sample(line)}{escape(line.label)}</li>" for line in lines.values())
    panels = f'<div class="panels">{_rate_panels(results, lines)}</div>'
    return (
        f'<ul class="legend">{legend}</ul><figure>{panels}<figcaption>{RATES_CAPTION}</figcaption></figure>'
    )


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
        layer, kind = figures.place(rate.unit)
        layers.setdefault(layer, {}).setdefault(kind, []).append(rate)
    last = max(rate.step for rate in results.rates)
    top = 1.05 * max(2.0, *(rate.scale for rate in results.rates))
    # A copy goes right after its source, so each copy made below has moved it up by one.
    source = {layer + i: layer for i, layer in enumerate(sorted(results.best.layers), 1)}
    panels = ""
    for layer, rows in sorted(layers.items()):
        title = f"Layer {layer}" + (f", copy of {source[layer]}" if layer in source else "")
        svg = inline(
            figures.rate_figure(rows, lines, last, top), f"rates{layer}", f"{title}: scale of each unit"
        )
        panels += f"<div><h3>{title}</h3>{svg}</div>"
    return panels


def _trials_section(results: Evidence) -> str:
    columns = list(results.rows[0])
    winner = results.best.choice.trial
    head = "".join(_field("th", name, HEADINGS.get(name, name.replace("_", " "))) for name in columns)
    body = ""
    for row in results.rows:
        won = row["trial"] == winner
        cells = {name: _cell(name, row[name]) for name in columns}
        cells["trial"] += " ◆" if won else ""
        fields = "".join(_field("td", name, text) for name, text in cells.items())
        body += f'<tr class="{"won" if won else row["state"]}">{fields}</tr>\n'
    table = f'<table class="trials"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    legend = "" if winner is None else "◆ the chosen trial. "
    note = f'<p class="note">{legend}All numbers are from the validation split.</p>'
    return f'{note}<div class="scroll">{table}</div>'


def _field(tag: str, column: str, text: str) -> str:
    css = f' class="words {column}"' if column in WORDS else ""
    return f"<{tag}{css}>{escape(text)}</{tag}>"


def _stages(seconds: Mapping[str, float]) -> str:
    total = seconds.get("total", sum(seconds.values()))
    rows = ""
    for stage, spent in seconds.items():
        share = 100 * spent / total if total > 0 and stage != "total" else 0
        rows += (
            f'<tr class="{"total" if stage == "total" else ""}"><td>{escape(stage)}</td>'
            f"<td>{duration(spent)}</td>"
            f'<td class="bar"><i style="width:{share:.1f}%"></i></td></tr>'
        )
    return f'<table class="stages"><tbody>{rows}</tbody></table>'


def _making_section(results: Evidence) -> str:
    run, best = results.run, results.best
    return (
        f"<h3>Command</h3><pre>{escape(run.command)}</pre>"
        f"<h3>Wall clock</h3>{_stages(run.seconds)}"
        f"<h3>Licences and notes</h3>{pairs(run.notes)}"
        f'<div class="two"><div><h3>Run</h3>{pairs(best.run)}</div>'
        f"<div><h3>Training of the winner</h3>{pairs(best.training)}"
        f"<h3>Versions</h3>{pairs(run.versions)}"
        f"<h3>Fingerprints</h3>{pairs(run.fingerprints)}</div></div>"
    )


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a results folder and return its path.

    Raises :class:`UserError` that names the file when one is missing or does not hold what it should.
    """
    results = read(folder)
    parts = {
        "Importance of each layer": _importance_section(results),
        "What the search saw": _search_section(results),
        "Unit rates of the winner": _rates_section(results),
        "All trials": _trials_section(results),
        "How this was made": _making_section(results),
    }
    return write_page(folder / "report.html", f"{results.name}: adept_ray", _first_screen(results), parts)
