"""The trial that a search chooses, and what it is trained and exported with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adept_ray.config.errors import UserError
from adept_ray.config.specs import ScoreWeights, SearchRun
from adept_ray.config.validation import apply_changes
from adept_ray.method.placement import resolve_layers
from adept_ray.run.preparing import Prepared
from adept_ray.run.question import Question, rerun_command
from adept_ray.search.choice import RELIABLE, Choice, choose_k, find_front, rescore
from adept_ray.search.edges import find_edges
from adept_ray.search.study import rank_hyperparameters
from adept_ray.search.trials import training_from_row
from adept_ray.storage.checkpoints import NO_STEP, checkpoint_place, find_last_checkpoint
from adept_ray.storage.results import TRIALS, Results
from adept_ray.training.work import TrainWork


def choose_trial(
    run: SearchRun,
    question: Question,
    rows: Sequence[Mapping[str, Any]],
    among: Sequence[Mapping[str, Any]] = (),
) -> tuple[Choice, Mapping[str, Any]]:
    """What a search that is over says, with all that it leaves open; and the row of the chosen trial.

    The trial is chosen `among` some of the rows where not all of them can be had any more.
    """
    among, weights = among or rows, question.space.weights
    choice = choose_k(among, weights, run.min_gain_per_layer)
    row = next(row for row in among if row["trial"] == choice.trial)
    choice = replace(
        choice,
        edges=find_edges(row, question.space, question.limit, rerun_command(run), run.range),
        hyperparameters=rank_hyperparameters(question.space, rows) if run.strategy == "trials" else {},
        hyperparameters_reliable=sum(row["state"] == "finished" for row in rows) >= RELIABLE,
        front=find_front(rows, weights) if run.pareto else (),
    )
    return choice, row


def describe_trial_work(work: TrainWork, prepared: Prepared, row: Mapping[str, Any]) -> TrainWork:
    """The work of a trial: what all trials share, with the settings and layers of its row."""
    training = apply_changes(training_from_row(row, work.training), {"tokens": row["tokens"]})
    layers = resolve_layers(prepared.layer_importance, training, work.seed)
    return replace(work, training=training, layers=layers)


def load_trials(results: Results, weights: ScoreWeights) -> list[dict[str, Any]]:
    """The rows of a search that is over, with the scores that these weights give."""
    return rescore(json.loads((results.folder / "trials.json").read_text())["trials"], weights)


def find_kept_weights(rows: Sequence[Mapping[str, Any]], results: Results) -> list[dict[str, Any]]:
    """The rows with the places of the weights that were kept; finished ones without any don't count.

    Raises :class:`UserError` when no weights are left.
    """
    found = []
    for row in rows:
        place = f"{results.ray}/{TRIALS}/{row['trial']}"
        number = NO_STEP if row["state"] != "finished" else find_last_checkpoint(place)
        state = "given up" if row["state"] == "finished" and number == NO_STEP else row["state"]
        saved = None if number == NO_STEP else checkpoint_place(place, number)
        found.append({**row, "state": state, "saved": saved})
    if not any(row["saved"] for row in found):
        raise UserError(
            f"{results.place} has no candidates any more: their weights under ray/trials are gone"
        )
    return found
