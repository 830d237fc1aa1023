"""The page that a report is written on: its style, and the pieces of HTML that every report uses."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from adept_ray import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "–"


def signed(value: float | None, digits: int) -> str:
    """A number with its sign and a true minus; a dash when there is none."""
    return f"{value:+.{digits}f}".replace("-", "−") if figures.known(value) else NONE


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def inline(figure: Figure, name: str, label: str) -> str:
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


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values as a definition list; nested mappings get dotted names."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _flat(values))
    return f"<dl>{items or f'<dt>{NONE}</dt>'}</dl>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value) if value not in (None, "") else NONE


def card(title: str, figure: str, *lines: str) -> str:
    """A box with one large figure."""
    small = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="card"><h3>{escape(title)}</h3><p class="big">{escape(figure)}</p>{small}</div>'


def figure_html(svg: str, caption: str, css: str = "") -> str:
    """A picture with its caption."""
    body = f'<div class="scroll">{svg}</div><figcaption>{escape(caption)}</figcaption>'
    return f'<figure class="{css}">{body}</figure>'


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


def write_page(path: Path, title: str, first: str, sections: Mapping[str, str]) -> Path:
    """Write a page of `first` and of `sections` (heading → HTML); returns its path."""
    body = "\n".join(f"<section><h2>{escape(name)}</h2>{html}</section>" for name, html in sections.items())
    path.write_text(PAGE.substitute(title=escape(title), first=first, sections=body), encoding="utf-8")
    return path
