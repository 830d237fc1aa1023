"""Choosing k from all readings of a search, and the trial to go on with; no Ray, no Optuna, no file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from adept_ray.config.errors import UserError
from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.method.scores import is_finite, value_or_zero, weigh_pulls
from adept_ray.search.answers import Choice, Depth, Horizon
from adept_ray.search.choice_words import explain_choice, explain_neighbours, explain_no_gain
from adept_ray.search.front import find_front
from adept_ray.search.horizon import Aim, answer, describe_depths, draw_depths, list_horizons
from adept_ray.search.score_model import ScoreReading, fit_scores
from adept_ray.search.trials import UNTOUCHED, Setting, Trial

EVEN = ScoreWeights()
BACKBONE = Trial(UNTOUCHED, k=0, score=0.0, score_se=0.0, state=UNTOUCHED)
USUAL_RATE, USUAL_TOKENS = TrainingSpec().base_lr, TrainingSpec().tokens  # where they aren't searched
BARE = Depth(k=0, trial=UNTOUCHED, score=0.0, standard_error=0.0)


def choose_k(
    trials: Sequence[Trial],
    weights: ScoreWeights = EVEN,
    aim: Aim | None = None,
    among: Sequence[Trial] = (),
) -> Choice:
    """The smallest k that costs no more than the tolerance, and the best finished trial of it.

    Every k is judged at its own best rate by a model of all readings (see
    :mod:`adept_ray.search.score_model`): the score at one rate and one seed is not what that k can do. An
    added layer costs inference time for ever, so a larger k must earn it: the smallest k is taken that
    scores at most the tolerance less than the best one, with a probability of
    :data:`~adept_ray.search.answers.CONFIDENCE`. A price of layers is taken off each score. A model has to be
    exported, so for trainings as long as a trial a k with a finished trial is chosen, `among` some of them
    where others have lost their weights. Yet the advice is 0 where that isn't surely better than the
    untouched backbone, whose score is 0.

    Raises :class:`UserError` without a finished trial.
    """
    aim = aim or Aim()
    per_k = find_best_of_each_k(among or trials)
    readings = list_readings(trials, weights, aim.branched)
    tried = {trial.k for trial in trials if trial.state != UNTOUCHED}
    unfinished = {k: sum(trial.k == k for trial in trials) for k in sorted(tried - {0, *per_k})}
    bare = replace(BARE, trials=sum(trial.k == 0 and trial.state != UNTOUCHED for trial in trials))
    exportable = tuple(k for k in per_k if k)
    if not exportable:  # k = 0 changes nothing
        only = per_k[0]
        reason = "Nothing but k = 0 was trained to its end. No larger k is known."
        return Choice(
            k=0, trial=only.name, score=only.score, reason=reason, depths=(bare,), unfinished=unfinished
        )
    every = tuple(sorted({*(reading.k for reading in readings), *aim.depths}))
    model = fit_scores(readings, every)
    drawn = draw_depths(model, aim, exportable, model.longest)
    now = answer(drawn, aim)
    chosen = per_k[0 if not now.advised_k and 0 in per_k else now.k]
    depths = (bare, *(name_trials(depth, trials, per_k[depth.k]) for depth in describe_depths(drawn)))
    return Choice(
        k=chosen.k,
        advised_k=now.advised_k,
        trial=chosen.name,
        score=chosen.score,
        reason=explain(now, depths, chosen, aim.price),
        depths=depths,
        asked=answer(draw_depths(model, aim, every, aim.tokens), aim) if aim.tokens else now,
        horizons=(now, *list_horizons(model, aim, every)),
        unfinished=unfinished,
        min_gain_per_layer=aim.price or None,
    )


def explain(now: Horizon, depths: Sequence[Depth], chosen: Trial, price: float) -> str:
    """The two sentences of a choice."""
    if not now.advised_k:
        return explain_no_gain(chosen, price)
    return f"{explain_choice(now, price)} {explain_neighbours(chosen.k, depths)}"


def name_trials(depth: Depth, trials: Iterable[Trial], best: Trial) -> Depth:
    """What is known of a k, with its trials and the best of them."""
    return replace(depth, trials=sum(trial.k == depth.k for trial in trials), trial=best.name)


def list_readings(
    trials: Iterable[Trial], weights: ScoreWeights, branched: bool = False
) -> list[ScoreReading]:
    """What whole trainings scored: the ends of finished trials, or where they are `branched` each reading.

    Trainings without copies are the backbone, and say nothing.
    """
    readings = []
    for trial in trials:
        ends = [(trial.tokens or USUAL_TOKENS, trial.score)] if trial.is_comparable else []
        if branched:
            ends = [(reading.tokens, reading.score) for reading in trial.curve]
        pulls = list_pulls(trial, weights)
        readings += [
            ScoreReading(
                trial=trial.name,
                k=trial.k,
                rate=float(trial.setting.get("base_lr") or USUAL_RATE),
                tokens=tokens,
                score=score,
                variant=name_variant(trial.setting),
                pulls=scale_pulls(pulls, score, trial.score),
            )
            for tokens, score in ends
            if trial.k and is_finite(score)
        ]
    return readings


def scale_pulls(pulls: tuple[float, ...], score: float, last: float | None) -> tuple[float, ...]:
    """The pulls of a reading on the way, in proportion to those of the `last` one, which alone are kept."""
    share = score / last if is_finite(last) and last else 1.0
    return tuple(share * pull for pull in pulls)


def name_variant(setting: Setting) -> str:
    """All settings but k and the rate, as one name."""
    return " ".join(f"{name}={value}" for name, value in sorted(setting.items()) if name != "base_lr")


def list_pulls(trial: Trial, weights: ScoreWeights) -> tuple[float, ...]:
    """How far each document or item of both sides pulls the score; the root of their squares is its error.

    Of an older table, where only that is known, it is all that there is.
    """
    if not trial.pulls:
        return (value_or_zero(trial.score_se),)
    pulls = [side[np.isfinite(side)] for side in weigh_pulls(trial, trial.pulls, weights)]
    return tuple(
        float(pull) for side in pulls for pull in side * math.sqrt(len(side) / max(1, len(side) - 1))
    )


def find_best_of_each_k(trials: Iterable[Trial]) -> dict[int, Trial]:
    """k → its best finished trial, ascending. Raises :class:`UserError` when there is none."""
    begun = [trial for trial in trials if trial.state != UNTOUCHED]
    finished = [trial for trial in begun if trial.is_comparable]
    if not finished and begun and all(trial.state == "failed" for trial in begun):
        raise UserError(f"all {len(begun)} trials failed; the first with: {begun[0].error}")
    if not finished:
        raise UserError(
            "no trial was trained to its end, so there is no k to choose: search again with a larger --trials"
        )
    best: dict[int, Trial] = {}
    for trial in finished:
        if trial.k not in best or value_or_zero(trial.score) > value_or_zero(best[trial.k].score):
            best[trial.k] = trial
    return dict(sorted(best.items()))


def find_candidates(trials: Sequence[Trial], weights: ScoreWeights, front: bool) -> set[str]:
    """The trials that may still be chosen: the best of each k, and with `front` those on the front of each k.

    By other weights, with the dials that these like, the best of a k is on its front. The checkpoints of all
    others can go: more trials never make them the best of their k.
    """
    try:
        names = {trial.name for trial in find_best_of_each_k(trials).values()}
    except UserError:  # none is finished yet
        return set()
    for k in {trial.k for trial in trials} if front else ():
        names.update(find_front([trial for trial in trials if trial.k == k], weights))
    return names
