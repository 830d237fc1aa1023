"""Which k a training of a given length should have, at which rate, and how sure that is; no Ray, no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adept_ray.search.answers import CONFIDENCE, SURE_ERRORS, Depth, End, Horizon
from adept_ray.search.score_model import ScoreModel

TAILS = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)  # between them lies that much
SURE = 0.84  # probability of being better than the backbone from which on layers are advised: one error
DOUBLINGS = 10  # of the longest reading, up to which lengths are spoken of


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What k is chosen for."""

    price: float = 0.0
    """Points of score that a layer must earn."""
    tolerance: float | None = None
    """Points that a smaller k may cost; None: as much as trainings differ by that have other seeds."""
    rates: tuple[float, float] | None = None
    """The lowest and the highest base rate that was searched; None: that was read."""
    depths: tuple[int, ...] = ()
    """Every k that a longer training may have, ascending, besides those that were read."""
    tokens: int | None = None
    """How long the training is that follows; None: as long as the longest reading."""
    branched: bool = False
    """Whether each reading of a trial is that of a whole training of its length; else the last one alone."""


@dataclass(frozen=True)
class Drawn:
    """What trainings of one length would score, as drawn from a model; arrays are [depths, draws]."""

    tokens: int
    beyond: float
    """How many times as long they are as the longest reading; at least 1."""
    depths: tuple[int, ...]
    scores: np.ndarray
    """Points of each k at its best rate."""
    rates: np.ndarray
    """That rate."""
    worth: np.ndarray
    """Points with the layers paid for."""
    noise: float
    """Points that trainings differ by that have other seeds."""

    @property
    def chances(self) -> np.ndarray:
        """Probability of each k to be the best one, [depths]."""
        counts = np.bincount(self.worth.argmax(axis=0), minlength=len(self.depths))
        return np.asarray(counts / self.worth.shape[1])


def draw_depths(model: ScoreModel, aim: Aim, depths: Sequence[int], tokens: int) -> Drawn:
    """What each of `depths` (ascending, from 1) would score in a training of so many tokens.

    Where that is longer than any that was read, its best rate may lie below all that were searched: rates
    fall as tokens grow.
    """
    beyond = max(1.0, tokens / model.longest)
    low, high = aim.rates or model.rates
    drawn = [model.draw_best(k, tokens, (low / beyond**0.5, high)) for k in depths]
    scores, rates = (np.stack(each) for each in zip(*drawn, strict=True))
    worth = scores - aim.price * np.array(depths)[:, None]
    return Drawn(tokens, beyond, tuple(depths), scores, rates, worth, float(model.noise.mean()))


def answer(drawn: Drawn, aim: Aim) -> Horizon:
    """Which k a training of that length should have."""
    tolerance = drawn.noise if aim.tolerance is None else aim.tolerance
    best = int(drawn.worth.mean(axis=1).argmax())
    # The best one is always good enough, so there is always an answer.
    cost = drawn.worth[best] - drawn.worth
    at = int(((cost <= tolerance).mean(axis=1) >= CONFIDENCE).argmax())
    low, high = find_interval(drawn.chances)
    rates, scores, k = drawn.rates[at], drawn.scores[at], drawn.depths[at]
    return Horizon(
        tokens=drawn.tokens,
        k=k,
        # That nobody knows what lies beyond the readings doesn't speak against a longer training.
        advised_k=k if (drawn.worth[at] > 0).mean() >= (SURE if drawn.beyond == 1 else 0.5) else 0,
        low_k=drawn.depths[low],
        high_k=drawn.depths[high],
        rate=float(np.median(rates)),
        low_rate=float(np.quantile(rates, TAILS[0])),
        high_rate=float(np.quantile(rates, TAILS[1])),
        score=float(scores.mean()),
        error=float(scores.std()),
        tolerance=tolerance,
        best_k=drawn.depths[best],
        end=name_end(at, best, len(drawn.depths), aim),
        beyond=drawn.beyond,
    )


def describe_depths(drawn: Drawn) -> tuple[Depth, ...]:
    """What each k promises."""
    gains = np.diff(drawn.scores, axis=0, prepend=0.0)
    layers, chances = np.diff(drawn.depths, prepend=0), drawn.chances
    return tuple(
        Depth(
            k=k,
            score=float(drawn.scores[at].mean()),
            standard_error=float(drawn.scores[at].std()),
            gain=float(gains[at].mean()),
            gain_error=float(gains[at].std()),
            differs=bool(abs(gains[at].mean()) > SURE_ERRORS * gains[at].std()),
            per_layer=float(gains[at].mean() / layers[at]),
            rate=float(np.median(drawn.rates[at])),
            chance=float(chances[at]),
        )
        for at, k in enumerate(drawn.depths)
    )


def find_interval(chances: np.ndarray) -> tuple[int, int]:
    """The first and the last place between the tails of a distribution over places, [places]."""
    low, high = np.searchsorted(np.cumsum(chances), TAILS)
    return int(low), int(min(high, len(chances) - 1))


def name_end(at: int, best: int, depths: int, aim: Aim) -> End:
    """What keeps the k chosen, number `at` of so many `depths`, from being larger."""
    if at < best:
        return "tolerance"
    if at == depths - 1:
        return "range"
    return "price" if aim.price else "best"


def list_horizons(model: ScoreModel, aim: Aim, depths: Sequence[int]) -> tuple[Horizon, ...]:
    """The answers for trainings of 2, 4, 8, … times the tokens of the longest reading."""
    lengths = [2**doubling * model.longest for doubling in range(1, DOUBLINGS + 1)]
    return tuple(answer(draw_depths(model, aim, depths, tokens), aim) for tokens in lengths)
