"""tune_k.py: prepare, search, choose, conclude."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from adept_ray.config.specs import SearchRun
from adept_ray.run.choosing import choose_trial
from adept_ray.run.context import open_context
from adept_ray.run.examination import plan_examination, refuse_faults
from adept_ray.run.question import pose_question
from adept_ray.run.record import record_best, record_run
from adept_ray.run.report import rewrite_report
from adept_ray.run.resuming import explain_stops
from adept_ray.run.search_preparing import prepare_search
from adept_ray.run.search_settings import load_space, open_search
from adept_ray.run.sources import count_train_tokens, find_sources
from adept_ray.run.summary import show_choice
from adept_ray.run.tracking import track_run
from adept_ray.run.training import test_and_export
from adept_ray.run.trials import rebuild_chosen, run_trials


def find_k(run: SearchRun) -> str:
    """Search k, recompute frequency and base rate; write the results folder; returns its place.

    Raises :class:`UserError` for bad input, KeyboardInterrupt when it was stopped half-way.
    """
    if run.report_only:
        return rewrite_report(run)
    session = open_search(run)
    run, results, display = session.run, session.results, session.display
    begun_with = load_space(run, results.read_record(), display.say)
    tokens = count_train_tokens(run.tokens_per_trial, "replay" in begun_with.parameters)
    sources = find_sources(session, train_tokens=tokens)
    question = pose_question(run, begun_with, sources, display.say)
    record_run(session, sources, space=begun_with)
    with explain_stops(session, "tune-k"):
        examine = partial(refuse_faults, plan_examination(run, sources, question), display)
        load = question.describe_load(run, sources)
        with track_run(session, run.track):
            with open_context(session, load, examine) as context:
                prepared, work = prepare_search(context, sources, question)
                trials = run_trials(context, prepared, work, question)
                choice, chosen = choose_trial(run, question, trials)
                work = rebuild_chosen(work, prepared, chosen)
                test = test_and_export(context, prepared, work, chosen.checkpoint)
            record_best(session, prepared, work, test, asdict(choice), question.k_max)
            record_run(session, sources, prepared, work=work)
            show_choice(session, prepared, work, test, choice)
        return results.publish()
