"""The figures of unit rates: a panel for each added layer, a line for each kind of unit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adept_ray.report.drawing import (
    DASHES,
    GREY,
    LINES,
    apply_style,
    format_tick,
    make_axes,
    use_whole_numbers,
)
from adept_ray.report.records import Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
def draw_rates(rows: Mapping[str, list[Rate]], lines: Mapping[str, Line], last: int, top: float) -> Figure:
    """The scale of each unit of one layer, by its kind, up to step `last` and scale `top`."""
    figure, axes = make_axes(2.1, 1.9)
    axes.axhline(1, color=GREY, linewidth=0.8)
    for kind, history in rows.items():
        line = lines[kind]
        axes.plot(
            [rate.step for rate in history], [rate.scale for rate in history],
            color=line.color, linestyle=line.dashes, linewidth=1.4, marker="o", markersize=2.5,
        )  # fmt: skip
    axes.set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))
    axes.set_ylim(-0.05, top)
    use_whole_numbers(axes, 5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("scale")
    axes.yaxis.set_major_formatter(format_tick)
    return figure
