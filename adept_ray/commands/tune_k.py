"""tune_k.py: prepare, search, choose, conclude."""

from __future__ import annotations

from dataclasses import asdict, replace

from adept_ray.config.errors import UserError
from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.specs import SearchRun
from adept_ray.config.validation import apply_changes, refuse_flags
from adept_ray.method.placement import resolve_layers
from adept_ray.report.search_page import adopt_rivals, write_pages
from adept_ray.run.context import Context, Session, open_context, open_session
from adept_ray.run.preparing import Needs, Prepared, prepare
from adept_ray.run.question import Question, continue_search, load_space, pose_question
from adept_ray.run.record import record_best, record_run, show_summary
from adept_ray.run.resuming import explain_stops
from adept_ray.run.settings import resolve_settings
from adept_ray.run.sources import Sources, find_sources
from adept_ray.run.terminal import Display
from adept_ray.run.training import build_work, choose_compiling, plan_fit, test_and_export
from adept_ray.run.trials import choose_trial, count_trials_left, run_trials
from adept_ray.search.choice import choice_table
from adept_ray.search.study import open_study
from adept_ray.search.trials import training_from_row
from adept_ray.storage.results import Results
from adept_ray.training.work import TrainWork


def find_k(run: SearchRun) -> str:
    """Search k, recompute frequency and base rate; write the results folder; returns its place.

    Raises :class:`UserError` for bad input, KeyboardInterrupt when it was stopped half-way.
    """
    if run.report_only:
        return rewrite_report(run)
    session = open_search(run)
    run, results, display = session.run, session.results, session.display
    begun_with = load_space(run, results.about(), display.say)
    sources = find_sources(session)
    question = pose_question(run, begun_with, sources, display.say)
    record_run(session, sources, space=begun_with)
    with explain_stops(session, "scripts/tune_k.py"):
        with open_context(session) as context:
            prepared, work = prepare_search(context, sources, question)
            rows = run_trials(context, prepared, work, question)
            choice, row = choose_trial(run, question, rows)
            training = apply_changes(training_from_row(row, question.base), {"tokens": row["tokens"]})
            layers = resolve_layers(prepared.layer_importance, training, run.seed)
            work = replace(work, training=training, layers=layers)
            test = test_and_export(context, prepared, work, row["saved"])
        record_best(session, prepared, work, test, asdict(choice), question.k_max)
        record_run(session, sources, prepared)
        write_pages(results)
    display.say(choice_table(choice))
    show_summary(session, prepared, work, test, choice.reason, choice.advised_k)
    return results.publish()


def open_search(run: SearchRun) -> Session[SearchRun]:
    """The session of a search that begins, is resumed or is extended; what can't be is refused here.

    Raises :class:`UserError`.
    """
    if run.strategy == "grow":
        reason = "is for independent trials: leave it out with --strategy grow"
        refuse_flags(run, ("trials", "reports"), reason)
    continues = run.resume or run.more_trials > 0
    session = open_session(resolve_settings(run), continues)
    if continues:
        session = replace(session, run=continue_search(session.run, session.results))
    open_study(session.run.study)
    return session


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
    layers = resolve_layers(prepared.layer_importance, question.deepest, run.seed)
    deepest = replace(work, training=question.deepest, layers=layers)
    steps = deepest.steps * count_trials_left(context)
    return prepared, replace(work, fit=choose_compiling(context, prepared, deepest, steps))


def rewrite_report(run: SearchRun) -> str:
    """Write report and model card of a results folder again; returns its place.

    Raises :class:`UserError` when there is none, or when something in it isn't as it should be.
    """
    others = set(SearchRun.flat_fields()).difference(list_fields(SearchRun, Mark.REPORT))
    refuse_flags(run, others, "is for a search: leave it out with --report-only, where nothing is searched")
    results = Results(run.storage, run.name)
    if not run.name or not results.exists():
        raise UserError(f"{results.place} holds no results: --report-only takes --name and maybe --storage")
    if run.comparison:
        adopt_rivals(results, run.comparison)
    write_pages(results)
    place = results.publish()
    Display(run.json_lines).say(f"report.html: {place}/report.html")
    return place
