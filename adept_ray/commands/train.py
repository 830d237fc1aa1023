"""train.py: train at full length with what a search found."""

from __future__ import annotations

import shlex
from dataclasses import replace

from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec, TrainRun
from adept_ray.config.validation import validate_spec
from adept_ray.report.search_page import write_pages
from adept_ray.run.context import Session, open_context, open_session
from adept_ray.run.ending import record_best, record_readings, show_summary
from adept_ray.run.examination import plan_refusal
from adept_ray.run.length import find_answer, find_layers, list_searched_layers, list_settings, tell_settings
from adept_ray.run.load import describe_load
from adept_ray.run.preparing import prepare
from adept_ray.run.record import record_run
from adept_ray.run.resuming import explain_stops, resume_training
from adept_ray.run.settings import (
    check_trust,
    list_known_fingerprints,
    list_run_overrides,
    load_best,
    resolve_settings,
)
from adept_ray.run.sources import Needs, count_train_tokens, find_sources
from adept_ray.run.training import (
    build_work,
    choose_compiling,
    plan_fit,
    run_training,
    test_and_export,
)
from adept_ray.storage.records import BestRecord


def train_model(args: TrainRun) -> str:
    """Train at full length with what a search found and export the model; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    best = load_best(args.config)
    check_trust(args.trust_remote_code, best["run"], args.config)
    answer = find_answer(args, best)
    best["training"] = {**best["training"], **list_settings(answer)}
    session, training = open_training(args, best)
    run, results = session.run, session.results
    tell_settings(args, answer, session.display)
    layers = list_searched_layers(best, training)
    general = training.general_share
    tokens = count_train_tokens(training.tokens, general > 0)
    sources = find_sources(session, made_from=list_known_fingerprints(best), train_tokens=tokens)
    record_run(session, sources, training=training)
    command = f"train --config {shlex.quote(args.config)} --tokens {args.tokens}"
    command += f" --settings {args.settings}" * ("settings" in args.given)
    with explain_stops(session, command):
        load = describe_load(run, sources, [training], layers)
        with open_context(session, load, plan_refusal(session, sources)) as context:
            fit = plan_fit(context, sources, training, layers)
            needs = Needs(best["k_max"], args.tokens, replay=general, least_replay=general, fit=fit)
            prepared = prepare(context, sources, needs)
            results.write_json("importance.json", prepared.importance)
            weights = validate_spec(ScoreWeights, best["score"], args.config)
            layers = find_layers(best, training, prepared.layer_importance, run.seed)
            work = build_work(run, prepared, training, layers, weights)
            work = replace(work, fit=choose_compiling(context, prepared, work, work.steps))
            last = run_training(context, prepared, work)
            test = test_and_export(context, prepared, work.turn(last["dial"]), last["saved"])
        record_readings(results, last, weights)
        record_best(session, prepared, work, test, best.get("choice", {}), best["k_max"])
        record_run(session, sources, prepared, training, work=work)
        write_pages(results)
        show_summary(session, prepared, work, test, f"Trained with the configuration of {args.config}.")
        return results.publish()


def open_training(args: TrainRun, best: BestRecord) -> tuple[Session[RunSpec], TrainingSpec]:
    """The session of a training with what a best.yaml holds, new or resumed, and the training's settings.

    Raises :class:`UserError` for settings that don't go together.
    """
    if args.resume:
        named = RunSpec(storage=args.storage, name=args.name, json_lines=args.json_lines)
        session = open_session(named, continues=True)
        run, training = resume_training(args, best, session.results.read_record())
        return replace(session, run=run), training
    settings = {**best["run"], **list_run_overrides(args)}
    plain = best["training"].get("dial") == "off" and "dial" not in args.given  # as the search was
    sizes = {"tokens": args.tokens, "reports": args.reports, "dial": "off" if plain else args.dial}
    run = resolve_settings(validate_spec(RunSpec, settings, args.config), "train")
    training = validate_spec(TrainingSpec, {**best["training"], **sizes}, args.config)
    return open_session(run), training
