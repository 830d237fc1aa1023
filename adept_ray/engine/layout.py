"""How a cluster's room is shared out: the workers of a trial, and the trials at once.

Nothing here asks anybody: these are functions of facts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from adept_ray.config.machine import Machine
from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.config.validation import apply_changes

CPUS_PER_WORKER = 1
SPARE_CPUS = 2  # Ray Data and Tune each need a whole logical CPU next to the workers
# Times that a step takes over nodes: an estimate that nobody measured. Four copies of Qwen3-8B's layers
# have 3.1 GB of gradients (0.77 G in float32). In a ring of 8 ranks a node sends 2 · 7/8 of that, 5.4 GB,
# which takes 0.22 s at 200 Gbit/s. A step of 16,384 tokens at 12,000 a second and GPU takes 0.17 s on 8. If
# little of that overlaps, a step takes 2.3 times as long; at 100 Gbit/s it would be 3.5, at 400 some 1.6.
SPANNING = 2


@dataclass(frozen=True)
class Layout:
    """Groups of workers on a cluster."""

    workers: int
    """Of a trial."""
    crews: int
    """Trials at once."""


def fits_always(machine: Machine, memory: int) -> bool:
    """Whether a training fits of which nothing is known."""
    return True


@dataclass(frozen=True)
class Load:
    """What the workers are to do."""

    blocks: int
    """Of an optimizer step, or of what is measured: more workers have nothing to do."""
    trials: int = 1
    """Trainings that may run at the same time."""
    fits: Callable[[Machine, int], bool] = fits_always
    """Whether each of them fits into a machine's workers of so many bytes."""
    at_once: int | None = None
    """Trainings at a time for whose checkpoints there is room; None: any number."""

    @property
    def most_at_once(self) -> int:
        """Trainings at a time that there are, and that disks hold."""
        return self.trials if self.at_once is None else min(self.trials, self.at_once)


def asks_for_layout(run: RunSpec) -> bool:
    """Whether ``--workers`` or ``--concurrent`` is auto."""
    return run.machine.workers == "auto" or (isinstance(run, SearchRun) and run.concurrent == "auto")


def count_room(nodes: Iterable[Mapping[str, float]], gpus_per_worker: float) -> list[int]:
    """Workers that each of the `nodes` (its resources by Ray's names) has room for.

    What Ray needs beside them is taken from where there is room for the fewest, so that the others stay
    whole.
    """
    nodes = list(nodes)
    cpus = [int(node.get("CPU", 0)) // CPUS_PER_WORKER for node in nodes]
    room = list(cpus)
    if gpus_per_worker:
        gpus = [int(node.get("GPU", 0) / gpus_per_worker) for node in nodes]
        room = [min(pair) for pair in zip(cpus, gpus, strict=True)]
    over = max(0, sum(room) - max(0, sum(cpus) - SPARE_CPUS))
    for number in sorted(range(len(room)), key=lambda number: room[number]):
        taken = min(room[number], over)
        room[number] -= taken
        over -= taken
    return room


def choose_layout(
    run: RunSpec, room: Sequence[int], load: Load, measure_memory: Callable[[Layout], int]
) -> Layout:
    """The layout in which the trials of `run` are over first, as far as its flags leave that open.

    `room` are the workers that each node has room for, `measure_memory` says how many bytes a worker of a
    layout may use. Of layouts that take as long the one with the fewest trials at once is taken: the search
    knows more before each of them. Where nothing fits, memory isn't looked at: the plan will say what would.
    """
    layouts = list_layouts(run, room, load)
    fitting = [
        each
        for each in layouts
        if load.fits(apply_changes(run.machine, {"workers": each.workers}), measure_memory(each))
    ]

    def rank_layout(layout: Layout) -> tuple[int, int, int]:
        return count_passes(layout, room, load), layout.crews, layout.workers

    return min(fitting or layouts, key=rank_layout)


def list_layouts(run: RunSpec, room: Sequence[int], load: Load) -> list[Layout]:
    """The layouts that the flags of `run` allow and that there is room for; at least one."""
    machine, layouts = run.machine, []
    least = machine.most_workers
    free = isinstance(run, SearchRun) and run.concurrent == "auto"
    if machine.workers != "auto":
        # Workers without a block of their own are better used by another trial.
        useful = min(machine.workers, max(load.blocks, machine.min_workers))
        widths: Iterable[int] = {useful, machine.workers} if free else {machine.workers}
    elif machine.gpus_per_worker % 1:  # NCCL takes one rank a card
        widths = {1}
    else:
        widths = range(least, max(least, sum(room)) + 1)
    for width in widths:
        most = sum(room) // width
        if machine.workers == "auto":
            most = sum(each // width for each in room) or most
        if free:
            layouts += [Layout(width, crews) for crews in range(1, max(1, min(most, load.most_at_once)) + 1)]
        elif most >= run.crews or width == least:
            layouts.append(Layout(width, run.crews))
    return layouts


def count_passes(layout: Layout, room: Sequence[int], load: Load) -> int:
    """How long all trials take, in passes of one block through one worker a step."""
    spans = layout.workers > max(room, default=0)
    rounds = math.ceil(load.trials / layout.crews)
    return rounds * math.ceil(load.blocks / layout.workers) * (SPANNING if spans else 1)


def explain_idle_workers(
    run: RunSpec, room: Sequence[int], load: Load, measure_memory: Callable[[Layout], int]
) -> str:
    """A sentence on the workers of `run` that have nothing to do, and what would use them; empty for none."""
    workers = run.machine.most_workers
    if (idle := workers - load.blocks) <= 0:
        return ""
    blocks = "one block" if load.blocks == 1 else f"{load.blocks} blocks"
    sentence = f"a step has {blocks}, so {idle} of {workers} workers have nothing to train on: "
    narrow: dict[str, object] = {"workers": max(load.blocks, run.machine.min_workers)}
    narrow |= {"concurrent": "auto"} if load.trials > 1 else {}
    best = choose_layout(apply_changes(run, narrow), room, load, measure_memory)
    machine = apply_changes(run.machine, {"workers": best.workers})
    if best.workers >= workers or not load.fits(machine, measure_memory(best)):
        return f"{sentence}raise tokens_per_step"
    flags = f"--workers {best.workers}"
    if best.crews > run.crews:
        flags += f" --concurrent {best.crews} (or --workers auto --concurrent auto), which uses them"
    else:
        flags += ", which is as fast"
    return f"{sentence}give {flags}, or raise tokens_per_step"
