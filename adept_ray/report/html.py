"""The page that a report is written on: its style, and the pieces of HTML that every report uses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from adept_ray.method.scores import is_finite
from adept_ray.report.drawing import format_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "–"


def format_signed(value: float | None, digits: int) -> str:
    """A number with its sign and a true minus; a dash when there is none."""
    return f"{value:+.{digits}f}".replace("-", "−") if is_finite(value) else NONE


def format_duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def format_count(count: float) -> str:
    """A count in thousands, millions or billions."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:g}"


def inline_figure(figure: Figure, name: str, label: str, tips: Mapping[str, str] | None = None) -> str:
    """The figure as an SVG element; `name` keeps its ids apart from those of the other figures.

    `tips` has the words for marks, by their ids in the figure; see :func:`add_tips`.
    """
    svg = format_svg(figure)
    svg = svg[svg.index("<svg") :]
    opening, inner = svg[: svg.index(">")], svg[svg.index(">") + 1 :]
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', opening)
    assert size is not None, "Matplotlib wrote an SVG without a viewBox"
    width, height = float(size[1]), float(size[2])
    # A style element would reach the whole page; the page's own style sheet says the same.
    inner = re.sub(r"<style\b.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", inner)
    inner = add_tips(inner, name, tips or {})
    role = "group" if tips else "img"  # of an img nothing inside is heard
    return (
        f'<svg role="{role}" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}pt" height="{height:g}pt">{inner}'
    )


def add_tips(svg: str, name: str, tips: Mapping[str, str]) -> str:
    """Give the marks of a figure their words, shown when they are pointed at, focused or touched.

    Trials can be tabbed to. Layers are too many for that: their numbers stand in a table as well.
    """
    svg = svg.replace('; stroke-opacity: 0"', '"')  # the style sheet says when a mark's ring is seen
    for mark, words in tips.items():
        text = escape(words)
        focus = ' tabindex="0"' if mark.startswith("trial") else ""
        svg = svg.replace(
            f'<g id="{name}-{mark}">',
            f'<g id="{name}-{mark}" class="point" data-of="{mark}" role="img"{focus} aria-label="{text}">'
            f"<title>{text}</title>",
        )
    return svg


def list_definitions(values: Mapping[str, object]) -> str:
    """Names and values as a definition list; nested mappings get dotted names."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in flatten_names(values))
    return f"<dl>{items or f'<dt>{NONE}</dt>'}</dl>"


def flatten_names(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of nested values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", NONE if value is None or value in ("", [], ()) else str(value)


def make_card(title: str, figure: str, *lines: str) -> str:
    """A box with one large figure."""
    small = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="card"><h3>{escape(title)}</h3><p class="big">{escape(figure)}</p>{small}</div>'


def format_share(name: str, share_text: str, share: float, css: str = "") -> str:
    """A row with a bar, for :func:`build_share_table`."""
    bar = f'<td class="bar"><i style="width:{100 * share:.1f}%"></i></td>'
    return f'<tr class="{css}"><td>{escape(name)}</td><td>{share_text}</td>{bar}</tr>'


def build_share_table(rows: str) -> str:
    """A table of rows with bars."""
    return f'<table class="shares"><tbody>{rows}</tbody></table>'


def make_figure(svg: str, caption: str) -> str:
    """A picture with its caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def make_responsive(wide: str, narrow: str) -> str:
    """A picture in two forms; a reader gets the one that fits the screen."""
    return f'<div class="at-ease">{wide}</div><div class="on-phone">{narrow}</div>'


