"""The figures of a report, drawn with Matplotlib's object interface: no window, no global state."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from adept_ray.config.errors import UserError
from adept_ray.report.evidence import Depth, Evidence, Importance, LayerRow, Rate, check_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours, told apart with any colour vision; marks differ in shape as well.
BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#1f2933", "#7b8794"
DARK_ORANGE = "#a84a00"  # orange that is dark enough to read
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
LINES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)

STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": "#52606d",
    "axes.edgecolor": "#9aa5b1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e8ecf0",
    "xtick.color": "#9aa5b1",
    "ytick.color": "#9aa5b1",
    "xtick.labelcolor": "#52606d",
    "ytick.labelcolor": "#52606d",
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "savefig.dpi": 160,
    "text.parse_math": False,  # names are shown as they are, dollar signs too
    "svg.fonttype": "none",  # text stays text: searchable, small, in the reader's own font
    "svg.hashsalt": "adept_ray",
}
# Date would make every file differ; the others are Matplotlib's address and RDF namespaces.
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@contextmanager
def apply_style() -> Iterator[None]:
    from matplotlib import style

    with style.context(["default", STYLE]):  # "default" shuts out the reader's own matplotlibrc
        yield


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


Places = Mapping[str, tuple[float, float]]
HALF, WIDE, NARROW = (4.3, 3.5), (9.6, 3.4), (4.3, 3.6)  # inches; a phone gets NARROW in place of WIDE


def _targets(axes: Axes, places: Places) -> None:
    """An unseen mark on each place, under its name as id: what a reader points at or tabs to."""
    for name, (x, y) in places.items():
        axes.plot([x], [y], "o", color=INK, markersize=13, alpha=0, gid=name, zorder=9, label="_")


def is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def value_or_zero(value: float | None) -> float:
    return value if is_known(value) else 0.0


def _plain(value: float, _position: float = 0) -> str:
    return f"{value:g}".replace("-", "−")


def importance_figure(importance: Mapping[str, Any], chosen: Sequence[int]) -> Figure:
    """Points per layer (nats per token ± standard error), the `chosen` layers marked.

    `importance` is what ``importance.json`` holds. The axis is logarithmic, with a linear piece around
    zero when the bypass of a layer changed next to nothing or lowered the loss.
    Raises :class:`UserError` when a key is missing.
    """
    return layer_figure(check_record(Importance, importance, "importance"), chosen)


@apply_style()
def layer_figure(importance: Importance, chosen: Sequence[int], size: tuple[float, float] = WIDE) -> Figure:
    """As :func:`importance_figure`; hollow marks are layers that the probe doesn't tell from chosen ones."""
    layers = [row for row in importance.layers if math.isfinite(row.mean)]
    figure, axes = _axes(*size)
    _importance_scale(axes, [row.mean for row in layers])
    marked = [row for row in layers if row.layer in set(chosen)]
    tied = set(importance.open_between(chosen)[1])
    open_ = [row for row in layers if row.layer in tied]
    others = [row for row in layers if row.layer not in {*chosen, *tied}]
    _layer_points(axes, others, "o", GREY, 5, "other layers" if marked else "layers")
    _layer_points(axes, open_, "o", ORANGE, 5, "not told from a chosen one", "white")
    _layer_points(axes, marked, "D", ORANGE, 7, "chosen layers")
    for row in marked:
        top = (row.layer, row.mean + value_or_zero(row.standard_error))
        axes.annotate(str(row.layer), top, (0, 6), textcoords="offset points", ha="center", color=DARK_ORANGE)
    _targets(axes, {f"layer{row.layer}": (row.layer, row.mean) for row in layers})
    axes.set_xlabel("layer")
    axes.set_ylabel("loss increase when bypassed\n(nats per token)")
    _whole_numbers(axes, 16 if size == WIDE else 8)
    axes.margins(x=0.02)
    if layers:
        figure.legend(loc="outside upper left", ncols=3 if size == WIDE else 2, columnspacing=1.2)
    return figure


def _importance_scale(axes: Axes, means: Sequence[float]) -> None:
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
    axes.yaxis.set_major_formatter(_plain)


def _layer_points(
    axes: Axes, rows: Sequence[LayerRow], marker: str, color: str, size: float, label: str, fill: str = ""
) -> None:
    if rows:
        axes.errorbar(
            [row.layer for row in rows],
            [row.mean for row in rows],
            [value_or_zero(row.standard_error) for row in rows],
            fmt=marker, color=color, markerfacecolor=fill or color, markersize=size,
            capsize=2.5, elinewidth=1.2, label=label,
        )  # fmt: skip


def _whole_numbers(axes: Axes, most: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]))


def draw_importance(importance: Mapping[str, Any], chosen: Sequence[int], path: Path) -> Path:
    """Write :func:`importance_figure` to `path` and return it; raises as :func:`save_figure` does."""
    return save_figure(importance_figure(importance, chosen), path)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure to `path` and return it; the suffix says PNG or SVG.

    Raises :class:`UserError` for another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise UserError(f"{path}: a figure is written as .png or .svg, not '{path.suffix}'")
    path.parent.mkdir(parents=True, exist_ok=True)
    with apply_style():
        figure.savefig(path, metadata=NO_METADATA if suffix == ".svg" else None)
    return path


