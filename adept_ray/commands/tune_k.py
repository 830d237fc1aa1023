"""tune_k.py: probe, search, choose, conclude."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from adept_ray.config.errors import UserError
from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.search_space import SearchSpace, load_search_space
from adept_ray.config.specs import SearchRun, TrainingSpec
from adept_ray.config.validation import apply_changes, fingerprint, refuse_flags, validate_spec
from adept_ray.engine import cluster as launch
from adept_ray.engine.crew import Progress, watch_board
from adept_ray.method.memory_plan import count_layer_parameters
from adept_ray.method.placement import resolve_layers
from adept_ray.report.evidence import format_flags
from adept_ray.report.search_page import adopt_rivals, write_pages
from adept_ray.run.context import open_context
from adept_ray.run.preparing import Prepared, prepare
from adept_ray.run.record import has_ended, record_best, record_run, seconds_before, show_summary
from adept_ray.run.resuming import explain_stops, resume_settings
from adept_ray.run.settings import (
    resolve_settings,
)
from adept_ray.run.sources import Sources, find_sources
from adept_ray.run.terminal import Display
from adept_ray.run.training import build_work, choose_compiling, plan_fit, store_blocks, test_and_export
from adept_ray.search.choice import RELIABLE, UNTOUCHED, Choice, choice_table, choose_k, find_front
from adept_ray.search.edges import DepthLimit, find_edges
from adept_ray.search.growth import grow_model, growth_stop_reason, plan_growth
from adept_ray.search.ranges import (
    check_space,
    double_amount,
    limit_depths,
    override_ranges,
    parse_amount,
    put_paper_first,
)
from adept_ray.search.study import open_study, rank_hyperparameters
from adept_ray.search.trials import (
    delete_weights,
    training_from_row,
    untouched_row,
    write_trials,
)
from adept_ray.search.tune import run_search
from adept_ray.storage.checkpoints import NO_STEP as NO_STEP
from adept_ray.storage.results import TRIALS, Results
from adept_ray.training.work import TrainWork

Say = Callable[[str], None]


def find_k(run: SearchRun) -> str:
    """Search k, recompute frequency and base rate; write the results folder; returns its place.

    Raises :class:`UserError` for bad input, KeyboardInterrupt when it was stopped half-way.
    """
    if run.report_only:
        return rewrite_report(run)
    if run.strategy == "grow":
        refuse_flags(
            run, ("trials", "reports"), "is for independent trials: leave it out with --strategy grow"
        )
    display = Display(run.json_lines)
    run = resolve_settings(run)
    results = Results(run.storage, run.name)
    results.open(run.resume or run.more_trials > 0)
    if run.resume or run.more_trials:
        run = continue_search(run, results)
    open_study(run.study)
    begun_with = load_space(run, results.about(), display.say)
    launch.check_workers(run)
    sources = find_sources(run, display, made_from=results.about().get("fingerprints"))
    base = TrainingSpec(tokens=run.tokens_per_trial, reports=run.reports)
    space, most = limit_space(run, begun_with, sources, display.say)
    deepest, k_max = check_space(space, sources.layers, base)
    record_run(results, run, display, sources, space=begun_with)
    with explain_stops("scripts/tune_k.py", run, results, display):
        with open_context(run, results, display) as (board, memory):
            fit = plan_fit(run, sources, deepest, memory, display)
            searched = space.parameters
            receptive = "placement" in searched and "receptive" in searched["placement"].values
            texts = run.tokens_per_trial, "replay" in searched, receptive
            made = prepare(run, sources, display, board, k_max, *texts, fit)
            results.write_json("importance.json", made.importance)
            layers = resolve_layers(made.layer_importance, deepest, run.seed)
            work = replace(build_work(run, made, deepest, layers, space.weights), fit=fit)
            fit = choose_compiling(
                run, work, work.steps * count_trials_left(run, results, board), made, display, board
            ).fit
            work = replace(build_work(run, made, base, (), space.weights), fit=fit)
            rows = run_trials(run, space, work, made, results, display, board)
            choice, row = choose_trial(run, space, rows, limit_k(run, sources, most))
            training = apply_changes(training_from_row(row, base), {"tokens": row["tokens"]})
            layers = resolve_layers(made.layer_importance, training, run.seed)
            work = replace(build_work(run, made, training, layers, space.weights), fit=fit)
            test = test_and_export(run, work, made, results, display, board, row["saved"])
        record_best(results, run, made, work, test, asdict(choice), k_max)
        record_run(results, run, display, sources, made)
        write_pages(results)
    display.say(choice_table(choice))
    show_summary(display, choice.reason, test, work, made, results, choice.advised_k)
    return results.publish()


def count_trials_left(run: SearchRun, results: Results, board: Any) -> int:
    """Trials that each crew of a search, which may have begun before, still has to do."""
    import ray

    if run.strategy == "grow":
        return 1
    over = json.loads(file.read_text())["trials"] if (file := results.folder / "trials.json").exists() else ()
    had = sum(row["state"] != UNTOUCHED for row in over)
    return math.ceil((run.trials - had) / ray.get(board.crews.remote()))


def choose_trial(
    run: SearchRun,
    space: SearchSpace,
    rows: Sequence[Mapping[str, Any]],
    most: DepthLimit,
    among: Sequence[Mapping[str, Any]] = (),
) -> tuple[Choice, Mapping[str, Any]]:
    """What a search that is over says, with all that it leaves open; and the row of the chosen trial.

    It is chosen `among` some of the rows where not all of them can be had any more.
    """
    among = among or rows
    choice = choose_k(among, space.weights, run.min_gain_per_layer)
    row = next(row for row in among if row["trial"] == choice.trial)
    choice = replace(
        choice,
        edges=find_edges(row, space, most, rerun_command(run), run.range),
        hyperparameters=rank_hyperparameters(space, rows) if run.strategy == "trials" else {},
        hyperparameters_reliable=sum(row["state"] == "finished" for row in rows) >= RELIABLE,
        front=find_front(rows, space.weights) if run.pareto else (),
    )
    return choice, row


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


def continue_search(run: SearchRun, results: Results) -> SearchRun:
    """The settings of a search that goes on, or of a finished one that is extended.

    Raises :class:`UserError` for flags that contradict them, and for more trials of an unfinished search.
    """
    about = results.about()
    begun = resume_settings(run, about["run"])
    if not run.more_trials:
        return begun
    if not has_ended(about):
        raise UserError(
            f"--more-trials {run.more_trials}: the search '{run.name}' isn't finished, so go on with "
            "--resume first"
        )
    rows = json.loads((results.folder / "trials.json").read_text())["trials"]
    had = sum(row["state"] != UNTOUCHED for row in rows)  # fewer than asked for where the time was over
    changes = {"resume": True, "more_trials": 0, "trials": had + run.more_trials}
    return apply_changes(begun, changes, where=f"--more-trials {run.more_trials}")


def load_space(run: SearchRun, about: Mapping[str, Any], say: Say = lambda text: None) -> SearchSpace:
    """The space that a search began with; that of its file, with the run's ranges, where none is kept.

    `about` is the run.json, and `say` hears of a file that has another one by now. Raises
    :class:`UserError` for a file that is needed and can't be used.
    """
    if "space" not in about:
        return override_ranges(load_search_space(run.search_space), run.range)
    kept = validate_spec(SearchSpace, about["space"], "run.json: space")
    try:
        same = kept == override_ranges(load_search_space(run.search_space), run.range)
    except UserError:
        same = False
    if not same:
        say(
            f"{run.search_space} isn't what the search '{run.name}' began with any more: it goes on with "
            "what it was, and another --name begins one with what it is now"
        )
    return kept


def limit_space(
    run: SearchRun, space: SearchSpace, sources: Sources, say: Say = lambda text: None
) -> tuple[SearchSpace, int]:
    """The space as it is searched, and the largest k that backbone and budget allow.

    The budget ends the range of k, which `say` hears of, and the paper's setting goes first. Raises
    :class:`UserError`.
    """
    most = sources.layers
    if run.max_new_params:
        backbone = sources.backbone
        total, sizes = count_layer_parameters(sources.config, backbone.trusted, backbone.revision)
        limit = parse_amount(run.max_new_params, total)
        allowed, most = limit_depths(space, sizes, limit, f"--max-new-params {run.max_new_params}")
        if allowed != space:
            say(
                f"--max-new-params {run.max_new_params}: at most {limit / 1e6:.1f} M parameters are added, "
                f"so no k above {most} is tried"
            )
        space = allowed
    return put_paper_first(space), most


def rerun_command(run: SearchRun) -> str:
    """The command that starts such a search again."""
    return f"python scripts/tune_k.py {format_flags(run)}".strip()


def limit_k(run: SearchRun, sources: Sources, most: int) -> DepthLimit:
    """How large k may be in such a search, `most` by its budget, and the command with twice that."""
    if not run.max_new_params:
        return DepthLimit(sources.layers, most)
    dearer = apply_changes(run, {"max_new_params": double_amount(run.max_new_params)})
    return DepthLimit(sources.layers, most, f"--max-new-params {run.max_new_params}", rerun_command(dearer))


def run_trials(
    run: SearchRun,
    space: SearchSpace,
    work: TrainWork,
    made: Prepared,
    results: Results,
    display: Display,
    board: Any,
) -> list[dict[str, Any]]:
    """Search under a live table; returns a row a trial, the untouched backbone's first.

    As trials end trials.csv is written, and the weights of those that can't be chosen any more are deleted.
    """
    over: list[str] = []
    pruned: set[str] = set()
    untouched = untouched_row(work, made.blocks)

    def ended(rows: list[dict[str, Any]]) -> None:
        write_trials(results, [untouched, *rows])
        pruned.update(
            delete_weights([r for r in rows if r["saved"] not in pruned], space.weights, run.pareto)
        )

    def watch(progress: Progress, rows: list[dict[str, Any]]) -> None:
        show(progress, rows)
        now = [row["trial"] for row in rows if row["state"] != "running"]
        if now != over:
            over[:] = now
            ended([row for row in rows if row["trial"] in now])

    importance, blocks = made.layer_importance, store_blocks(made.blocks)
    plan = plan_growth(run, space, work, importance) if run.strategy == "grow" else []
    with display.trials(len(plan) or run.trials, run.resume) as show, watch_board(board, watch):
        if plan:
            price = run.min_gain_per_layer or 0.0
            rows = grow_model(plan, blocks, f"{results.ray}/{TRIALS}", board, board.note.remote, price)
        else:
            question = name_question(run, space, made)
            spent = seconds_before(results.about()).get("search", 0.0)
            rows = run_search(run, space, work, importance, blocks, results.ray, question, spent)
    if plan and len(rows) < len(plan) and (why := growth_stop_reason(rows, space.weights, price)):
        display.say(why)
    if run.max_hours and len(rows) < run.trials:
        display.say(f"--max-hours {run.max_hours:g}: {len(rows)} of {run.trials} trials were begun in time")
    ended(rows)
    return [untouched, *rows]


def name_question(run: SearchRun, space: SearchSpace, made: Prepared) -> str:
    """The name of a study: searches of the same question share it, and learn from each other's trials."""
    sizes = (run.tokens_per_trial, run.validation_tokens, run.seq_len, run.task_items, run.score)
    probed = (run.probe, run.probe_tokens, run.probe_confidence, run.remeasure_tokens)
    tasks = (run.general_tasks, run.domain_tasks)
    asked = space.model_dump(exclude={"run", "first", "judge_after"})
    wanted = (run.pareto, run.min_gain_per_layer or 0.0)
    return (
        f"adept_ray {fingerprint(made.fingerprints, sizes, probed, tasks, asked, run.machine.dtype, wanted)}"
    )
