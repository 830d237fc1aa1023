"""train.py: train at full length with what a search found."""

from __future__ import annotations

from dataclasses import replace

from adept_ray.config.specs import ScoreWeights, TrainRun
from adept_ray.config.validation import validate_spec
from adept_ray.run.context import open_context
from adept_ray.run.examination import plan_refusal
from adept_ray.run.full_training import name_command, open_training, write_readings
from adept_ray.run.length import find_answer, find_layers, list_searched_layers, list_settings, tell_settings
from adept_ray.run.load import describe_load
from adept_ray.run.preparing import prepare
from adept_ray.run.record import record_best, record_run
from adept_ray.run.resuming import explain_stops
from adept_ray.run.settings import (
    check_trust,
    list_known_fingerprints,
    load_best,
)
from adept_ray.run.sources import Needs, count_train_tokens, find_sources
from adept_ray.run.summary import show_summary
from adept_ray.run.tracking import track_run
from adept_ray.run.training import (
    build_work,
    choose_compiling,
    plan_fit,
    run_training,
    test_and_export,
)


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
    with explain_stops(session, name_command(args)):
        load = describe_load(run, sources, [training], layers)
        with track_run(session, args.track):
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
            write_readings(results, last, weights)
            record_best(session, prepared, work, test, best.get("choice", {}), best["k_max"])
            record_run(session, sources, prepared, training, work=work)
            show_summary(session, prepared, work, test, f"Trained with the configuration of {args.config}.")
        return results.publish()
