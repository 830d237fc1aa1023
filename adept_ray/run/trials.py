"""The trials of a search, under a live table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

from adept_ray.config.specs import SearchRun
from adept_ray.engine.job import JobProgress
from adept_ray.run.context import Context
from adept_ray.run.preparing import Prepared
from adept_ray.run.question import Question, name_question
from adept_ray.run.record import read_spent_seconds
from adept_ray.run.stage_one import store_blocks
from adept_ray.search.growth import GrowthStage, explain_growth_end, grow_model, plan_growth
from adept_ray.search.setup import SearchSetup, measure_untouched, rebuild_work
from adept_ray.search.trials import UNTOUCHED, Facts, Trial
from adept_ray.search.tune import run_search
from adept_ray.search.upkeep import TrialFiles
from adept_ray.storage.results import TRIALS
from adept_ray.training.work import TrainWork


def count_trials_left(context: Context[SearchRun]) -> int:
    """Trials that each crew of a search, which may have begun before, still has to do."""
    run, results = context.run, context.results
    if run.strategy == "grow":
        return 1
    over = (
        json.loads(file.read_text(encoding="utf-8"))["trials"]
        if (file := results.folder / "trials.json").exists()
        else ()
    )
    ended = sum(row["state"] != UNTOUCHED for row in over)
    return math.ceil((run.trials - ended) / context.board.count_crews())


def fit_work(context: Context[SearchRun], work: TrainWork) -> TrainWork:
    """`work` as it fits on its own layers; the display says what that changes."""
    fitted = context.fit_to_layers(work)
    if fitted is not work:
        layers = " ".join(map(str, work.layers))
        context.display.say(
            f"k = {work.training.k} on layers {layers} leaves room for its activations, so they are kept; "
            "each trial decides that for its own layers"
        )
    return fitted


def run_trials(
    context: Context[SearchRun], prepared: Prepared, work: TrainWork, question: Question
) -> list[Trial]:
    """Search under a live table; returns the trials, the untouched backbone first.

    `work` is what all trials share. Whenever a trial ends, trials.csv is written, and weights that can't be
    chosen any more are deleted.
    """
    run, display = context.run, context.display
    untouched = measure_untouched(work, prepared.blocks)
    files = TrialFiles(context.results, question.space, run.pareto, untouched)
    growing = run.strategy == "grow"
    plan = plan_growth(run, question.space, work, prepared.layer_importance) if growing else []
    plan = [replace(stage, work=context.fit_to_layers(stage.work)) for stage in plan]

    def watch(progress: JobProgress, rows: Sequence[Facts]) -> None:
        show(progress, rows)
        files.update(rows)

    with display.show_trials(len(plan) or run.trials, run.resume) as show, context.watch_jobs(watch):
        if growing:
            trials = grow_trials(context, prepared, plan)
        else:
            trials = search_trials(context, prepared, work, question)
    price = run.min_gain_per_layer or 0.0
    if len(trials) < len(plan) and (why := explain_growth_end(trials, question.space.weights, price)):
        display.say(why)
    if run.max_hours and len(trials) < run.trials:
        display.say(f"--max-hours {run.max_hours:g}: {len(trials)} of {run.trials} trials were begun in time")
    files.write(trials)
    return [untouched, *trials]


def rebuild_chosen(work: TrainWork, prepared: Prepared, chosen: Trial) -> TrainWork:
    """The work of the chosen trial, from the one that all share."""
    return rebuild_work(work, prepared.layer_importance, chosen)


def grow_trials(context: Context[SearchRun], prepared: Prepared, plan: Sequence[GrowthStage]) -> list[Trial]:
    """The depths of one growing model."""
    board, price = context.board, context.run.min_gain_per_layer or 0.0
    blocks, storage = store_blocks(prepared.blocks), f"{context.results.ray}/{TRIALS}"

    def show(trial: Trial) -> None:
        board.record_row(trial.as_row())

    return grow_model(plan, blocks, storage, board, show, price)


def search_trials(
    context: Context[SearchRun], prepared: Prepared, work: TrainWork, question: Question
) -> list[Trial]:
    """Independent trials."""
    run, space = context.run, question.space
    study = name_question(run, space, prepared)
    storage = context.results.ray
    setup = SearchSetup(run, space, work, prepared.layer_importance, storage, study, context.memory)
    spent = read_spent_seconds(context.results.read_record()).get("search", 0.0)
    return run_search(setup, store_blocks(prepared.blocks), spent, context.display.warn)
