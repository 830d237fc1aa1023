"""Changes against the untouched backbone, and the score that they add up to; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeGuard

import numpy as np

from adept_ray.config.specs import ScoreWeights

SIDES = ("general", "domain")
Metrics = dict[str, Any]
"""Name → number, text, list or table: what a report says, as JSON holds it."""
Pulls = Mapping[str, Sequence[float]]  # side → how far each document or item pulls its change


def tasks_key(side: str) -> str:
    """Name of the answers to a side's tasks; its losses go by the name of the side itself."""
    return f"{side} tasks"


@dataclass(frozen=True)
class Change:
    """A held-out split before and after training."""

    before: float
    """Bits per byte, or accuracy, of the untouched backbone."""
    after: float
    """The same of the trained model."""
    delta: float
    """Relative reduction of bits per byte, percent, or gain in accuracy, points; positive is better."""
    standard_error: float
    """Of `delta`, over documents or items, paired: how much another sample would move it."""
    measure: Literal["bpb", "accuracy"] = "bpb"
    pulls: tuple[float, ...] = ()
    """How far each document or item pulls `delta` from what the others say, in its unit; they sum to 0."""


class Measurement(Protocol):
    """What :func:`difference_error` asks of a trial, or of one report of it."""

    @property
    def score_se(self) -> float | None: ...
    @property
    def general_delta(self) -> float | None: ...
    @property
    def pulls(self) -> Pulls | None: ...


def bits_per_byte(nats: np.ndarray, size: np.ndarray) -> float:
    """Bits per UTF-8 byte of text from summed losses [D] and bytes [D]."""
    return float(nats.sum() / math.log(2) / size.sum())


def compare_losses(before: np.ndarray, after: np.ndarray, size: np.ndarray) -> Change:
    """Compare the losses of the same documents before and after training; all arrays are [D].

    The standard error is that of the ratio of two sums over paired documents (Cochran 1977, 6.4); nan
    with a single one. Documents are drawn at random: the tokens of one aren't independent of each other.
    """
    levels = bits_per_byte(before, size), bits_per_byte(after, size)
    return add_up_gains("bpb", levels, *list_gains(before, after, answers=False))


def compare_answers(before: np.ndarray, after: np.ndarray) -> Change:
    """Compare the answers to the same items, 1 for a right one, before and after training; arrays are [N].

    The standard error is that of a mean of paired differences; nan with a single item.
    """
    levels = float(before.mean()), float(after.mean())
    return add_up_gains("accuracy", levels, *list_gains(before, after, answers=True))


def list_gains(before: np.ndarray, after: np.ndarray, answers: bool) -> tuple[np.ndarray, np.ndarray]:
    """What documents or items contribute to a change, and their shares of what it is relative to; [N] each.

    `answers` says whether these are answers to items, as in :func:`compare_answers`, or losses of documents.
    """
    if answers:
        return 100 * (after - before) / len(before), np.full(len(before), 1 / len(before))
    return 100 * (before - after) / float(before.sum()), before / float(before.sum())


def add_up_gains(
    measure: Literal["bpb", "accuracy"], levels: tuple[float, float], gains: np.ndarray, shares: np.ndarray
) -> Change:
    """The change that documents or items contribute to (see :func:`list_gains`), between two `levels`."""
    delta, pulls = float(gains.sum()), count_pulls(gains, shares)
    return Change(*levels, delta, standard_error(pulls), measure, tuple(pulls.tolist()))


def count_pulls(gains: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """How far each contribution pulls a change from what the others say, [N]; see :attr:`Change.pulls`."""
    return gains - gains.sum() * shares


def standard_error(pulls: Sequence[float] | np.ndarray) -> float:
    """Standard error of a change from the pulls of its documents or items, [N]; nan with a single one.

    For the difference of two changes on the same documents, give the differences of their pulls.
    """
    count = len(pulls)
    square = float((np.asarray(pulls) ** 2).sum())
    return math.sqrt(square * count / (count - 1)) if count > 1 else math.nan


def combine_changes(general: Change, domain: Change, weights: ScoreWeights) -> tuple[float, float]:
    """Score w_g·Δ_general + w_d·Δ_domain (0 for the untouched backbone) and its standard error.

    Where a general gain doesn't count, its error doesn't either once the gain is larger than that: a smaller
    gain may be a loss.
    """
    score = weigh_changes(general.delta, domain.delta, weights)
    counts = not weights.retain or not general.delta > general.standard_error
    error = math.hypot(
        weights.general * general.standard_error if counts else 0.0, weights.domain * domain.standard_error
    )
    return score, error


def weigh_changes(general: float, domain: float, weights: ScoreWeights) -> float:
    """The score of a general and a domain change."""
    return weights.general * count_general(general, weights) + weights.domain * domain


def count_general(delta: float, weights: ScoreWeights) -> float:
    """The part of a general change that counts."""
    return min(delta, 0.0) if weights.retain else delta


def difference_error(one: Measurement, other: Measurement, weights: ScoreWeights) -> float:
    """Standard error of the difference of two scores on the same text, paired document by document.

    Without pulls, in a table that was read from a file, the errors of both scores add up as if they were
    independent. That is more.
    """
    if not one.pulls or not other.pulls:
        return math.hypot(value_or_nan(one.score_se), value_or_nan(other.score_se))
    pairs = zip(weigh_pulls(one, one.pulls, weights), weigh_pulls(other, other.pulls, weights), strict=True)
    return math.hypot(*(standard_error(mine - others) for mine, others in pairs))


def weigh_pulls(measured: Measurement, pulls: Pulls, weights: ScoreWeights) -> list[np.ndarray]:
    """How far each document or item of each side pulls the score."""
    general, domain = (np.asarray(pulls[side]) for side in SIDES)
    counts = not weights.retain or not value_or_nan(measured.general_delta) > standard_error(general)
    return [weights.general * counts * general, weights.domain * domain]


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether a number was measured and is finite."""
    return value is not None and math.isfinite(value)


def value_or_zero(value: float | None) -> float:
    """A number, or 0 where none was measured or it isn't finite."""
    return value if is_finite(value) else 0.0


def value_or_nan(value: float | None) -> float:
    """A number, or nan where none was measured."""
    return math.nan if value is None else value
