"""tune_k.py: prepare, search, choose, conclude."""

from __future__ import annotations

from dataclasses import asdict, replace

from adept_ray.config.specs import SearchRun
from adept_ray.report.search_page import write_pages
from adept_ray.run.choosing import choose_trial
from adept_ray.run.context import Context, open_context
from adept_ray.run.preparing import Prepared, prepare
from adept_ray.run.question import Question, pose_question
from adept_ray.run.record import record_best, record_run, show_choice
from adept_ray.run.report import rewrite_report
from adept_ray.run.resuming import explain_stops
from adept_ray.run.search_settings import load_space, open_search
from adept_ray.run.sources import Needs, Sources, find_sources
from adept_ray.run.training import build_work, choose_compiling, plan_fit, test_and_export
from adept_ray.run.trials import count_trials_left, fit_work, run_trials
from adept_ray.search.setup import place_work, rebuild_work
from adept_ray.training.work import TrainWork


def find_k(run: SearchRun) -> str:
    """Search k, recompute frequency and base rate; write the results folder; returns its place.

    Raises :class:`UserError` for bad input, KeyboardInterrupt when it was stopped half-way.
    """
    if run.report_only:
        return rewrite_report(run)
    session = open_search(run)
    run, results, display = session.run, session.results, session.display
    begun_with = load_space(run, results.read_record(), display.say)
    sources = find_sources(session)
    question = pose_question(run, begun_with, sources, display.say)
    record_run(session, sources, space=begun_with)
    with explain_stops(session, "tune-k"):
        with open_context(session) as context:
            prepared, work = prepare_search(context, sources, question)
            trials = run_trials(context, prepared, work, question)
            choice, chosen = choose_trial(run, question, trials)
            work = rebuild_work(work, prepared.layer_importance, chosen)
            test = test_and_export(context, prepared, work, chosen.checkpoint)
        record_best(session, prepared, work, test, asdict(choice), question.k_max)
        record_run(session, sources, prepared)
        write_pages(results)
    show_choice(session, prepared, work, test, choice)
    return results.publish()


def prepare_search(
    context: Context[SearchRun], sources: Sources, question: Question
) -> tuple[Prepared, TrainWork]:
    """Blocks and importance, and the work that all trials share: layers and settings are each trial's own."""
    run = context.run
    needs = Needs(
        question.k_max,
        run.tokens_per_trial,
        replay="replay" in question.space.parameters,
        reception=question.may_take("placement", "receptive"),
        fit=plan_fit(context, sources, question.deepest),
    )
    prepared = prepare(context, sources, needs)
    context.results.write_json("importance.json", prepared.importance)
    work = build_work(run, prepared, question.base, (), question.space.weights)
    deepest = fit_work(context, place_work(work, prepared.layer_importance, question.deepest))
    steps = deepest.steps * count_trials_left(context)
    compiled = choose_compiling(context, prepared, deepest, steps).compiled
    return prepared, replace(work, fit=replace(work.fit, compiled=compiled))