@apply_style()
def score_figure(results: Evidence) -> Figure:
    """Score against k: every trial, the best of each k ± its standard error, the chosen one."""
    figure, axes = _axes(*HALF)
    axes.axhline(0, color=GREY, linewidth=0.8)
    choice = results.best.choice
    if choice and is_known(choice.threshold):
        axes.axhline(choice.threshold, color=BLUE, linewidth=1, linestyle="--", label="threshold")
    _trial_points(axes, [(trial.state, trial.k, trial.score) for trial in results.trials])
    best = {depth.k: depth for depth in results.depths if is_known(depth.score)}
    _best_line(axes, list(best.values()))
    chosen = results.best.k
    if chosen in best or chosen == 0:  # the untouched backbone scores 0
        _mark_chosen(axes, chosen, value_or_zero(best[chosen].score) if chosen in best else 0.0)
    _targets(axes, trial_places(results, "k", "score"))
    axes.set_xlabel("k, added layers")
    axes.set_ylabel("validation score")
    _whole_numbers(axes, 12)
    axes.yaxis.set_major_formatter(_plain)
    axes.margins(x=0.08, y=0.08)
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


def _best_line(axes: Axes, best: Sequence[Depth]) -> None:
    if best:
        axes.errorbar(
            [depth.k for depth in best],
            [value_or_zero(depth.score) for depth in best],
            [value_or_zero(depth.standard_error) for depth in best],
            color=BLUE, linewidth=1, elinewidth=1.4, capsize=4, label="best of its k ± s.e.", zorder=3,
        )  # fmt: skip


def trial_places(results: Evidence, x: str, y: str) -> dict[str, tuple[float, float]]:
    """Where trials lie in a figure of two of their columns: trial0, trial1, … in the order of the table."""
    places = {}
    for number, trial in enumerate(results.trials):
        at = getattr(trial, x), getattr(trial, y)
        if is_known(at[0]) and is_known(at[1]) and trial.state != "failed":
            places[f"trial{number}"] = at
    return places


def _trial_points(axes: Axes, points: Sequence[tuple[str, float | None, float | None]]) -> None:
    for state, fill in (("finished", BLUE), ("stopped", "white")):
        xy = [(x, y) for its_state, x, y in points if its_state == state and is_known(x) and is_known(y)]
        if xy:
            axes.plot(
                *zip(*xy, strict=True), "o", color=BLUE, markerfacecolor=fill, markersize=5.5,
                alpha=0.75 if state == "finished" else 1, label=state, zorder=2, linestyle="none",
            )  # fmt: skip
    untouched = [(x, y) for state, x, y in points if state == "untouched" and is_known(x) and is_known(y)]
    for x, y in untouched or [(0.0, 0.0)]:
        axes.plot([x], [y], "P", color=INK, markersize=7, label="untouched", zorder=4, linestyle="none")


def _mark_chosen(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        [x], [y], "D", color=ORANGE, markersize=8.5, markeredgecolor="white",
        label="chosen", zorder=5, linestyle="none",
    )  # fmt: skip


WHITE_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1}


@apply_style()
def trade_figure(results: Evidence) -> Figure:
    """General against domain change of every trial, and the front of a search for all trade-offs."""
    figure, axes = _axes(*HALF)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    front = [
        (value_or_zero(trial.general_delta), value_or_zero(trial.domain_delta)) for trial in results.front
    ]
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=BLUE, linewidth=1, linestyle="--", label="front", zorder=1)
    _trial_points(axes, [(trial.state, trial.general_delta, trial.domain_delta) for trial in results.trials])
    k = results.best.k
    won = [(t.general_delta, t.domain_delta) for t in results.trials if t.trial == results.best.trial]
    for x, y in won or [(0.0, 0.0)] * (k == 0):
        at = (value_or_zero(x), value_or_zero(y))
        _mark_chosen(axes, *at)
        axes.annotate(f"k = {k}", at, (8, 6), textcoords="offset points", color=DARK_ORANGE, bbox=WHITE_BOX)
    _targets(axes, trial_places(results, "general_delta", "domain_delta"))
    axes.set_xlabel("general Δ (right is better)")
    axes.set_ylabel("domain Δ (up is better)")
    axes.grid(True, axis="x")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_plain)
    axes.margins(0.12)
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