def make_scrollable(html: str, label: str) -> str:
    """A piece that may be wider than the screen; the keyboard can scroll it, too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{html}</div>'


STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #52606d; --line: #e4e7eb; --accent: #a84a00; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, Ubuntu,
  "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: break-word;
  -webkit-text-size-adjust: 100%; counter-reset: figure; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 3.4rem; line-height: 1.1; margin: 0 0 .4rem; letter-spacing: -.02em; }
h2 { font-size: 1.35rem; margin: 0 0 1rem; letter-spacing: -.01em; }
h3 { font-size: .88rem; margin: 1.8rem 0 .5rem; color: var(--soft); font-weight: 600; }
p { max-width: 46rem; margin: 0 0 .8rem; }
section { margin-top: 3.2rem; border-top: 1px solid var(--line); padding-top: 1.8rem; }
.eyebrow, .note, figcaption { color: var(--soft); font-size: .88rem; }
.eyebrow { margin-bottom: .3rem; }
.lead { font-size: 1.25rem; line-height: 1.4; text-wrap: balance; }
.why { border-left: 3px solid #d55e00; padding-left: 1rem; }
.warning { background: #fff7ed; border: 1px solid #f3d3b3; border-radius: 8px; padding: .8rem 1rem;
  margin: 1rem 0; max-width: 46rem; font-size: .92rem; }
.warning pre { background: #fff; margin-top: .5rem; }
.answers { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 2fr); gap: 0 1.6rem;
  margin-top: 1.6rem; }
.answers h2 { font-size: .8rem; text-transform: uppercase; letter-spacing: .06em; color: var(--soft);
  margin: 0 0 .6rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .8rem;
  margin-bottom: 1rem; }
.answers > div { display: flex; flex-direction: column; }
.answers .cards { grid-template-columns: 1fr 1fr; flex: 1; }
.answers .cards.one { grid-template-columns: 1fr; }
.scroll + .note, table + .note, dl + .note { margin-top: .7rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.card h3 { margin: 0 0 .15rem; }
.card p { margin: 0; font-size: .84rem; color: var(--soft); }
.card .big { font-size: 1.4rem; font-weight: 600; color: var(--ink); line-height: 1.4; }
figure { margin: 0; }
figcaption { margin-top: .5rem; max-width: 46rem; }
figcaption::before { counter-increment: figure; content: "Figure " counter(figure) ". "; font-weight: 600;
  color: var(--ink); }
svg { display: block; max-width: 100%; height: auto; overflow: visible; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit !important; }
.on-phone { display: none; }
.point { opacity: 0; cursor: pointer; outline: none !important; }
.point.lit { opacity: 1; }
#tip { position: absolute; z-index: 2; max-width: min(19rem, calc(100vw - 1rem)); white-space: pre-line;
  background: var(--ink); color: #fff; font-size: .82rem; line-height: 1.45; padding: .45rem .7rem;
  border-radius: 6px; pointer-events: none; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; list-style: none; margin: 0; padding: 0;
  font-size: .85rem; color: var(--soft); }
.legend svg { display: inline-block; margin-right: .5rem; vertical-align: middle; }
.scroll { overflow-x: auto; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.6rem 2.5rem; }
.two > * { min-width: 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 0 .8rem; }
.panels h3 { margin: 1.2rem 0 .2rem; }
details { margin-top: .8rem; font-size: .88rem; }
summary { cursor: pointer; color: var(--soft); padding: .3rem 0; }
table { border-collapse: collapse; font-size: .85rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .5rem; }
th, td { text-align: right; padding: .35rem .7rem; white-space: nowrap; border-bottom: 1px solid #edf0f2; }
table.narrow th, table.narrow td { padding: .35rem .3rem; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; border-bottom-color: #9aa5b1; }
th:first-child, td:first-child { padding-left: .4rem; }
.trials { width: 100%; font-size: .76rem; }
.trials th { white-space: normal; }
.trials th, .trials td { padding: .35rem .3rem; }
.trials .words { text-align: left; }
.trials td.layers { white-space: normal; min-width: 6.5rem; }
.trials th:first-child, .trials td:first-child { position: sticky; left: 0; background: #fff; }
.trials th:first-child, .trials td:first-child, .shares td:first-child { text-align: left; }
.won td, .trials .won td:first-child { background: #fdf0e6; font-weight: 600; }
.lit td, .trials .lit td:first-child { background: #e8f1f8; }
.stopped td, .failed td { color: var(--soft); }
.shares { width: 100%; max-width: 34rem; }
.shares .bar { width: 55%; }
.bar i { display: block; height: .6rem; background: #0072b2; border-radius: 2px; }
.total td { font-weight: 600; border-bottom: 0; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) minmax(0, 1fr);
  gap: .2rem 1.2rem; margin: 0; font-size: .85rem; }
dt { color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: #f5f7fa; border-radius: 6px; padding: .8rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; margin: 0; }
:focus-visible { outline: 2px solid #0072b2; outline-offset: 2px; }
@media (max-width: 48rem) {
  .answers { grid-template-columns: minmax(0, 1fr); }
  .answers .cards.one { grid-template-columns: 1fr 1fr; }
}
@media (max-width: 40rem) {
  main { padding: 1.2rem 1rem 3rem; }
  h1 { font-size: 2.6rem; }
  .lead { font-size: 1.1rem; }
  section { margin-top: 2.2rem; padding-top: 1.4rem; }
  .cards { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .panels { grid-template-columns: 1fr 1fr; }
  .card { padding: .6rem .7rem; }
  .card .big { font-size: 1.15rem; }
  .at-ease { display: none; }
  .on-phone { display: block; }
  dl { grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: .2rem .7rem; }
}
@media print {
  @page { size: A4; margin: 14mm; }
  body { font-size: 10pt; }
  main { padding: 0; max-width: none; }
  section { margin-top: 1.2rem; padding-top: 1rem; }
  figure, .card, .warning, tr, .panels > div { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .two { grid-template-columns: 1fr 1fr; gap: 1rem; }
  .answers { grid-template-columns: 1fr 2fr; }
  .panels { grid-template-columns: repeat(4, 1fr); }
  .cards { gap: .5rem; }
  .answers .cards.one { grid-template-columns: 1fr; }
  .card { padding: .4rem .6rem; }
  .card .big { font-size: 1.05rem; }
  .at-ease { display: block; }
  .on-phone, #tip, details { display: none; }
  .point { opacity: 0 !important; }
  .bar i, .won td, pre { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .two table:not(.shares) { font-size: 8pt; }
  .scroll { overflow: visible; }
  .trials { font-size: 6.2pt; }
  th, td { padding: .2rem .3rem; }
  .trials th, .trials td { padding: .15rem; }
  .trials .won td { font-weight: inherit; }
  .trials td, .trials th { position: static !important; white-space: normal; overflow-wrap: anywhere; }
  .trials td.layers { min-width: 0; }
}
"""

