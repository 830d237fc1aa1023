"""The model of what trainings score: what it learns from readings, and that its doubts are honest."""

import math
from dataclasses import replace

import numpy as np
import pytest

from adept_ray.search.horizon import Aim, answer, draw_depths, list_horizons
from adept_ray.search.score_model import PRIORS, ScoreReading, compute_scores, compute_slopes, fit_scores

LENGTHS = (1536, 3072, 6144)
FAR = 16 * LENGTHS[-1]
RATES = (5e-4, 3e-2)


class Truth:
    """A world of another form than the model's: gains saturate with tokens (arXiv 2402.02314) and copies."""

    def __init__(self, number: int) -> None:
        draw = np.random.default_rng(number)
        self.top, self.power = draw.uniform(10, 40), draw.uniform(0.25, 0.6)
        self.half, self.enough = 10 ** draw.uniform(3.5, 5.5), draw.uniform(0.5, 6)
        self.rate, self.by_tokens, self.by_copies = 10 ** draw.uniform(-2.8, -2.0), *draw.uniform(-0.5, 0, 2)
        self.noise = draw

    def score(self, k: int, tokens: float, rate: float) -> float:
        seen, half = tokens**self.power, (self.half / (1 + 0.3 * math.log2(k))) ** self.power
        height = self.top * (1 - (1 + k / self.enough) ** -0.8) * seen / (seen + half)
        best = self.by_tokens * math.log2(tokens / 6144) + self.by_copies * math.log2(k / 4)
        return height * math.exp(-0.02 * (math.log2(rate / self.rate) - best) ** 2)

    def read(self, trials: int, lengths: tuple[int, ...] = LENGTHS) -> list[ScoreReading]:
        """Readings of a random search."""
        found = []
        for number in range(trials):
            k, rate = int(self.noise.integers(1, 17)), 10 ** self.noise.uniform(-3.3, -2)
            own, *each = self.noise.normal(0, 0.014 * self.score(4, 6144, 3e-3), 1 + len(lengths))
            for tokens, more in zip(lengths, each, strict=True):
                score = self.score(k, tokens, rate) + own + more
                found.append(ScoreReading(f"t{number}", k, rate, tokens, score))
        return found

    def best(self, k: int, tokens: float) -> float:
        """The score at the best rate."""
        return max(self.score(k, tokens, rate) for rate in np.geomspace(1e-5, 1e-1, 200))


def draw_far(readings, depths):
    """What trainings 16 times as long as any that was read would score."""
    return draw_depths(fit_scores(readings, depths), Aim(rates=RATES), depths, FAR)


def test_intervals_hold_what_they_say_far_beyond_the_readings():
    """Of the scores of trainings 16 times as long as any read, 80 % intervals hold from 70 to 90 %."""
    held = []
    for number in range(30):
        world = Truth(number)
        drawn = draw_far(world.read(8), range(1, 17))
        for k, scores in zip(drawn.depths, drawn.scores, strict=True):
            low, high = np.quantile(scores, (0.1, 0.9))
            held.append(low <= world.best(k, FAR) <= high)
    assert 0.7 <= np.mean(held) <= 0.9


def test_what_it_chooses_costs_less_than_the_best_trial_does():
    """At 16 times the tokens, k and rate by the model lose less than a third of what the best trial's do."""
    by_model, by_trial = 0.0, 0.0
    for number in range(24):
        world = Truth(number)
        readings = world.read(8)
        chosen = answer(draw_far(readings, range(1, 17)), Aim())
        ends = [each for each in readings if each.tokens == LENGTHS[-1]]
        trial = max(ends, key=lambda each: each.score)
        top = max(world.best(k, FAR) for k in range(1, 17))
        by_model += top - world.score(chosen.k, FAR, chosen.rate)
        by_trial += top - world.score(trial.k, FAR, trial.rate)
    assert by_model < by_trial / 3


def test_its_errors_grow_where_it_missed_what_it_had_not_seen():
    """Readings that turn down at the longest length, unlike all before, make it unsure of what is longer."""
    steady = [ScoreReading(f"t{k}", k, 3e-3, n, 5 + math.log2(n / 1536)) for k in (1, 4) for n in LENGTHS]
    turned = [each if each.tokens < 6144 else replace(each, score=each.score - 3) for each in steady]
    first, second = (fit_scores(readings, (1, 4)) for readings in (steady, turned))
    assert first.stretch == 1 < second.stretch
    near, far = (draw_depths(second, Aim(), (1, 4), n).scores.std(axis=1) for n in (6144, FAR))
    plain = draw_depths(replace(second, stretch=1.0), Aim(), (1, 4), FAR).scores.std(axis=1)
    assert far == pytest.approx(second.stretch * plain) and (far > near).all()


