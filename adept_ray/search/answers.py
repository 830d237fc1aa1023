"""What a search answers: the chosen trial, what is known of each k, the k for trainings of other lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adept_ray.search.edges import Edge

CONFIDENCE = 0.8
"""Of what is said with an interval, and of a smaller k being good enough."""
SURE_ERRORS = 1.96
"""Standard errors beyond which two scores differ, at 95 %."""
FAR = 16
"""Lengths beyond so many times the longest reading are spoken of with a warning."""
RELIABLE_TRIALS = 20
"""From so many on the importance of hyperparameters means something."""
End = Literal["tolerance", "price", "best", "range"]


@dataclass(frozen=True, kw_only=True)
class Depth:
    """What the search expects of one k, at its best rate; in an older folder, what its best trial scored."""

    k: int
    trials: int | None = None
    """Trials of that k, whatever became of them."""
    trial: str | None = None
    """The best finished one."""
    score: float | None = None
    """Points."""
    standard_error: float | None = None
    """Of `score`: other documents, other seeds, what the best rate is, what lies beyond the readings."""
    gain: float | None = None
    """`score` minus that of the next smaller k; None for the untouched backbone."""
    gain_error: float | None = None
    """Standard error of `gain`, of the same parts; what all ks share isn't in it."""
    differs: bool | None = None
    """Whether `gain` stands out of its error, at 95 %; None where that isn't known."""
    per_layer: float | None = None
    """`gain` divided by the layers that earned it."""
    rate: float | None = None
    """The best base rate."""
    chance: float | None = None
    """Probability of being the best k of those that were tried."""


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """The answer for a training of so many tokens."""

    tokens: int
    k: int
    """The smallest k that costs no more than the tolerance against the best, as sure as CONFIDENCE."""
    advised_k: int
    """`k`, or 0 where that isn't surely better than the untouched backbone."""
    low_k: int
    high_k: int
    """The best k lies from `low_k` to `high_k` with a probability of at least CONFIDENCE."""
    rate: float
    low_rate: float
    high_rate: float
    """The best base rate of `k`, and between what it lies with that probability."""
    score: float
    error: float
    """What `k` is expected to score, as in :class:`Depth`."""
    tolerance: float
    """Points that a smaller k may cost."""
    best_k: int
    """The k that is expected to score best, its layers paid for."""
    end: End
    """What keeps k from being larger: the tolerance, the price of layers, more scoring less, or the range."""
    beyond: float
    """How many times as long it is as the longest reading; at least 1."""

    def describe_settings(self) -> str:
        """k and the rate, each with the interval in which the best one lies."""
        return (
            f"k = {self.k} ({CONFIDENCE:.0%}: {self.low_k} to {self.high_k}), "
            f"rate {self.rate:.1e} ({self.low_rate:.1e} … {self.high_rate:.1e})"
        )

    def describe(self) -> str:
        """The answer in a line."""
        length = f"for {format_tokens(self.tokens)} tokens"
        if not self.advised_k:
            return f"{length}: k = 0, since nothing is surely better than the untouched backbone"
        text = f"{length}: {self.describe_settings()}; expected score {self.score:.1f} ± {self.error:.1f}"
        if self.beyond > 1:
            text += f"; {format_times(self.beyond)} times as long as the longest reading"
        return text


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen trial, why, and how sure that is. It goes into best.yaml as it is.

    Only a folder of an older version lacks anything without which there would be no choice.
    """

    k: int
    advised_k: int | None = None
    """`k`, or 0 where nothing that was tried is surely better than the backbone."""
    trial: str | None = None
    """The best finished one of that k."""
    score: float | None = None
    """What that trial scored."""
    reason: str
    """Two sentences: why this k, and what one layer more or fewer would change."""
    depths: tuple[Depth, ...] = ()
    """Every k with a finished trial, ascending, for a training as long as a trial; the first one is the
    untouched backbone."""
    asked: Horizon | None = None
    """The answer for the training that follows; of a search that wasn't told, for one as long as a trial."""
    horizons: tuple[Horizon, ...] = ()
    """The answers for trainings of 1, 2, 4, … times the tokens of the longest reading."""
    unfinished: Mapping[int, int] = field(default_factory=dict)
    """k → number of trials, where none of them was trained to its end."""
    edges: tuple[Edge, ...] = ()
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    """Searched parameter → its share in what good trials have in common."""
    hyperparameters_reliable: bool = False
    front: tuple[str, ...] = ()
    """The trials that at some dial no other one beats on both sides, if all trade-offs were searched for."""
    min_gain_per_layer: float | None = None


def find_horizon(horizons: tuple[Horizon, ...], tokens: int) -> Horizon:
    """The answer for the length that is nearest to so many tokens, in doublings."""
    return min(horizons, key=lambda each: abs(math.log2(tokens / each.tokens)))


def format_tokens(tokens: float) -> str:
    """A number of tokens in three digits: 6.14 k, 50 M, 1.2 B."""
    for unit, size in ((" B", 1e9), (" M", 1e6), (" k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.3g}"


def format_times(times: float) -> str:
    """How many times as long something is: 1.5, 8, 24,414."""
    return f"{times:,.0f}" if times >= 10 else f"{times:.2g}"
