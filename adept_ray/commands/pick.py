"""pick.py: choose anew among the trials of a finished search."""

from __future__ import annotations

from dataclasses import asdict

from adept_ray.config.specs import PickRun
from adept_ray.config.validation import apply_changes
from adept_ray.run.choosing import choose_exported_dial, choose_trial, find_kept_weights, load_trials
from adept_ray.run.context import open_context
from adept_ray.run.examination import plan_refusal
from adept_ray.run.load import describe_measuring
from adept_ray.run.preparing import prepare
from adept_ray.run.question import pose_question
from adept_ray.run.record import record_best
from adept_ray.run.search_settings import load_space, open_finished
from adept_ray.run.settings import load_best
from adept_ray.run.sources import Needs, count_train_tokens, find_sources
from adept_ray.run.summary import show_choice
from adept_ray.run.training import build_work, plan_fit, test_and_export
from adept_ray.search.trials import resolve_training, write_trials


def pick_trial(args: PickRun) -> str:
    """Choose anew among the trials of a finished search, by other weights; returns the results' place.

    Nothing is trained: of each candidate the weights were kept. Raises :class:`UserError` for bad input.
    """
    searched, session = open_finished(args)
    results = session.results
    best = load_best(results.folder / "best.yaml")
    weights = {"score.general": args.general, "score.domain": 1 - args.general}
    space = apply_changes(
        load_space(searched, results.read_record()), weights, where=f"--general {args.general}"
    )
    trials = load_trials(results, space.weights, args.dial != "off")
    candidates = find_kept_weights(trials, results)
    tokens = count_train_tokens(searched.tokens_per_trial, "replay" in space.parameters)
    sources = find_sources(session, train_tokens=tokens)
    question = pose_question(searched, space, sources)
    choice, chosen = choose_trial(searched, question, trials, candidates)
    dial = choose_exported_dial(args.dial, chosen)
    training = apply_changes(resolve_training(chosen, question.base), {"tokens": chosen.tokens})
    load = describe_measuring(session.run, session.run.test_tokens)
    with open_context(session, load, plan_refusal(session, sources), trains=False) as context:
        fit = plan_fit(context, sources, training, chosen.layers)
        replay = training.general_share
        needs = Needs(best["k_max"], searched.tokens_per_trial, replay=replay, fit=fit)
        prepared = prepare(context, sources, needs)
        work = build_work(session.run, prepared, training, chosen.layers, space.weights).turn(dial)
        test = test_and_export(context, prepared, work, chosen.checkpoint)
    write_trials(results, trials, space.weights)
    record_best(session, prepared, work, test, asdict(choice), best["k_max"])
    picked = args.list_picked()
    results.write_json("run.json", results.read_record() | {"pick": picked})
    show_choice(session, prepared, work, test, choice)
    return results.publish()
