"""The dial: how far a tuned model is turned from its backbone (0) to what training made of it (1); no torch.

A copy adds to the residual stream in proportion to its output projections, so turning these down leads back
to the backbone; of LoRA the same holds for its second matrix. A model all of whose parameters were trained
is turned by interpolation (WiSE-FT, arXiv 2109.01903). Nothing is trained for it, and nothing runs slower:
the dial is folded into the weights. It is found on held-out text by a few forward passes.

The best of several readings looks better than it is. So the score of a dialled model is cross-fitted: each
fold of the documents is read at the dial that the other folds choose. What is left of that optimism, about a
quarter, comes from the places of the dials, which all documents had a part in: to propose them by fold, too,
would take as many passes more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adept_ray.config.specs import ScoreWeights
from adept_ray.method.scores import SIDES, Pulls, count_pulls, value_or_nan, weigh_changes

TRAINED = 1.0  # the dial of a model as it was trained
FIRST = (TRAINED, 0.5)  # dials that are read before their scores say where to look
LEAST = 0.06  # lower ones are the backbone for all that can be measured
NEAR = 0.04  # two dials that close to each other read alike
FOLDS = 5


@dataclass(frozen=True)
class Turn:
    """What a model gains at one dial."""

    dial: float
    gains: Mapping[str, Sequence[float]]
    """Side → what each document or item contributes to its change, [N]; these sum to the change."""

    @property
    def deltas(self) -> tuple[float, float]:
        """The change of the general and of the domain side."""
        general, domain = (float(np.sum(self.gains[side])) for side in SIDES)
        return general, domain

    def weigh(self, weights: ScoreWeights) -> float:
        """The score that these weights give."""
        general, domain = self.deltas
        return weigh_changes(general, domain, weights)


@dataclass(frozen=True)
class Turned:
    """What a model gains at each dial at which it was read."""

    turns: tuple[Turn, ...] = ()
    shares: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Side → each document's or item's share of what the change is relative to, [N]; these sum to 1."""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        turns = [{"dial": turn.dial, "gains": dict(turn.gains)} for turn in self.turns]
        return {"turns": turns, "shares": dict(self.shares)}  # nan becomes null where it is written

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Turned:
        """What :meth:`to_json` gave; nothing for None."""
        if not values:
            return cls()
        turns = (
            Turn(each["dial"], {side: [*map(value_or_nan, gains)] for side, gains in each["gains"].items()})
            for each in values["turns"]
        )
        return cls(tuple(turns), values["shares"])


@dataclass(frozen=True)
class DialChoice:
    """The dial that reads best."""

    dial: float
    by_fold: tuple[float, ...]
    """The one that reads best on the text outside of each fold."""


def propose_dial(scores: Mapping[float, float]) -> float | None:
    """The dial to read next, from dial → score of those that were read; None where none is worth a pass.

    After FIRST the top of the parabola through the best one, of score 0 the backbone's own, and its
    neighbours (successive parabolic interpolation; Brent 1973, chapter 5).
    """
    for dial in FIRST:
        if dial not in scores:
            return dial
    known = {0.0: 0.0, **{dial: score for dial, score in scores.items() if math.isfinite(score)}}
    read = [dial for dial in sorted(known) if dial]
    if not read:  # nothing could be measured so far from the backbone
        return round(max(LEAST, min(scores) / 4), 3) if min(scores) > LEAST else None
    best = max(read, key=lambda dial: known[dial])
    dials = sorted(known)
    if len(dials) == 2:  # the backbone's and one more
        proposed = best / 2
    else:
        at = min(dials.index(best), len(dials) - 2)
        proposed = find_top([(dial, known[dial]) for dial in dials[at - 1 : at + 2]])
    proposed = round(min(TRAINED, max(LEAST, proposed)), 3)
    return None if any(abs(proposed - dial) < NEAR for dial in scores) else proposed


def find_top(points: Sequence[tuple[float, float]]) -> float:
    """Where the parabola through three points is highest; the highest point's place if it opens upwards."""
    (a, low), (b, middle), (c, high) = points
    left, right = (middle - low) / (b - a), (high - middle) / (c - b)
    if right >= left:
        return max(points, key=lambda point: point[1])[0]
    return (a + b) / 2 + left * (c - a) / (2 * (left - right))


def choose_dial(turned: Turned, weights: ScoreWeights) -> DialChoice:
    """The dial of the best score on all that was read, and on what is outside of each fold."""
    whole = {turn.dial: turn.weigh(weights) for turn in turned.turns}
    # Where a document has no finite loss, no fold may choose a dial for it.
    read = [turn for turn in turned.turns if math.isfinite(whole[turn.dial])] or turned.turns
    by_fold = []
    for fold in range(FOLDS):
        others = {side: outside_fold(len(turned.shares[side]), fold) for side in SIDES}
        scores = {turn.dial: score_part(turn, turned.shares, others, weights) for turn in read}
        by_fold.append(find_best_dial(scores))
    return DialChoice(find_best_dial(whole), tuple(by_fold))


def find_best_dial(scores: Mapping[float, float]) -> float:
    """The dial of the best score; of equal ones the one nearest to what was trained."""
    return max(scores, key=lambda dial: (scores[dial] if math.isfinite(scores[dial]) else -math.inf, dial))


def outside_fold(count: int, fold: int) -> np.ndarray:
    """Which of so many documents or items aren't in a fold, bool [N]; all where nothing would be left."""
    outside = np.arange(count) % FOLDS != fold
    return outside if outside.any() else np.ones(count, dtype=bool)


def score_part(
    turn: Turn,
    shares: Mapping[str, Sequence[float]],
    part: Mapping[str, np.ndarray],
    weights: ScoreWeights,
) -> float:
    """The score at one dial on a part of the documents or items: side → whether each is in it."""
    general, domain = (
        float(np.asarray(turn.gains[side])[part[side]].sum() / np.asarray(shares[side])[part[side]].sum())
        for side in SIDES
    )
    return weigh_changes(general, domain, weights)


def take_by_fold(
    values: Mapping[float, Sequence[float] | np.ndarray], by_fold: Sequence[float]
) -> np.ndarray:
    """Of values at each dial, [N] each, those at the dial of each document's or item's fold, [N]."""
    count = len(next(iter(values.values())))
    return np.array([values[by_fold[number % FOLDS]][number] for number in range(count)])


def cross_fit(turned: Turned, by_fold: Sequence[float]) -> tuple[tuple[float, float], Pulls]:
    """The changes of both sides with each fold read at its own dial, and the pulls of these changes."""
    deltas, pulls = [], {}
    for side in SIDES:
        gains = take_by_fold({turn.dial: turn.gains[side] for turn in turned.turns}, by_fold)
        deltas.append(float(gains.sum()))
        pulls[side] = count_pulls(gains, np.asarray(turned.shares[side])).tolist()
    return (deltas[0], deltas[1]), pulls
