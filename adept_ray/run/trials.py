"""The trials of a search, under a live table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import SearchRun
from adept_ray.engine.client import watch_board
from adept_ray.engine.job import JobProgress
from adept_ray.run.context import Context
from adept_ray.run.preparing import Prepared
from adept_ray.run.question import Question, name_question
from adept_ray.run.record import seconds_before
from adept_ray.run.stage_one import store_blocks
from adept_ray.search.choice import UNTOUCHED
from adept_ray.search.growth import grow_model, growth_stop_reason, plan_growth
from adept_ray.search.trials import delete_weights, untouched_row, write_trials
from adept_ray.search.tune import run_search
from adept_ray.storage.results import TRIALS, Results
from adept_ray.training.work import TrainWork

Row = dict[str, Any]


def count_trials_left(context: Context[SearchRun]) -> int:
    """Trials that each crew of a search, which may have begun before, still has to do."""
    run, results = context.run, context.results
    if run.strategy == "grow":
        return 1
    over = json.loads(file.read_text())["trials"] if (file := results.folder / "trials.json").exists() else ()
    had = sum(row["state"] != UNTOUCHED for row in over)
    return math.ceil((run.trials - had) / context.board.count_crews())


@dataclass
class TrialFiles:
    """What a search writes as its trials end, and the weights that it deletes."""

    results: Results
    space: SearchSpace
    pareto: bool
    untouched: Row
    """The row of the untouched backbone, which goes first."""
    _ended: list[str] = field(default_factory=list)
    _deleted: set[str] = field(default_factory=set)

    def update(self, rows: Sequence[Row]) -> None:
        """Write the trials that are over, if there are more of them than at the last look."""
        now = [row["trial"] for row in rows if row["state"] != "running"]
        if now != self._ended:
            self._ended = now
            self.write([row for row in rows if row["trial"] in now])

    def write(self, rows: Sequence[Row]) -> None:
        """Write these trials, and delete the weights of those that can't be chosen any more."""
        write_trials(self.results, [self.untouched, *rows])
        kept = [row for row in rows if row["saved"] not in self._deleted]
        self._deleted.update(delete_weights(kept, self.space.weights, self.pareto))


def run_trials(
    context: Context[SearchRun], prepared: Prepared, work: TrainWork, question: Question
) -> list[Row]:
    """Search under a live table; returns a row a trial, the untouched backbone's first.

    `work` is what all trials share. As trials end trials.csv is written, and the weights of those that can't
    be chosen any more are deleted.
    """
    run, display = context.run, context.display
    untouched = untouched_row(work, prepared.blocks)
    files = TrialFiles(context.results, question.space, run.pareto, untouched)
    growing = run.strategy == "grow"
    plan = plan_growth(run, question.space, work, prepared.layer_importance) if growing else []

    def watch(progress: JobProgress, rows: list[Row]) -> None:
        show(progress, rows)
        files.update(rows)

    with display.trials(len(plan) or run.trials, run.resume) as show, watch_board(context.board, watch):
        if growing:
            rows = grow_trials(context, prepared, plan)
        else:
            rows = search_trials(context, prepared, work, question)
    price = run.min_gain_per_layer or 0.0
    if len(rows) < len(plan) and (why := growth_stop_reason(rows, question.space.weights, price)):
        display.say(why)
    if run.max_hours and len(rows) < run.trials:
        display.say(f"--max-hours {run.max_hours:g}: {len(rows)} of {run.trials} trials were begun in time")
    files.write(rows)
    return [untouched, *rows]


def grow_trials(context: Context[SearchRun], prepared: Prepared, plan: Sequence[Any]) -> list[Row]:
    """The depths of one growing model, a row each."""
    blocks, storage = store_blocks(prepared.blocks), f"{context.results.ray}/{TRIALS}"
    price = context.run.min_gain_per_layer or 0.0
    return grow_model(plan, blocks, storage, context.board, context.board.record_row, price)


def search_trials(
    context: Context[SearchRun], prepared: Prepared, work: TrainWork, question: Question
) -> list[Row]:
    """Independent trials, a row each."""
    run, storage = context.run, context.results.ray
    study = name_question(run, question.space, prepared)
    spent = seconds_before(context.results.read_record()).get("search", 0.0)
    blocks = store_blocks(prepared.blocks)
    return run_search(run, question.space, work, prepared.layer_importance, blocks, storage, study, spent)
