"""pick.py: choose anew among the trials of a finished search."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from adept_ray.commands.tune_k import choose_trial, limit_k, limit_space, load_space
from adept_ray.config.errors import UserError
from adept_ray.config.specs import PickRun, SearchRun, TrainingSpec
from adept_ray.config.validation import apply_changes, validate_spec
from adept_ray.engine import cluster as launch
from adept_ray.report.evidence import PICKED
from adept_ray.report.search_page import write_pages
from adept_ray.run.context import open_context
from adept_ray.run.preparing import prepare
from adept_ray.run.record import record_best, show_summary
from adept_ray.run.settings import (
    check_trust,
    load_best,
)
from adept_ray.run.sources import find_sources
from adept_ray.run.terminal import Display
from adept_ray.run.training import build_work, plan_fit, test_and_export
from adept_ray.search.choice import choice_table, rescore
from adept_ray.search.trials import (
    training_from_row,
    write_trials,
)
from adept_ray.storage.checkpoints import NO_STEP as NO_STEP
from adept_ray.storage.checkpoints import checkpoint_place, find_last_checkpoint
from adept_ray.storage.results import TRIALS, Results


def pick_trial(args: PickRun) -> str:
    """Choose anew among the trials of a finished search, by other weights; returns the results' place.

    Nothing is trained: of each candidate the weights were kept. Raises :class:`UserError` for bad input.
    """
    display = Display(args.json_lines)
    searched, results = open_finished(args)
    run = override_machine(searched, args)
    best = load_best(results.folder / "best.yaml")
    space = load_space(searched, results.about())
    weights = {"score.general": args.general, "score.domain": 1 - args.general}
    space = apply_changes(space, weights, where=f"--general {args.general}")
    rows = json.loads((results.folder / "trials.json").read_text())["trials"]
    rows = rescore(rows, space.weights)
    candidates = find_kept_weights(rows, results)
    launch.check_workers(run)
    sources = find_sources(run, display, made_from=results.about()["fingerprints"])
    space, most = limit_space(searched, space, sources)
    choice, row = choose_trial(searched, space, rows, limit_k(searched, sources, most), candidates)
    training = apply_changes(training_from_row(row, TrainingSpec()), {"tokens": row["tokens"]})
    layers = [int(layer) for layer in row["layers"].split()]
    with open_context(run, results, display, trains=False) as (board, memory):
        fit = plan_fit(run, sources, training, memory, display, layers)
        made = prepare(run, sources, display, board, best["k_max"], run.tokens_per_trial, fit=fit)
        work = replace(build_work(run, made, training, layers, space.weights), fit=fit)
        test = test_and_export(run, work, made, results, display, board, row["saved"])
    write_trials(results, rows)
    record_best(results, run, made, work, test, asdict(choice), best["k_max"])
    results.write_json("run.json", results.about() | {"pick": {name: getattr(args, name) for name in PICKED}})
    write_pages(results)
    display.say(choice_table(choice))
    show_summary(display, choice.reason, test, work, made, results, choice.advised_k)
    return results.publish()


def open_finished(args: PickRun) -> tuple[SearchRun, Results]:
    """A finished search as it is picked from, and its folder. Raises :class:`UserError` for anything else."""
    storage, _, name = args.results.rpartition("/")
    results = Results(storage or ".", name)
    if not results.exists():
        raise UserError(f"{args.results} holds no search: give a results folder, such as results/NAME")
    results.open(resume=True)
    about = results.about()
    if "seconds" not in about or not (results.folder / "trials.json").exists():
        raise UserError(f"{args.results} holds no finished search to choose from")
    run = validate_spec(SearchRun, about["run"], f"{args.results}/run.json")
    check_trust(args.trust_remote_code, about["run"], args.results)
    here = {"storage": storage or ".", "name": name, "min_gain_per_layer": args.min_gain_per_layer}
    return apply_changes(run, here), results


def override_machine(run: SearchRun, args: PickRun) -> SearchRun:
    """The settings of a search with the machine that is picked on: no trial is run, so one crew is enough."""
    return apply_changes(run, args.list_overrides() | {"concurrent": 1, "min_workers": 0})


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
