"""Readings of a tuned model on held-out text, each at the dial that scores best (see `method/dial.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from adept_ray.data.blocks import Blocks
from adept_ray.method.dial import (
    TRAINED,
    Turn,
    Turned,
    choose_dial,
    propose_dial,
    take_by_fold,
)
from adept_ray.method.scores import SIDES, Metrics, list_gains, tasks_key
from adept_ray.method.tuning import Tuning
from adept_ray.training.scoring import measure_held_out, score_model
from adept_ray.training.work import TrainWork, dial_key

PASSES, LAST_PASSES = 2, 4  # dials that are read at most on the way, and at the end of a training
Measured = Mapping[str, np.ndarray]  # as measure_held_out gives it


@dataclass(frozen=True)
class DialledReading:
    """What was measured of a tuned model."""

    dial: float
    measured: Measured
    """At that dial; cross-fitted where it was found on the same text."""
    plain: Measured | None
    """As it was trained, if that was measured."""
    turned: Turned = field(default_factory=Turned)
    """What each dial that was read gains; nothing where none was looked for."""


def take_dialled_reading(
    tuning: Tuning, work: TrainWork, blocks: Mapping[str, Blocks], ends: bool
) -> DialledReading:
    """Measure a model at the dial that its work asks for; a training that `ends` looks more closely."""

    def measure(dial: float, work: TrainWork = work, blocks: Mapping[str, Blocks] = blocks) -> Measured:
        with tuning.use_exported_weights(dial):
            return measure_held_out(tuning.model, work, blocks)

    dial = work.training.dial
    if dial != "auto" or not tuning.parameters:
        given = TRAINED if isinstance(dial, str) or not tuning.parameters else dial
        found = measure(given)
        return DialledReading(given, found, found if given == TRAINED else None)
    finder, text = choose_finder(work, blocks)
    read: dict[float, Measured] = {}
    turns: dict[float, Turn] = {}
    shares: dict[str, list[float]] = {}
    while len(read) < (LAST_PASSES if ends else PASSES):
        scores = {each: turn.weigh(work.weights) for each, turn in turns.items()}
        proposed = propose_dial(scores)
        if proposed is None:
            break
        read[proposed] = measure(proposed, finder, text)
        turns[proposed], shares = count_gains(proposed, finder, read[proposed])
    turned = Turned(tuple(turns[each] for each in sorted(turns)), shares)
    choice = choose_dial(turned, work.weights)
    if finder is work:
        names = read[TRAINED]
        fitted = {name: take_by_fold({d: read[d][name] for d in read}, choice.by_fold) for name in names}
        return DialledReading(choice.dial, fitted, read[TRAINED], turned)
    plain = measure(TRAINED)
    return DialledReading(
        choice.dial, plain if choice.dial == TRAINED else measure(choice.dial), plain, turned
    )


def choose_finder(work: TrainWork, blocks: Mapping[str, Blocks]) -> tuple[TrainWork, Mapping[str, Blocks]]:
    """The work and the blocks by which a dial is found: a text of its own, or the one that is judged by."""
    if work.dial_text is None:
        return work, blocks
    finder = replace(work, before=work.dial_text.before, items=work.dial_text.items)
    return finder, {side: blocks[dial_key(side)] for side in SIDES}


def count_gains(dial: float, work: TrainWork, measured: Measured) -> tuple[Turn, dict[str, list[float]]]:
    """What was gained at a dial, and the shares of the documents or items in what counts."""
    gains, shares = {}, {}
    for side in SIDES:
        answers = work.by_tasks and tasks_key(side) in measured
        name = tasks_key(side) if answers else side
        found = list_gains(np.array(work.before[name]), np.array(measured[name]), answers)
        gains[side], shares[side] = (each.tolist() for each in found)
    return Turn(dial, gains), shares


def score_reading(
    reading: DialledReading, work: TrainWork, blocks: Mapping[str, Blocks], ends: bool = False
) -> Metrics:
    """The metrics of a reading, as :func:`~adept_ray.training.scoring.score_model` has them, and of its dial.

    ``dial``; ``plain_score``, ``plain_general_delta`` and ``plain_domain_delta``, of the model as it was
    trained, None where that wasn't measured; and where the training `ends` ``turned``, what a later choice
    by other weights goes by.
    """
    judged = work.by_tasks, work.weights
    metrics = score_model(work.before, reading.measured, blocks, *judged)
    plain = {} if reading.plain is None else score_model(work.before, reading.plain, blocks, *judged)
    for name in ("score", "general_delta", "domain_delta"):
        metrics[f"plain_{name}"] = plain.get(name)
    turned = reading.turned.to_json() if ends and reading.turned.turns else None
    return {**metrics, "dial": reading.dial, "turned": turned}
