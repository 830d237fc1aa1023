"""From the seconds of a step, a reading and a probe to the hours of a search and of a training after it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from adept_ray.method.scores import SIDES, Metrics

UNITS_PASSES = 3  # a gradient of all units takes about as long as so many passes without one


@dataclass(frozen=True)
class Speed:
    """What was measured on the workers; seconds unless said otherwise."""

    step: float
    """Of an optimizer step."""
    remeasure: float
    """Of measuring units again."""
    validation: float
    """Of validation of one block a worker."""
    probe: float
    """Of the whole of stage 1's layers, for one block a worker."""
    compiled: float | None = None
    """Of a step by torch.compile; None where that can't be or wasn't asked for."""
    compiling: float = 0.0
    """What torch.compile takes once."""


@dataclass(frozen=True)
class Amounts:
    """How much a search and a training after it compute."""

    steps: int
    """Optimizer steps of a trial that is trained to its end."""
    recompute_every: int
    """Steps between two measurements of units."""
    reports: int
    """Readings of a trial."""
    trials: int
    crews: int
    """Trials at once."""
    workers: int
    """Of each of them."""
    probe: int
    """Blocks of the probe."""
    validation: int
    """Blocks of the validation split of one side."""
    test: int
    """Blocks of the test split of one side."""


@dataclass(frozen=True)
class Forecast:
    """Expected seconds, of trials that are all trained to their ends."""

    stage1: float
    trial: float
    search: float
    """Stage 1, all trials, the test and the export."""


def read_speed(found: Metrics, layers: int, workers: int) -> Speed:
    """The speed that workers measured (see :func:`~adept_ray.training.speed.measure_speed`).

    `layers` are those of the backbone. A probe runs the model once whole and once without each layer.
    """
    per_block = (found["forward"] * (1 + UNITS_PASSES) + layers * found["bypass"]) / found["probed"]
    share = math.ceil(found["validated"] / workers)
    return Speed(
        step=found["step"],
        remeasure=found["remeasure"],
        validation=found["validation"] / share,
        probe=per_block,
        compiled=found.get("compiled"),
        compiling=found.get("compiling", 0.0),
    )


def forecast_search(speed: Speed, amounts: Amounts) -> Forecast:
    """What a search takes at that speed, without torch.compile."""
    probed, validated = share_blocks(amounts.probe, amounts), share_blocks(amounts.validation, amounts)
    tested = share_blocks(amounts.test, amounts)
    reading = len(SIDES) * validated * speed.validation
    stage1 = probed * speed.probe + reading
    trial = forecast_training(speed, amounts)
    rounds = math.ceil(amounts.trials / amounts.crews)
    test = 2 * len(SIDES) * tested * speed.validation  # the backbone's and the chosen one's
    return Forecast(stage1, trial, stage1 + rounds * trial + test)


def forecast_training(speed: Speed, amounts: Amounts) -> float:
    """Seconds of one training to its end, with its readings."""
    measured = (amounts.steps - 1) // amounts.recompute_every
    reading = len(SIDES) * share_blocks(amounts.validation, amounts) * speed.validation
    return amounts.steps * speed.step + measured * speed.remeasure + amounts.reports * reading


def compile_steps(speed: Speed) -> Speed | None:
    """The speed with compiled layers; None where there are none."""
    return None if speed.compiled is None else replace(speed, step=speed.compiled)


def share_blocks(blocks: int, amounts: Amounts) -> int:
    """Blocks of one worker."""
    return math.ceil(blocks / amounts.workers)
