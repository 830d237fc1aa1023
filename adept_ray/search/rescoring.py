"""The scores that trials have by other weights, at the dials that these like best; no Ray, no file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from adept_ray.config.specs import ScoreWeights
from adept_ray.method.dial import FOLDS, TRAINED, DialChoice, choose_dial, cross_fit
from adept_ray.method.scores import difference_error, value_or_nan, weigh_changes
from adept_ray.search.trials import Reading, Trial

NOT_DIALLED = DialChoice(TRAINED, (TRAINED,) * FOLDS)


def rescore(trials: Iterable[Trial], weights: ScoreWeights, dialled: bool = True) -> list[Trial]:
    """The trials with the scores, and their errors, that other weights give, all along their curves.

    Each takes the dial that is best by these, of those that were read at its end, or its own where it was
    `dialled` to none.
    """
    return [rescore_trial(turn_trial(trial, weights, dialled), weights) for trial in trials]


def turn_trial(trial: Trial, weights: ScoreWeights, dialled: bool) -> Trial:
    """A trial at the dial that scores best by these weights; as it was trained unless it is `dialled`.

    Of a search with benchmark tasks accuracies and bits per byte aren't known at other dials than its own.
    """
    if not trial.turned.turns:
        return trial
    if trial.general_accuracy is not None or trial.domain_accuracy is not None:
        trial = replace(trial, general_bpb=None, domain_bpb=None, general_accuracy=None, domain_accuracy=None)
    choice = choose_dial(trial.turned, weights) if dialled else NOT_DIALLED
    (general, domain), pulls = cross_fit(trial.turned, choice.by_fold)
    plain = next(turn for turn in trial.turned.turns if turn.dial == TRAINED)
    ends = [
        replace(reading, general_delta=general, domain_delta=domain, dial=choice.dial)
        for reading in trial.curve[-1:]  # turns are those of its end
    ]
    return replace(
        trial,
        general_bpb=turn_bpb(trial.general_bpb, trial.general_delta, general),
        domain_bpb=turn_bpb(trial.domain_bpb, trial.domain_delta, domain),
        general_delta=general,
        domain_delta=domain,
        pulls=pulls,
        dial=choice.dial,
        plain_score=plain.weigh(weights),
        curve=(*trial.curve[:-1], *ends),
    )


def turn_bpb(bpb: float | None, before: float | None, after: float) -> float | None:
    """Bits per byte where the change is `after` percent, from those where it was `before`."""
    return bpb if bpb is None or before is None else bpb * (100 - after) / (100 - before)


def rescore_trial(trial: Trial, weights: ScoreWeights) -> Trial:
    """A trial whose pulls are known, with the scores that other weights give; others stay as they are."""
    if not trial.pulls:
        return trial
    no_pulls = {side: [0.0] * len(pulls) for side, pulls in trial.pulls.items()}
    no_change = replace(trial, general_delta=0.0, pulls=no_pulls)
    return replace(
        trial,
        score=weigh_deltas(trial, weights),
        score_se=difference_error(trial, no_change, weights),
        curve=tuple(rescore_reading(reading, weights) for reading in trial.curve),
    )


def rescore_reading(reading: Reading, weights: ScoreWeights) -> Reading:
    """A reading with the scores that other weights give, at the dial that it was taken at."""
    general, domain = reading.plain_general_delta, reading.plain_domain_delta
    plain = None if general is None or domain is None else weigh_changes(general, domain, weights)
    return replace(reading, score=weigh_deltas(reading, weights), plain_score=plain)


def weigh_deltas(measured: Trial | Reading, weights: ScoreWeights) -> float:
    """The score that the weights give to a trial, or to a reading of its curve."""
    deltas = value_or_nan(measured.general_delta), value_or_nan(measured.domain_delta)
    return weigh_changes(*deltas, weights)