def test_the_slopes_are_those_of_the_scores():
    """By finite differences, for each parameter."""
    draw = np.random.default_rng(0)
    values, (u, v, rate) = draw.normal(size=len(PRIORS)), draw.normal(size=(3, 5))
    slopes = compute_slopes(values, u, v, rate)
    for number in range(len(PRIORS)):
        step = np.zeros(len(PRIORS))
        step[number] = 1e-6
        up, down = (compute_scores(values + sign * step, u, v, rate, 0.0) for sign in (1, -1))
        assert slopes[:, number] == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-6)


def test_a_poor_rate_is_not_a_poor_k():
    """With readings of k = 8 at a rate 30 times too high alone, its score is unsure and not called lower."""
    world = Truth(3)
    best = max(np.geomspace(*RATES, 80), key=lambda rate: world.score(4, 6144, rate))
    rates = [(4, best / 4), (4, best), (4, best * 4), (2, best), (8, 30 * best)]
    readings = [ScoreReading(str(i), k, r, 6144, world.score(k, 6144, r)) for i, (k, r) in enumerate(rates)]
    four, eight = draw_depths(fit_scores(readings, (2, 4, 8)), Aim(rates=RATES), (4, 8), 6144).scores
    assert world.score(8, 6144, 30 * best) < four.mean() - four.std()
    assert eight.mean() > four.mean() - eight.std()


def test_other_documents_are_part_of_the_error_and_not_of_the_choice():
    """What all readings share makes every score unsure, and no difference of two ks."""
    pulls = tuple(0.3 * np.sin(np.arange(40)))
    bare = [ScoreReading(str(k), k, 3e-3, 6144, 8 + k / 8) for k in (1, 2, 4)]
    every = bare, [replace(reading, pulls=pulls) for reading in bare]
    bare, shared = (draw_far(readings, (1, 2, 4)) for readings in every)
    assert (shared.scores.std(axis=1) > bare.scores.std(axis=1)).all()
    apart = [float((each.scores[2] - each.scores[0]).std()) for each in (bare, shared)]
    assert apart[1] == pytest.approx(apart[0], rel=0.1)


def test_the_best_variant_is_what_all_is_said_of():
    """Trials also differ by other settings: those that score less don't pull down what is promised."""
    readings = [
        ScoreReading(f"{k} {name}", k, 3e-3, 6144, 10 + k / 8 - lost, variant=name)
        for k in (1, 2, 4)
        for name, lost in (("good", 0.0), ("poor", 1.0))
    ]
    model = fit_scores(readings, (1, 2, 4))
    assert model.variant == "good"
    apart = [draw_depths(replace(model, variant=name), Aim(), (2,), 6144).scores for name in ("good", "poor")]
    assert (apart[0] - apart[1]).mean() == pytest.approx(1.0, abs=0.3)


def test_longer_trainings_are_answered_for_with_lower_rates_and_larger_errors():
    """Each of the lengths, up to 1,024 times the longest reading, without a word of surety."""
    horizons = list_horizons(fit_scores(Truth(1).read(6), range(1, 17)), Aim(rates=RATES), (1, 2, 4, 8))
    assert [each.tokens for each in horizons] == [6144 * 2**i for i in range(1, 11)]
    errors = [each.error for each in horizons]
    assert errors == sorted(errors) and horizons[0].beyond == 2 and horizons[-1].beyond == 1024
    assert horizons[-1].rate < horizons[0].rate


def test_nobody_knows_which_k_is_best_thousands_of_times_beyond_the_readings():
    """Though one is clearly ahead where they end: out there several ks are possible."""
    scores = {1: 9.8, 4: 11.2}
    readings = [
        ScoreReading(f"{k} {n}", k, 3e-3, tokens, score - 1.2 * doublings)
        for k, score in scores.items()
        for n in range(3)
        for doublings, tokens in enumerate((2048, 1024, 512))
    ]
    near, far = (
        answer(draw_depths(fit_scores(readings, (1, 2, 4)), Aim(), (1, 2, 4), tokens), Aim())
        for tokens in (2048, 50_000_000)
    )
    assert (near.k, near.low_k > 1) == (4, True) and (far.low_k, far.high_k) == (1, 4)
