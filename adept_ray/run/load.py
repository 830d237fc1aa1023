"""What a command's workers are to do, by which the room of a cluster is shared out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress

from adept_ray.config.errors import UserError
from adept_ray.config.machine import Machine
from adept_ray.config.specs import RunSpec, SearchRun, TrainingSpec
from adept_ray.engine.layout import Load
from adept_ray.method.memory_plan import MemoryPlan, choose_fit, plan_memory
from adept_ray.run.question import Question
from adept_ray.run.sources import Sources


def describe_search_load(run: SearchRun, sources: Sources, question: Question) -> Load:
    """The trials of a search: of the largest k, with the smallest steps."""
    trials = run.trials if run.strategy == "trials" else 1
    return describe_load(run, sources, question.deepest, trials=trials)


def describe_load(
    run: RunSpec,
    sources: Sources,
    training: TrainingSpec,
    layers: Sequence[int] | None = None,
    trials: int = 1,
) -> Load:
    """So many trials with that `training`; `layers` are taken for the lowest ones where they aren't known.

    What it takes of a memory is planned when somebody asks, and fits where it can't be said beforehand.
    """
    lowest = tuple(range(training.k) if layers is None else layers)

    @functools.cache
    def plan() -> MemoryPlan | None:
        with suppress(Exception):  # what is wrong with it is said where the plan is shown
            return plan_memory(sources.build_skeleton(), training, lowest, run.seq_len)
        return None

    def fits(machine: Machine, memory: int) -> bool:
        if (needs := plan()) is None:
            return True
        try:
            choose_fit(needs, machine, memory, "")
        except UserError:
            return False
        return True

    return Load(max(1, training.tokens_per_step // run.seq_len), trials, fits)


def describe_measuring(run: RunSpec, tokens: int) -> Load:
    """Measuring so many tokens of text, which the workers share."""
    return Load(max(1, tokens // run.seq_len))