@apply_style()
def curve_figure(results: Evidence, what: Literal["score", "loss"]) -> Figure:
    """What every trial reported against the tokens it had trained on; the chosen trial stands out.

    Of a grown model each depth has the piece of line from the end of the one before to its own.
    """
    figure, axes = _axes(*HALF)
    states = {trial.trial: trial.state for trial in results.trials}
    ends = {}
    for name, points in _curves(results, what).items():
        tokens, values = zip(*points, strict=True)
        won = name == results.best.trial or name not in states
        label = "chosen" if name == results.best.trial else states.get(name, name)
        (line,) = axes.plot(tokens, values, color=BLUE, linewidth=1, marker="o", markersize=3, label=label)
        if results.grown:
            line.set_markevery([len(points) - 1])  # its start is the end of another depth, marked as that
        if won:
            line.set(color=ORANGE, linewidth=2, zorder=3)
        elif label != "finished":
            line.set(linestyle=":")
        if name in states:
            ends[f"trial{list(states).index(name)}"] = (tokens[-1], values[-1])
    _targets(axes, ends)
    axes.set_xlabel("tokens trained on, thousands")
    axes.set_ylabel("validation score" if what == "score" else "training loss (nats per token)")
    axes.yaxis.set_major_formatter(_plain)
    lines = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(lines.values(), lines.keys(), loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


def _curves(results: Evidence, what: str) -> dict[str, list[tuple[float, float]]]:
    """Trial → thousands of tokens and what was reported there.

    Every score begins at 0, the backbone's; where one model is grown, a depth begins where the last ended.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    start = [(0.0, 0.0)] if what == "score" else []
    for reading in sorted(results.curves, key=lambda reading: reading.tokens):
        value = getattr(reading, what)
        if is_known(value):
            points = curves.setdefault(reading.trial, list(start))
            points.append((reading.tokens / 1000, value))
            if results.grown:
                start = points[-1:]
    return curves


# ---------------------------------------------------------------- comparisons

Point = tuple[float, float | None]  # a mean and half of its interval


@apply_style()
def ranked_figure(points: Sequence[tuple[str, float, float | None]], own: str) -> Figure:
    """Means with their intervals, one below the other in the order given, numbered; `own` stands out."""
    figure, axes = _axes(HALF[0], 0.9 + 0.28 * len(points))
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
    axes.xaxis.set_major_formatter(_plain)
    return figure


@apply_style()
def sides_figure(points: Sequence[tuple[str, Point, Point]], own: str) -> Figure:
    """General against domain change with intervals on both; numbers as in :func:`ranked_figure`."""
    figure, axes = _axes(HALF[0], max(3.5, 0.9 + 0.28 * len(points)))
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
        axis.set_major_formatter(_plain)
    axes.margins(0.15)
    return figure


# ---------------------------------------------------------------- activations


@apply_style()
def separation_figure(models: Mapping[str, Sequence[Mapping[str, Any]]], shown: Sequence[int]) -> Figure:
    """Overlap per layer of every model, and both densities at the `shown` layers of the backbone.

    `models`: name → rows with ``layer`` (of the backbone; that of its source for a copy), ``copy``,
    ``overlap``, and ``general`` and ``domain`` (a place for each block). Where there is a copy of a shown
    layer, it is the copy's densities that are drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * max(len(shown), 3), 2.6 + 1.25 * len(models)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.4, 1.25 * len(models)])
    above, below = parts
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
            _densities(panel, [row for row in rows if row["layer"] == layer][-1])
        line[0].set_ylabel(name, fontsize=8)
    for panel, layer in zip(panels[0], shown, strict=True):
        panel.set_title(f"layer {layer}", fontsize=9)
    below.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def _densities(axes: Axes, row: Mapping[str, Any]) -> None:
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


# ---------------------------------------------------------------- unit rates


@dataclass(frozen=True)
class Line:
    """How one kind of unit is drawn in every panel."""

    label: str
    color: str
    dashes: Literal["-", "--", ":", "-."]


def split_unit(unit: str) -> tuple[int, str]:
    """Layer number and kind of a unit: model.layers.6.mlp.up_proj → 6, mlp.up_proj."""
    match = re.search(r"(?:^|\.)(\d+)\.(.+)$", unit)
    return (int(match[1]), match[2].removesuffix(".weight")) if match else (-1, unit)


def assign_lines(kinds: Sequence[str]) -> dict[str, Line]:
    """A line per kind of unit: colours cycle, dashes tell attention, mlp and norms apart."""
    stems = [kind.rpartition(".")[0] for kind in kinds]
    leaves = [kind.rpartition(".")[2] for kind in kinds]
    groups = list(dict.fromkeys(stems))
    lines = {}
    for i, (kind, stem, leaf) in enumerate(zip(kinds, stems, leaves, strict=True)):
        label = leaf if leaves.count(leaf) == 1 else kind  # GPT-2 has two units named c_proj
        lines[kind] = Line(label, LINES[i % len(LINES)], DASHES[groups.index(stem) % len(DASHES)])
    return lines


@apply_style()
def rate_figure(rows: Mapping[str, list[Rate]], lines: Mapping[str, Line], last: int, top: float) -> Figure:
    figure, axes = _axes(2.1, 1.9)
    axes.axhline(1, color=GREY, linewidth=0.8)
    for kind, history in rows.items():
        line = lines[kind]
        axes.plot(
            [rate.step for rate in history], [rate.scale for rate in history],
            color=line.color, linestyle=line.dashes, linewidth=1.4, marker="o", markersize=2.5,
        )  # fmt: skip
    axes.set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))
    axes.set_ylim(-0.05, top)
    _whole_numbers(axes, 5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("scale")
    axes.yaxis.set_major_formatter(_plain)
    return figure
