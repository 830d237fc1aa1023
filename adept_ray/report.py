"""``report.html``: one self-contained page about a search.

Reads only a results folder (``best.yaml``, ``trials.csv``, ``importance.json``, ``rates.jsonl``,
``run.json``), so a report can be written again long after the run. The page needs no script and no
network, and the same folder always gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from adept_ray import figures
from adept_ray.evidence import Evidence, Rate, Side, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NONE = "–"


def _signed(value: float | None, digits: int) -> str:
    """A number with its sign and a true minus; a dash when there is none."""
    return f"{value:+.{digits}f}".replace("-", "−") if figures.known(value) else NONE


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


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
    "general_delta": "general Δ %",
    "domain_delta": "domain Δ %",
    "score_se": "±\u00a0s.e.",
}
DIGITS = {"general_bpb": ".4f", "domain_bpb": ".4f", "score_se": ".3f", "tokens": ",.0f", "seconds": ".0f"}
WORDS = ("trial", "layers", "normalization", "state")
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
        return _signed(value, SIGNED[column])
    return format(value, DIGITS.get(column, "g" if value.is_integer() else ".3g")).replace("-", "−", 1)


# ---------------------------------------------------------------- HTML


def _inline(figure: Figure, name: str, label: str) -> str:
    """The figure as an SVG element; `name` keeps its ids apart from those of the other figures."""
    text = io.StringIO()
    with figures.styled():
        figure.savefig(text, format="svg", metadata=figures.NO_METADATA)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    opening, inner = svg[: svg.index(">")], svg[svg.index(">") + 1 :]
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', opening)
    assert size is not None, "Matplotlib wrote an SVG without a viewBox"
    width, height = float(size[1]), float(size[2])
    # A style element would reach the whole page; the page's own style sheet says the same.
    inner = re.sub(r"<style\b.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", inner)
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}pt" height="{height:g}pt">{inner}'
    )


def _pairs(values: Mapping[str, Any]) -> str:
    """Names and values as a definition list; nested mappings get dotted names."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _flat(values))
    return f"<dl>{items or f'<dt>{NONE}</dt>'}</dl>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value) if value not in (None, "") else NONE


def _card(title: str, figure: str, *lines: str) -> str:
    small = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="card"><h3>{escape(title)}</h3><p class="big">{escape(figure)}</p>{small}</div>'


def _side_card(title: str, side: Side) -> str:
    error = "" if side.standard_error is None else f"± {side.standard_error:.2f}, "
    bpb = f"{side.before_bpb:.4f} → {side.after_bpb:.4f} bpb"
    return _card(title, f"{_signed(side.delta, 2)} %", f"{error}{_verdict(side)}", bpb)


def _cards(results: Evidence) -> str:
    test, run, k = results.best.test, results.run, results.best.choice.k
    depth = len(results.importance.layers)
    total = run.seconds.get("total", sum(run.seconds.values()))
    memory = "" if run.peak_memory_gib is None else f"peak memory {run.peak_memory_gib:.1f} GiB"
    deeper = f"{100 * k / max(depth, 1):.0f} % more layers to run" if k else "as before"
    return (
        _side_card(f"Domain: {_ran(results, 'domain')}", test.domain)
        + _side_card(f"General: {_ran(results, 'general')}", test.general)
        + _card("Layers", f"{depth} → {depth + k}", deeper)
        + _card("Wall clock", _duration(total), f"{len(results.trials)} trials", memory)
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
        f"bits per byte (bpb) in percent ± one standard error, so positive is better; less than two standard "
        f"errors is called no clear change. Test score {_signed(best.test.score, 3)}.</p>"
    )


def _figure(svg: str, caption: str, css: str = "") -> str:
    body = f'<div class="scroll">{svg}</div><figcaption>{escape(caption)}</figcaption>'
    return f'<figure class="{css}">{body}</figure>'


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
    doubt = importance.doubt(len(chosen))
    race = (
        " Raced: layers whose place is clear were measured on fewer sequences; the order goes by differences "
        "on the same ones."
        if importance.probe == "raced"
        else ""
    )
    caption = f"Mean ± standard error{on}, logarithmic axis.{base}{order}{race} {doubt}".rstrip()
    return _figure(_inline(figures.layer_figure(importance, chosen), "importance", label), caption, "wide")


