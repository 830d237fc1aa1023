"""The front between both sides: what no other trial beats on both, at whatever dial; no Ray, no file."""

from __future__ import annotations

import math
from collections.abc import Iterable

from adept_ray.config.specs import ScoreWeights
from adept_ray.method.scores import count_general, value_or_nan
from adept_ray.search.trials import Trial

Point = tuple[float, float]  # a general and a domain change


def find_front(trials: Iterable[Trial], weights: ScoreWeights) -> tuple[str, ...]:
    """The finished trials that at some dial no other one beats on one side without losing on the other."""
    points = {trial.name: list_points(trial) for trial in trials if trial.is_comparable}
    unbeaten = set(list_unbeaten((each for own in points.values() for each in own), weights))
    return tuple(name for name, own in points.items() if not unbeaten.isdisjoint(own))


def list_points(trial: Trial) -> list[Point]:
    """The changes that a trial is scored by, and those at each dial that was read."""
    own = value_or_nan(trial.general_delta), value_or_nan(trial.domain_delta)
    return [own, *(turn.deltas for turn in trial.turned.turns)]


def list_unbeaten(points: Iterable[Point], weights: ScoreWeights) -> list[Point]:
    """The points that no other one beats on one side without losing on the other, by general change.

    Those that aren't finite neither beat another one nor are given.
    """
    finite = {point for point in points if all(map(math.isfinite, point))}
    counted = {point: (count_general(point[0], weights), point[1]) for point in finite}

    def is_beaten(by: Point) -> bool:
        return any(other != by and other[0] >= by[0] and other[1] >= by[1] for other in set(counted.values()))

    return sorted(point for point, by in counted.items() if not is_beaten(by))
