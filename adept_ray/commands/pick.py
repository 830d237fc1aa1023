"""pick.py: choose anew among the trials of a finished search."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from adept_ray.config.errors import UserError
from adept_ray.config.specs import PickRun, SearchRun
from adept_ray.config.validation import apply_changes, validate_spec
from adept_ray.report.evidence import PICKED
from adept_ray.report.search_page import write_pages
from adept_ray.run.context import Session, open_context
from adept_ray.run.preparing import Needs, prepare
from adept_ray.run.question import load_space, pose_question
from adept_ray.run.record import record_best, show_summary
from adept_ray.run.settings import check_trust, load_best
from adept_ray.run.sources import find_sources
from adept_ray.run.terminal import Display
from adept_ray.run.training import build_work, plan_fit, test_and_export
from adept_ray.run.trials import choose_trial
from adept_ray.search.choice import choice_table, rescore
from adept_ray.search.trials import training_from_row, write_trials
from adept_ray.storage.checkpoints import NO_STEP, checkpoint_place, find_last_checkpoint
from adept_ray.storage.results import TRIALS, Results


def pick_trial(args: PickRun) -> str:
    """Choose anew among the trials of a finished search, by other weights; returns the results' place.

    Nothing is trained: of each candidate the weights were kept. Raises :class:`UserError` for bad input.
    """
    searched, results = open_finished(args)
    session = Session(override_machine(searched, args), results, Display(args.json_lines))
    best = load_best(results.folder / "best.yaml")
    weights = {"score.general": args.general, "score.domain": 1 - args.general}
    space = apply_changes(load_space(searched, results.about()), weights, where=f"--general {args.general}")
    rows = rescore(json.loads((results.folder / "trials.json").read_text())["trials"], space.weights)
    candidates = find_kept_weights(rows, results)
    sources = find_sources(session)
    question = pose_question(searched, space, sources)
    choice, row = choose_trial(searched, question, rows, candidates)
    training = apply_changes(training_from_row(row, question.base), {"tokens": row["tokens"]})
    layers = [int(layer) for layer in row["layers"].split()]
    with open_context(session, trains=False) as context:
        fit = plan_fit(context, sources, training, layers)
        prepared = prepare(context, sources, Needs(best["k_max"], searched.tokens_per_trial, fit=fit))
        work = build_work(session.run, prepared, training, layers, space.weights)
        test = test_and_export(context, prepared, work, row["saved"])
    write_trials(results, rows)
    record_best(session, prepared, work, test, asdict(choice), best["k_max"])
    results.write_json("run.json", results.about() | {"pick": {name: getattr(args, name) for name in PICKED}})
    write_pages(results)
    session.display.say(choice_table(choice))
    show_summary(session, prepared, work, test, choice.reason, choice.advised_k)
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
