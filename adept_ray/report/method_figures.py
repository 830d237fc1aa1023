"""The figures of a comparison: every method's score, and its general against its domain change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adept_ray.method.scores import value_or_zero
from adept_ray.report.drawing import (
    BLUE,
    DARK_ORANGE,
    GREY,
    HALF,
    ORANGE,
    apply_style,
    format_tick,
    make_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float | None]  # a mean and half of its interval


@apply_style()
def draw_ranking(points: Sequence[tuple[str, float, float | None]], own: str) -> Figure:
    """Means with their intervals, one below the other in the order given, numbered; `own` stands out."""
    figure, axes = make_axes(HALF[0], 0.9 + 0.28 * len(points))
    axes.axvline(0, color=GREY, linewidth=0.8)
    for row, (name, mean, half) in enumerate(points):
        color = ORANGE if name == own else BLUE
        axes.errorbar(
            [mean], [-row], xerr=[value_or_zero(half)], fmt="o", color=color, capsize=3, markersize=5
        )
    names = [f"{name}  {number}" for number, (name, _, _) in enumerate(points, 1)]
    axes.set_yticks([-row for row in range(len(points))], names)
    axes.set_xlabel("score (right is better)")
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(format_tick)
    return figure


@apply_style()
def draw_sides(points: Sequence[tuple[str, Point, Point]], own: str) -> Figure:
    """General against domain change with intervals on both; numbers as in :func:`draw_ranking`."""
    figure, axes = make_axes(HALF[0], max(3.5, 0.9 + 0.28 * len(points)))
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    for number, (name, (x, half_x), (y, half_y)) in enumerate(points, 1):
        color = ORANGE if name == own else BLUE
        axes.errorbar(
            [x],
            [y],
            xerr=[value_or_zero(half_x)],
            yerr=[value_or_zero(half_y)],
            fmt="o",
            color=color,
            capsize=2,
            alpha=0.8,
        )
        words = DARK_ORANGE if name == own else BLUE
        axes.annotate(str(number), (x, y), (5, 4), textcoords="offset points", fontsize=9, color=words)
    axes.set_xlabel("general Δ (right is better)")
    axes.set_ylabel("domain Δ (up is better)")
    axes.grid(True, axis="x")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(format_tick)
    axes.margins(0.15)
    return figure
