"""The figures of a search's trials: score against k, general against domain, learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from adept_ray.method.scores import is_finite, value_or_zero
from adept_ray.report.drawing import (
    BLUE,
    DARK_ORANGE,
    GREEN,
    GREY,
    HALF,
    INK,
    ORANGE,
    WHITE_BOX,
    apply_style,
    format_tick,
    make_axes,
    place_targets,
    use_whole_numbers,
)
from adept_ray.report.evidence import Evidence
from adept_ray.search.answers import Depth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIAL_LINES = {
    "score": (ORANGE, "-", "score"),
    "general_delta": (BLUE, "--", "general Δ"),
    "domain_delta": (GREEN, ":", "domain Δ"),
}


@apply_style()
def draw_scores(results: Evidence) -> Figure:
    """Score against k: every trial, the best of each k ± its standard error, the chosen one."""
    figure, axes = make_axes(*HALF)
    axes.axhline(0, color=GREY, linewidth=0.8)
    draw_trials(axes, [(trial.state, trial.k, trial.score) for trial in results.trials])
    best = {depth.k: depth for depth in results.depths if is_finite(depth.score)}
    draw_best_line(axes, list(best.values()))
    chosen = results.best.k
    if chosen in best or chosen == 0:  # the untouched backbone scores 0
        mark_chosen(axes, chosen, value_or_zero(best[chosen].score) if chosen in best else 0.0)
    place_targets(axes, place_trials(results, "k", "score"))
    axes.set_xlabel("k, added layers")
    axes.set_ylabel("validation score")
    use_whole_numbers(axes, 12)
    axes.yaxis.set_major_formatter(format_tick)
    axes.margins(x=0.08, y=0.08)
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


def draw_best_line(axes: Axes, best: Sequence[Depth]) -> None:
    """A line through the best score of each k."""
    if best:
        axes.errorbar(
            [depth.k for depth in best],
            [value_or_zero(depth.score) for depth in best],
            [value_or_zero(depth.standard_error) for depth in best],
            color=BLUE, linewidth=1, elinewidth=1.4, capsize=4, label="each k ± s.e.", zorder=3,
        )  # fmt: skip


def place_trials(results: Evidence, x: str, y: str) -> dict[str, tuple[float, float]]:
    """Where trials lie in a figure of two of their columns: trial0, trial1, … in the order of the table."""
    places = {}
    for number, trial in enumerate(results.trials):
        at = getattr(trial, x), getattr(trial, y)
        if is_finite(at[0]) and is_finite(at[1]) and trial.state != "failed":
            places[f"trial{number}"] = at
    return places


def draw_trials(axes: Axes, points: Sequence[tuple[str, float | None, float | None]]) -> None:
    """A mark for each trial, given as its state and its place, and one for the untouched backbone."""
    for state, fill in (("finished", BLUE), ("stopped", "white")):
        xy = [(x, y) for its_state, x, y in points if its_state == state and is_finite(x) and is_finite(y)]
        if xy:
            axes.plot(
                *zip(*xy, strict=True), "o", color=BLUE, markerfacecolor=fill, markersize=5.5,
                alpha=0.75 if state == "finished" else 1, label=state, zorder=2, linestyle="none",
            )  # fmt: skip
    untouched = [(x, y) for state, x, y in points if state == "untouched" and is_finite(x) and is_finite(y)]
    for x, y in untouched or [(0.0, 0.0)]:
        axes.plot([x], [y], "P", color=INK, markersize=7, label="untouched", zorder=4, linestyle="none")


def mark_chosen(axes: Axes, x: float, y: float) -> None:
    """The mark of the chosen trial."""
    axes.plot(
        [x], [y], "D", color=ORANGE, markersize=8.5, markeredgecolor="white",
        label="chosen", zorder=5, linestyle="none",
    )  # fmt: skip


@apply_style()
def draw_trade(results: Evidence) -> Figure:
    """General against domain change of every trial, its way there by the dial, and the front."""
    figure, axes = make_axes(*HALF)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    for name in results.dials:
        stands_out = name == results.best.trial
        axes.plot(
            *list_dial_points(results, name, "general_delta", "domain_delta"),
            color=ORANGE if stands_out else GREY, linewidth=1.6 if stands_out else 0.6, zorder=1,
            label="chosen, by its dial" if stands_out else "others, by their dials",
        )  # fmt: skip
    if len(results.front) > 1:
        axes.plot(
            *zip(*results.front, strict=True),
            color=BLUE,
            linewidth=1,
            linestyle="--",
            label="front",
            zorder=1,
        )
    draw_trials(axes, [(trial.state, trial.general_delta, trial.domain_delta) for trial in results.trials])
    k = results.best.k
    chosen = [(t.general_delta, t.domain_delta) for t in results.trials if t.name == results.best.trial]
    for x, y in chosen or [(0.0, 0.0)] * (k == 0):
        at = (value_or_zero(x), value_or_zero(y))
        mark_chosen(axes, *at)
        axes.annotate(f"k = {k}", at, (8, 6), textcoords="offset points", color=DARK_ORANGE, bbox=WHITE_BOX)
    place_targets(axes, place_trials(results, "general_delta", "domain_delta"))
    axes.set_xlabel("general Δ (right is better)")
    axes.set_ylabel("domain Δ (up is better)")
    axes.grid(True, axis="x")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(format_tick)
    axes.margins(0.12)
    name_lines(figure, axes, 3)
    return figure


def name_lines(figure: Figure, axes: Axes, columns: int) -> None:
    """A legend above the axes in which lines of the same name are named once."""
    lines = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(lines.values(), lines.keys(), loc="outside upper left", ncols=columns, columnspacing=1.2)


def list_dial_points(results: Evidence, name: str, x: str, y: str) -> tuple[list[float], list[float]]:
    """Two columns of what was read of a trial by its dial; it begins at the backbone, where all are 0."""
    points = [(getattr(point, x), getattr(point, y)) for point in results.dials[name]]
    shown = [(0.0, 0.0), *((a, b) for a, b in points if is_finite(a) and is_finite(b))]
    return [a for a, _ in shown], [b for _, b in shown]


@apply_style()
def draw_dial(results: Evidence) -> Figure:
    """Score and both changes of what was chosen against its dial, and the scores of other trials."""
    figure, axes = make_axes(*HALF)
    axes.axhline(0, color=GREY, linewidth=0.8)
    own, turned = results.dials.get(results.chosen or "", []), results.best.test.dial
    for name in results.dials:
        if name != results.chosen:
            scores = list_dial_points(results, name, "dial", "score")
            axes.plot(*scores, color=GREY, linewidth=0.6, label="scores of other trials", zorder=1)
    for what, (color, style, label) in DIAL_LINES.items() if own else ():
        points = list_dial_points(results, own[0].trial, "dial", what)
        axes.plot(*points, style, color=color, marker="o", markersize=4, label=label, zorder=3)
    if turned is not None:
        axes.axvline(turned, color=ORANGE, linewidth=0.8, linestyle="--", zorder=1)
        for point in own:
            if point.dial == turned and is_finite(point.score):
                mark_chosen(axes, point.dial, point.score)
    places = {
        f"trial{number}": (point.dial, point.score)
        for number, trial in enumerate(results.trials)
        for point in results.dials.get(trial.name, ())
        if point.dial == trial.dial and is_finite(point.score)
    }
    place_targets(axes, places)
    axes.set_xlabel("dial, from the backbone (0) to as trained (1)")
    axes.set_ylabel("validation score and changes")
    axes.yaxis.set_major_formatter(format_tick)
    name_lines(figure, axes, 3)
    return figure


@apply_style()
def draw_curves(results: Evidence, what: Literal["score", "loss"]) -> Figure:
    """What every trial reported against the tokens it had trained on; the chosen trial stands out.

    A depth of a grown model has the piece of line from the end of the depth before to its own.
    """
    figure, axes = make_axes(*HALF)
    states = {trial.name: trial.state for trial in results.trials}
    ends = {}
    for name, points in list_curves(results, what).items():
        tokens, values = zip(*points, strict=True)
        stands_out = name == results.best.trial or name not in states
        label = "chosen" if name == results.best.trial else states.get(name, name)
        (line,) = axes.plot(tokens, values, color=BLUE, linewidth=1, marker="o", markersize=3, label=label)
        if results.is_grown:
            line.set_markevery([len(points) - 1])  # its start is the end of another depth, marked as that
        if stands_out:
            line.set(color=ORANGE, linewidth=2, zorder=3)
        elif label != "finished":
            line.set(linestyle=":")
        if name in states:
            ends[f"trial{list(states).index(name)}"] = (tokens[-1], values[-1])
    place_targets(axes, ends)
    axes.set_xlabel("tokens trained on, thousands")
    axes.set_ylabel("validation score" if what == "score" else "training loss (nats per token)")
    axes.yaxis.set_major_formatter(format_tick)
    name_lines(figure, axes, 3)
    return figure


def list_curves(results: Evidence, what: str) -> dict[str, list[tuple[float, float]]]:
    """Trial → thousands of tokens and the value that was reported there.

    Every score begins at 0, the backbone's. A depth of a grown model begins where the last one ended.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    start = [(0.0, 0.0)] if what == "score" else []
    readings = [(name, reading) for name, curve in results.curves.items() for reading in curve]
    for name, reading in sorted(readings, key=lambda pair: pair[1].tokens):
        value = getattr(reading, what)
        if is_finite(value):
            points = curves.setdefault(name, list(start))
            points.append((reading.tokens / 1000, value))
            if results.is_grown:
                start = points[-1:]
    return curves