# Without it the browser shows the same words when a mark is pointed at.
SCRIPT = """
(() => {
  const tip = document.getElementById("tip");
  const marked = document.querySelectorAll("[data-of]");
  const hide = () => {
    tip.hidden = true;
    for (const each of marked) each.classList.remove("lit");
  };
  const show = (point) => {
    hide();
    for (const each of marked) each.classList.toggle("lit", each.dataset.of === point.dataset.of);
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const box = point.getBoundingClientRect();
    const right = document.documentElement.clientWidth - tip.offsetWidth - 6;
    const middle = box.left + (box.width - tip.offsetWidth) / 2;
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = scrollX + Math.max(6, Math.min(right, middle)) + "px";
    tip.style.top = scrollY + (above < 0 ? box.bottom + 6 : above) + "px";
  };
  for (const point of document.querySelectorAll(".point")) {
    point.querySelector("title").remove();
    for (const event of ["pointerenter", "focus", "click"]) point.addEventListener(event, () => show(point));
    for (const event of ["pointerleave", "blur"]) point.addEventListener(event, hide);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
})();
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>$first</header>
$sections
</main>
<div id="tip" role="tooltip" hidden></div>
<script>$script</script>
</body>
</html>
""")


def write_page(path: Path, title: str, first: str, sections: Mapping[str, str]) -> Path:
    """Write a page of `first` and of `sections` (heading → HTML); returns its path."""
    body = "\n".join(f"<section><h2>{escape(name)}</h2>{html}</section>" for name, html in sections.items())
    page = PAGE.substitute(title=escape(title), style=STYLE, first=first, sections=body, script=SCRIPT)
    path.write_text(page, encoding="utf-8")
    return path
