"""What a command's workers are to do, by which the room of a cluster is shared out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress

from adept_ray.config.errors import UserError
from adept_ray.config.machine import Machine
from adept_ray.config.specs import RunSpec, TrainingSpec
from adept_ray.engine.layout import Load
from adept_ray.method.memory_plan import MemoryPlan, choose_fit, plan_memory
from adept_ray.run.sources import Sources


def describe_load(
    run: RunSpec,
    sources: Sources,
    trainings: Sequence[TrainingSpec],
    layers: Sequence[int] | None = None,
    trials: int = 1,
) -> Load:
    """Trainings with steps of one size, so many of which may run at the same time; each has to fit.

    `layers` are taken for the lowest ones where they aren't known. What a training takes of a memory is
    planned when somebody asks; one of which it can't be said beforehand fits.
    """

    @functools.cache
    def plan() -> list[MemoryPlan]:
        plans = []
        for training in trainings:
            lowest = tuple(range(training.k) if layers is None else layers)
            with suppress(Exception):  # what is wrong with it is said where the plan is shown
                plans.append(plan_memory(sources.build_skeleton(), training, lowest, run.seq_len))
        return plans

    def fits(machine: Machine, memory: int) -> bool:
        try:
            for needs in plan():
                choose_fit(needs, machine, memory, "")
        except UserError:
            return False
        return True

    return Load(max(1, trainings[0].tokens_per_step // run.seq_len), trials, fits)


def describe_measuring(run: RunSpec, tokens: int) -> Load:
    """Measuring so many tokens of text, which the workers share."""
    return Load(max(1, tokens // run.seq_len))
