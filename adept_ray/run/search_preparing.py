"""What a search does before its trials: blocks, stage 1, and the work that all trials share."""

from __future__ import annotations

from dataclasses import replace

from adept_ray.config.specs import SearchRun
from adept_ray.run.context import Context
from adept_ray.run.preparing import Prepared, prepare
from adept_ray.run.question import Question
from adept_ray.run.sources import Needs, Sources
from adept_ray.run.training import build_work, choose_compiling, plan_fit
from adept_ray.run.trials import count_trials_left, fit_work
from adept_ray.search.setup import place_work
from adept_ray.training.work import TrainWork


def prepare_search(
    context: Context[SearchRun], sources: Sources, question: Question
) -> tuple[Prepared, TrainWork]:
    """Blocks and importance, and the work that all trials share: layers and settings are each trial's own."""
    run = context.run
    needs = Needs(
        question.k_max,
        run.tokens_per_trial,
        replay=max(replay.values) if (replay := question.space.parameters.get("replay")) else 0.0,
        reception=question.may_take("placement", "receptive"),
        fit=plan_fit(context, sources, question.deepest),
    )
    prepared = prepare(context, sources, needs)
    context.results.write_json("importance.json", prepared.importance)
    work = build_work(run, prepared, question.base, (), question.space.weights)
    deepest = fit_work(context, place_work(work, prepared.layer_importance, question.deepest))
    steps = deepest.trial_steps * count_trials_left(context)
    compiled = choose_compiling(context, prepared, deepest, steps).compiled
    return prepared, replace(work, fit=replace(work.fit, compiled=compiled))
