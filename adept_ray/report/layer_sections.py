"""The sections of a search's page about layers: the importance of each, and the rates of their units."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from adept_ray.method.copies import added_layers
from adept_ray.report.drawing import NARROW, WIDE
from adept_ray.report.evidence import Evidence
from adept_ray.report.html import NONE, inline_figure, make_figure, make_responsive
from adept_ray.report.layer_figures import draw_layer_importance
from adept_ray.report.rate_figures import Line, assign_lines, draw_rates, split_unit
from adept_ray.report.records import LayerRow, Rate

# How the importance at step 0 came about.
FRESH = "the one at step 0 was made on the source layers"
GROWN = (
    "at step 0, where the chosen depth began, copies that it added have the importance of their source "
    "layers, and copies that it took over have what they had at the end of the depth before"
)


def build_importance_section(results: Evidence) -> str:
    """The importance of every layer, as a figure and as a table."""
    importance, chosen = results.importance, results.best.layers
    source = importance.made_from
    has_source = {"tokens", "corpus"} <= source.keys()
    place = f" on {source['tokens']} tokens of {source['corpus']}" if has_source else ""
    loss = importance.base_loss
    base = "" if loss is None else f" The whole backbone's loss is {loss:.3f}."
    label = f"Importance of {len(importance.layers)} layers; chosen: {', '.join(map(str, chosen)) or 'none'}"
    doubt = importance.express_doubt(chosen)
    race = (
        " Raced: layers whose place is clear were measured on fewer sequences; the order goes by differences "
        "on the same ones."
        if importance.probe == "raced"
        else ""
    )
    caption = f"Mean ± standard error{place}, logarithmic axis.{base}{race} {doubt}".rstrip()
    tips = {
        f"layer{row.layer}": f"layer {row.layer}: {row.mean:.3g} ± {format_error(row)} nats per token"
        for row in importance.layers
    }
    pictures = (
        inline_figure(draw_layer_importance(importance, chosen, size), name, label, tips)
        for name, size in (("importance", WIDE), ("importance-narrow", NARROW))
    )
    return make_figure(make_responsive(*pictures), caption) + build_layer_table(results)


def format_error(row: LayerRow) -> str:
    """A layer's standard error as people read it."""
    return NONE if row.standard_error is None else f"{row.standard_error:.2g}"


def build_layer_table(results: Evidence) -> str:
    """Every layer's numbers, least important first."""
    importance = results.importance
    rows = {row.layer: row for row in importance.layers}
    order = importance.order or tuple(sorted(rows, key=lambda layer: rows[layer].mean))
    body = ""
    for layer in order:
        row = rows[layer]
        low, high = row.places or (None, None)
        places = NONE
        if low is not None and high is not None:
            places = f"{low + 1}" + (f" to {high + 1}" if high > low else "")
        css = ' class="won"' if layer in results.best.layers else ""
        body += (
            f"<tr{css}><td>{layer}</td><td>{row.mean:.4g}</td><td>{format_error(row)}</td>"
            f"<td>{places}</td></tr>"
        )
    head = "<tr><th>layer</th><th>importance</th><th>± s.e.</th><th>place</th></tr>"
    return (
        "<details><summary>Every layer, least important first</summary><table><caption>Loss increase in nats "
        f"per token; place: what the probe leaves open at {importance.confidence:.0%} confidence.</caption>"
        f"<thead>{head}</thead><tbody>{body}</tbody></table></details>"
    )


def build_rates_section(results: Evidence) -> str:
    """The scale of every unit of the added layers, a panel a layer."""
    if not results.rates and results.best.k > 0:
        return "<p>No unit rates were recorded.</p>"
    if not results.rates:
        return "<p>No layer added, so no unit has a rate.</p>"
    lines = assign_lines(list(dict.fromkeys(split_unit(rate.unit)[1] for rate in results.rates)))
    legend = "".join(f"<li>{draw_sample(line)}{escape(line.label)}</li>" for line in lines.values())
    panels = f'<ul class="legend">{legend}</ul><div class="panels">{draw_rate_panels(results, lines)}</div>'
    caption = (
        "Scale multiplies the base rate: 1 is the base rate itself, and important units get less. Each point "
        f"is a measurement, which holds until the next; {GROWN if results.is_grown else FRESH}. Layers are "
        "numbered as in the exported model."
    )
    return f"<figure>{panels}<figcaption>{caption}</figcaption></figure>"


def draw_sample(line: Line) -> str:
    """A short piece of the line, for a legend that wraps with the page."""
    dash = {"-": "none", "--": "6 3", ":": "2 2", "-.": "7 2 2 2"}[line.dashes]
    return (
        f'<svg role="img" aria-label="line of {escape(line.label)}" viewBox="0 0 30 8" width="30" height="8">'
        f'<path d="M0 4H30" stroke="{line.color}" stroke-width="2" stroke-dasharray="{dash}"/></svg>'
    )


def draw_rate_panels(results: Evidence, lines: Mapping[str, Line]) -> str:
    """A panel for each layer that has unit rates."""
    layers: dict[int, dict[str, list[Rate]]] = {}
    for rate in sorted(results.rates, key=lambda rate: rate.step):
        layer, kind = split_unit(rate.unit)
        layers.setdefault(layer, {}).setdefault(kind, []).append(rate)
    last = max(rate.step for rate in results.rates)
    top = 1.05 * max(2.0, *(rate.scale for rate in results.rates))
    copied = sorted(results.best.layers)
    sources = dict(zip(added_layers(copied), copied, strict=True))
    panels = ""
    for layer, rows in sorted(layers.items()):
        title = f"Layer {layer}" + (f", copy of {sources[layer]}" if layer in sources else "")
        svg = inline_figure(
            draw_rates(rows, lines, last, top), f"rates{layer}", f"{title}: scale of each unit"
        )
        panels += f"<div><h3>{title}</h3>{svg}</div>"
    return panels
