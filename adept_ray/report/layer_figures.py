"""The figures of the backbone's layers: their importance, and where both kinds of text are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from adept_ray.method.scores import value_or_zero
from adept_ray.report.drawing import (
    BLUE,
    DARK_ORANGE,
    GREY,
    LINES,
    ORANGE,
    WIDE,
    apply_style,
    format_tick,
    make_axes,
    place_targets,
    save_figure,
    use_whole_numbers,
)
from adept_ray.report.records import Importance, LayerRow, check_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


class Mark(NamedTuple):
    """How a kind of layer is drawn."""

    label: str
    marker: str
    color: str
    size: float
    fill: str


# How far apart a layer keeps both kinds of text: ``layer`` (of the backbone; that of its source for a copy),
# ``copy``, ``overlap`` of the two densities, ``general`` and ``domain`` (the place of each block).
Separation = Mapping[str, Any]


def draw_importance(importance: Mapping[str, object], chosen: Sequence[int]) -> Figure:
    """Points per layer (nats per token ± standard error), the `chosen` layers marked.

    `importance` is what ``importance.json`` holds. The axis is logarithmic, with a linear piece around
    zero when the bypass of a layer changed next to nothing or lowered the loss.
    Raises :class:`UserError` when a key is missing.
    """
    return draw_layer_importance(check_record(Importance, importance, "importance"), chosen)


@apply_style()
def draw_layer_importance(
    importance: Importance, chosen: Sequence[int], size: tuple[float, float] = WIDE
) -> Figure:
    """As :func:`draw_importance`; hollow marks are layers that the probe can't tell from chosen ones."""
    layers = [row for row in importance.layers if math.isfinite(row.mean)]
    figure, axes = make_axes(*size)
    scale_importance(axes, [row.mean for row in layers])
    marked = [row for row in layers if row.layer in set(chosen)]
    tied = set(importance.find_doubtful(chosen)[1])
    doubtful = [row for row in layers if row.layer in tied]
    others = [row for row in layers if row.layer not in {*chosen, *tied}]
    draw_layers(axes, others, Mark("other layers" if marked else "layers", "o", GREY, 5, GREY))
    draw_layers(axes, doubtful, Mark("not told from a chosen one", "o", ORANGE, 5, "white"))
    draw_layers(axes, marked, Mark("chosen layers", "D", ORANGE, 7, ORANGE))
    for row in marked:
        top = (row.layer, row.mean + value_or_zero(row.standard_error))
        axes.annotate(str(row.layer), top, (0, 6), textcoords="offset points", ha="center", color=DARK_ORANGE)
    place_targets(axes, {f"layer{row.layer}": (row.layer, row.mean) for row in layers})
    axes.set_xlabel("layer")
    axes.set_ylabel("loss increase when bypassed\n(nats per token)")
    use_whole_numbers(axes, 16 if size == WIDE else 8)
    axes.margins(x=0.02)
    if layers:
        figure.legend(loc="outside upper left", ncols=3 if size == WIDE else 2, columnspacing=1.2)
    return figure


def scale_importance(axes: Axes, means: Sequence[float]) -> None:
    """Make the axis logarithmic where it can be, with a linear piece around zero where it can't."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if max(means, default=0.0) <= 0:
        return
    # Three decades are enough for a logarithmic axis; below them, where zero is, it becomes linear.
    floor = 10.0 ** round(math.log10(max(means)) - 3)
    if min(means) > floor:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_yscale("symlog", linthresh=floor, linscale=0.5)
        axes.axhline(0, color=GREY, linewidth=0.8)
    axes.yaxis.set_major_formatter(format_tick)


def draw_layers(axes: Axes, rows: Sequence[LayerRow], mark: Mark) -> None:
    """A point ± standard error for each of these layers."""
    if rows:
        axes.errorbar(
            [row.layer for row in rows],
            [row.mean for row in rows],
            [value_or_zero(row.standard_error) for row in rows],
            fmt=mark.marker, color=mark.color, markerfacecolor=mark.fill, markersize=mark.size,
            capsize=2.5, elinewidth=1.2, label=mark.label,
        )  # fmt: skip


def save_importance(importance: Mapping[str, object], chosen: Sequence[int], path: Path) -> Path:
    """Write :func:`draw_importance` to `path` and return it; raises as :func:`save_figure` does."""
    return save_figure(draw_importance(importance, chosen), path)


@apply_style()
def draw_separation(models: Mapping[str, Sequence[Separation]], shown: Sequence[int]) -> Figure:
    """Overlap per layer of every model, by its name, and both densities at the `shown` layers.

    Where a shown layer has a copy, the copy's densities are drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * max(len(shown), 3), 2.6 + 1.25 * len(models)), layout="constrained")
    above, below = cast(
        "Sequence[SubFigure]", figure.subfigures(2, 1, height_ratios=[2.4, 1.25 * len(models)])
    )
    axes = above.subplots()
    for color, marker, (name, rows) in zip(LINES, "osD^v<>", models.items(), strict=False):
        places = [row["layer"] + 0.5 * row["copy"] for row in rows]
        overlaps = [row["overlap"] for row in rows]
        axes.plot(places, overlaps, color=color, linewidth=1.2, marker=marker, markersize=3, label=name)
    for layer in shown:
        axes.axvline(layer, color=GREY, linewidth=0.6, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer of the backbone; a copy stands half a step behind its source")
    axes.set_ylabel("overlap of densities")
    above.legend(loc="outside upper left", ncols=len(models), columnspacing=1.2)
    panels = below.subplots(len(models), len(shown), squeeze=False, sharex="col")
    for line, (name, rows) in zip(panels, models.items(), strict=True):
        for panel, layer in zip(line, shown, strict=True):
            draw_densities(panel, [row for row in rows if row["layer"] == layer][-1])
        line[0].set_ylabel(name, fontsize=8)
    for panel, layer in zip(panels[0], shown, strict=True):
        panel.set_title(f"layer {layer}", fontsize=9)
    below.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def save_separation(models: Mapping[str, Sequence[Separation]], shown: Sequence[int], path: Path) -> Path:
    """Write :func:`draw_separation` to `path` and return it; raises as :func:`save_figure` does."""
    return save_figure(draw_separation(models, shown), path)


def draw_densities(axes: Axes, row: Separation) -> None:
    """Both kernel densities of a layer."""
    from adept_ray.method.activations import estimate_densities

    grid, general, domain = estimate_densities(row["general"], row["domain"])
    for density, color, label in ((general, BLUE, "general"), (domain, ORANGE, "domain")):
        axes.fill_between(grid, density, color=color, alpha=0.25, linewidth=0)
        axes.plot(grid, density, color=color, linewidth=1.2, label=label)
    words = f"{row['overlap']:.2f}" + (", copy" if row["copy"] else "")
    axes.annotate(words, (0.97, 0.93), xycoords="axes fraction", ha="right", va="top", fontsize=7)
    axes.set_yticks([])
    axes.grid(False)
