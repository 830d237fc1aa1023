"""From the seconds of a step, a reading and a probe to the hours of a search and of a training after it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from adept_ray.method.dial import TRAINED
from adept_ray.method.scores import SIDES, Metrics
from adept_ray.training.dialling import LAST_PASSES, PASSES

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
    kept_step: float | None = None
    """Of a step that begins at a kept stream (see :mod:`adept_ray.method.prefix`); None: all layers run."""
    kept_validation: float | None = None
    """Of such a validation of one block a worker."""


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
    kept_text: float = 0.0
    """Share of the training text whose streams a later trial finds kept."""
    kept_validation: float = 0.0
    """Share of the validation blocks whose streams are kept, from the first pass on."""
    passes: int = 1
    """Passes of a reading on the way: the dials that it reads."""
    last_passes: int = 1
    """Those of the last reading."""
    test_passes: int = 2
    """Passes on the test: the backbone, the chosen model, and that as it was trained where it is turned."""


@dataclass(frozen=True)
class Forecast:
    """Expected seconds, of trials that are all trained to their ends."""

    stage1: float
    trial: float
    """The first one."""
    later: float
    """A trial that finds the streams of the first one."""
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
        kept_step=found.get("kept_step"),
        kept_validation=found["kept_validation"] / share if "kept_validation" in found else None,
    )


def count_passes(dial: float | str) -> dict[str, int]:
    """The passes of readings and of the test, as fields of :class:`Amounts`, where `dial` is asked for."""
    passes, last = (PASSES, LAST_PASSES) if dial == "auto" else (1, 1)
    return {"passes": passes, "last_passes": last, "test_passes": 2 + (dial not in ("off", TRAINED))}


def forecast_search(speed: Speed, amounts: Amounts) -> Forecast:
    """What a search takes at that speed, without torch.compile."""
    probed, validated = share_blocks(amounts.probe, amounts), share_blocks(amounts.validation, amounts)
    tested = share_blocks(amounts.test, amounts)
    reading = len(SIDES) * validated * speed.validation
    stage1 = probed * speed.probe + reading
    trial, later = forecast_training(speed, amounts), forecast_training(speed, amounts, follows=True)
    rounds = math.ceil(amounts.trials / amounts.crews)
    test = amounts.test_passes * len(SIDES) * tested * speed.validation
    return Forecast(stage1, trial, later, stage1 + trial + (rounds - 1) * later + test)


def forecast_training(speed: Speed, amounts: Amounts, follows: bool = False) -> float:
    """Seconds of one training to its end, with its readings.

    One that `follows` another on the same workers finds the streams that the other has kept. Alone it finds
    those of its own first pass.
    """
    measured = (amounts.steps - 1) // amounts.recompute_every
    blocks = len(SIDES) * share_blocks(amounts.validation, amounts)
    step = mix_speeds(speed.step, speed.kept_step, amounts.kept_text if follows else 0.0)
    again = blocks * mix_speeds(speed.validation, speed.kept_validation, amounts.kept_validation)
    first = again if follows else blocks * speed.validation
    passes = (amounts.reports - 1) * amounts.passes + amounts.last_passes
    readings = first + (passes - 1) * again
    return amounts.steps * step + measured * speed.remeasure + readings


def mix_speeds(plain: float, kept: float | None, share: float) -> float:
    """Seconds where so large a `share` is done as `kept` says, if it can be, and the rest as `plain` says."""
    return plain if kept is None else (1 - share) * plain + share * min(plain, kept)


def share_streams(text: int, held_out: int, limit: int, text_limit: float) -> tuple[float, float]:
    """The shares of streams of training text and of held-out text that are kept in `limit` bytes.

    Training text, of `text` bytes, takes `text_limit` of them at most. What it leaves is for `held_out`.
    """
    taken = min(text, int(text_limit * limit))
    return taken / text if text else 0.0, min(1.0, (limit - taken) / held_out) if held_out else 0.0


def compile_steps(speed: Speed) -> Speed | None:
    """The speed with compiled layers; None where there are none."""
    if speed.compiled is None:
        return None
    kept = speed.kept_step
    # That one wasn't compiled. It is as much shorter.
    return replace(
        speed,
        step=speed.compiled,
        kept_step=None if kept is None else kept * speed.compiled / speed.step,
    )


def share_blocks(blocks: int, amounts: Amounts) -> int:
    """Blocks of one worker."""
    return math.ceil(blocks / amounts.workers)
