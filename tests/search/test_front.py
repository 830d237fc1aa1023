"""The front between both sides, through the dials; what may still be picked keeps its weights."""

from dataclasses import replace

import numpy as np
import pytest

from adept_ray.config.specs import ScoreWeights
from adept_ray.method.dial import Turn, Turned
from adept_ray.method.scores import SIDES
from adept_ray.search.choice import find_best_of_each_k, find_candidates
from adept_ray.search.front import find_front, list_unbeaten
from adept_ray.search.rescoring import rescore
from adept_ray.search.trials import Trial

EVEN = ScoreWeights()
SHARES = {side: [0.1, 0.2, 0.3, 0.1, 0.1, 0.2] for side in SIDES}


def make_turned(name, k, by_dial, weights=EVEN):
    """A finished trial with its changes by dial, in which all documents agree; it takes the best dial."""
    turns = [
        Turn(
            dial,
            {
                side: [delta * share for share in SHARES[side]]
                for side, delta in zip(SIDES, deltas, strict=True)
            },
        )
        for dial, deltas in by_dial.items()
    ]
    trial = Trial(name, k, score=0.0, score_se=0.1, state="finished", turned=Turned(tuple(turns), SHARES))
    (again,) = rescore([trial], weights)
    return again


def test_a_trial_is_on_the_front_by_a_lower_dial():
    """Trained it loses on both sides, and at its own best dial, too; at another it beats the rest."""
    tame = make_turned("tame", 2, {0.5: (2.0, 6.0), 1.0: (1.0, 12.0)})
    wild = make_turned("wild", 2, {0.25: (4.0, 5.0), 0.5: (0.5, 9.5), 1.0: (-9.0, 11.0)})
    assert (wild.dial, wild.general_delta) == (0.5, 0.5)
    assert find_front([tame, wild], EVEN) == ("tame", "wild")
    assert find_front([tame, replace(wild, turned=Turned())], EVEN) == ("tame",)
    assert find_front([tame, replace(wild, state="stopped")], EVEN) == ("tame",)


def test_levels_are_those_of_the_dial():
    """Bits per byte follow the change; where tasks were answered too, only the change is known."""
    wild = make_turned("wild", 2, {0.5: (1.0, 9.5), 1.0: (-9.0, 11.0)})
    wild = replace(wild, general_bpb=0.99, domain_bpb=1.81)
    (again,) = rescore([wild], ScoreWeights(general=0, domain=1))
    assert (again.dial, again.general_bpb, again.domain_bpb) == (
        1.0,
        pytest.approx(1.09),
        pytest.approx(1.78),
    )
    (again,) = rescore([replace(wild, domain_accuracy=0.5)], EVEN)
    assert (again.general_bpb, again.domain_bpb, again.domain_accuracy) == (None, None, None)


def test_what_is_not_finite_is_no_point():
    """It beats nothing, and isn't on the front."""
    points = [(1.0, 2.0), (float("nan"), 9.0), (2.0, 1.0), (float("inf"), 9.0), (1.0, 1.0)]
    assert list_unbeaten(points, EVEN) == [(1.0, 2.0), (2.0, 1.0)]
    assert list_unbeaten([(3.0, 1.0), (0.0, 2.0)], ScoreWeights(retain=True)) == [(0.0, 2.0)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("retain", [False, True])
def test_whatever_the_weights_what_is_picked_has_its_weights(seed, retain):
    """The best of every k by any weights, at the dials that they like, is kept where the front is kept."""
    rng = np.random.default_rng(seed)
    trials = [
        make_turned(
            f"trial-{number}",
            1 + number % 3,
            {
                dial: (float(rng.normal(3 - 8 * dial, 3)), float(rng.normal(14 * dial, 3)))
                for dial in (0.25, 0.5, 1.0)
            },
            ScoreWeights(retain=retain),
        )
        for number in range(18)
    ]
    candidates = find_candidates(trials, ScoreWeights(retain=retain), front=True)
    assert len(candidates) < len(trials)
    picked = set()
    for general in np.linspace(0.01, 0.99, 21):
        weights = ScoreWeights(general=general, domain=1 - general, retain=retain)
        again = rescore(trials, weights)
        picked.update(trial.name for trial in find_best_of_each_k(again).values())
    assert picked <= candidates and len(picked) > 3