def _search_section(results: Evidence) -> str:
    choice = results.best.choice
    dashed = "" if choice.threshold is None else " Dashed: what a smaller k has to reach to be preferred."
    score = _figure(
        _inline(
            figures.score_figure(results), "score", f"Score of every trial against k; chosen k = {choice.k}"
        ),
        f"Validation score; 0 is the untouched backbone. Filled: finished, hollow: stopped early.{dashed}",
    )
    trade = _figure(
        _inline(figures.trade_figure(results), "trade", "General against domain change of every trial"),
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
        svg = _inline(
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
            f"<td>{_duration(spent)}</td>"
            f'<td class="bar"><i style="width:{share:.1f}%"></i></td></tr>'
        )
    return f'<table class="stages"><tbody>{rows}</tbody></table>'


def _making_section(results: Evidence) -> str:
    run, best = results.run, results.best
    return (
        f"<h3>Command</h3><pre>{escape(run.command)}</pre>"
        f"<h3>Wall clock</h3>{_stages(run.seconds)}"
        f"<h3>Licences and notes</h3>{_pairs(run.notes)}"
        f'<div class="two"><div><h3>Run</h3>{_pairs(best.run)}</div>'
        f"<div><h3>Training of the winner</h3>{_pairs(best.training)}"
        f"<h3>Versions</h3>{_pairs(run.versions)}"
        f"<h3>Fingerprints</h3>{_pairs(run.fingerprints)}</div></div>"
    )


PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1f2933; font: 16px/1.55 system-ui, "Segoe UI", Roboto, Ubuntu,
  "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1 { font-size: 3.2rem; line-height: 1.1; margin: 0 0 .5rem; letter-spacing: -.02em; }
h2 { font-size: 1.3rem; margin: 0 0 1rem; }
h3 { font-size: .88rem; margin: 1.8rem 0 .5rem; color: #52606d; font-weight: 600; }
p { max-width: 46rem; margin: 0 0 .8rem; }
section { margin-top: 3.5rem; border-top: 1px solid #e4e7eb; padding-top: 1.8rem; }
.eyebrow, .note, figcaption { color: #616e7c; font-size: .88rem; }
.lead { font-size: 1.2rem; text-wrap: balance; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem;
  margin: 2rem 0 1rem; }
.card { border: 1px solid #e4e7eb; border-radius: 8px; padding: 1rem 1.1rem; }
.card h3 { margin: 0 0 .3rem; }
.card p { margin: 0; font-size: .88rem; color: #52606d; }
.card .big { font-size: 1.45rem; font-weight: 600; color: #1f2933; line-height: 1.4; white-space: nowrap; }
figure { margin: 0; }
figcaption { margin-top: .6rem; max-width: 46rem; }
svg { display: block; max-width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit !important; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; list-style: none; margin: 0; padding: 0;
  font-size: .85rem; color: #52606d; }
.legend svg { display: inline-block; margin-right: .5rem; vertical-align: middle; }
.scroll { overflow-x: auto; }
.wide svg { min-width: 40rem; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1rem 2.5rem; }
.two > * { min-width: 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: 0 .8rem; }
.panels h3 { margin: 1.2rem 0 .2rem; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: right; padding: .35rem .7rem; white-space: nowrap; border-bottom: 1px solid #edf0f2; }
th { color: #52606d; font-weight: 600; vertical-align: bottom; border-bottom-color: #9aa5b1; }
.trials { width: 100%; font-size: .76rem; }
.trials th { white-space: normal; }
.trials th, .trials td { padding: .35rem .4rem; }
.trials .words { text-align: left; }
.trials td.layers { white-space: normal; min-width: 8rem; }
.trials th:first-child, .trials td:first-child { position: sticky; left: 0; background: #fff; }
.trials th:first-child, .trials td:first-child, .stages td:first-child {
  text-align: left; padding-left: .4rem; }
.trials .won td { background: #fdf0e6; font-weight: 600; }
.stopped td, .failed td { color: #616e7c; }
.stages { width: 100%; max-width: 34rem; }
.stages .bar { width: 60%; }
.bar i { display: block; height: .6rem; background: #0072B2; border-radius: 2px; }
.total td { font-weight: 600; border-bottom: 0; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) minmax(0, 1fr);
  gap: .2rem 1.2rem; margin: 0; font-size: .85rem; }
dt { color: #52606d; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: #f5f7fa; border-radius: 6px; padding: .8rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; margin: 0; }
@media (max-width: 40rem) {
  main { padding-top: 1.5rem; }
  .panels, .cards { grid-template-columns: 1fr 1fr; }
  .cards { gap: .7rem; }
  .card { padding: .8rem; }
  .card p { font-size: .8rem; }
  .card .big { font-size: 1.15rem; }
}
@media print {
  body { font-size: 10pt; }
  main { padding: 0; max-width: none; }
  section { margin-top: 1.5rem; }
  figure, .card, tr, .panels > div { break-inside: avoid; }
  h2, h3, .legend { break-after: avoid; }
  .two { grid-template-columns: 1fr 1fr; }
  .cards, .panels { grid-template-columns: repeat(4, 1fr); }
  .card { padding: .5rem .6rem; }
  .card .big { font-size: 1.05rem; }
  .scroll { overflow: visible; }
  .wide svg { min-width: 0; }
  .trials { font-size: 6.5pt; }
  th, .trials td { padding: .2rem .3rem; }
  .trials td:first-child { position: static; }
}
</style>
</head>
<body>
<main>
<header>$first</header>
$sections
</main>
</body>
</html>
""")


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
    sections = "\n".join(f"<section><h2>{title}</h2>{html}</section>" for title, html in parts.items())
    page = PAGE.substitute(
        title=escape(f"{results.name}: adept_ray"), first=_first_screen(results), sections=sections
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
