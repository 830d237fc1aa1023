"""The commands that train: find k, train at full length, probe only. Arguments in, results folder out."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from adept_ray.config.search_space import SearchSpace, load_search_space
from adept_ray.config.specs import (
    PickRun,
    ProbeRun,
    RunSpec,
    ScoreWeights,
    SearchRun,
    TrainingSpec,
    TrainRun,
    UserError,
    apply_changes,
    fingerprint,
    refuse_flags,
    validate_spec,
)
from adept_ray.engine import cluster as launch
from adept_ray.engine.crew import Job, Progress, run_job, watch_board
from adept_ray.method.memory_plan import count_layer_parameters
from adept_ray.method.placement import resolve_layers
from adept_ray.report.evidence import PICKED, format_flags
from adept_ray.report.figures import draw_importance
from adept_ray.report.search_page import adopt_rivals, write_pages
from adept_ray.run.context import (
    build_work,
    check_trust,
    choose_compiling,
    explain_stops,
    has_ended,
    known_fingerprints,
    load_best,
    open_context,
    overrides_from,
    plan_fit,
    record_best,
    record_run,
    resolve_settings,
    resume_settings,
    resume_training,
    seconds_before,
    show_summary,
    store_blocks,
    test_and_export,
)
from adept_ray.run.preparing import Prepared, Sources, find_sources, prepare, show_jobs
from adept_ray.run.terminal import Display
from adept_ray.search.choice import (
    RELIABLE,
    UNTOUCHED,
    Choice,
    DepthLimit,
    choice_table,
    choose_k,
    find_edges,
    find_front,
    rescore,
)
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
    write_curves,
    write_trials,
)
from adept_ray.search.tune import run_search
from adept_ray.storage.files import NO_STEP as NO_STEP
from adept_ray.storage.files import TRIALS, Results, checkpoint_place, find_last_checkpoint
from adept_ray.training.stage2 import TrainWork

Say = Callable[[str], None]
# Settings of a run that nothing in a probe goes by.
UNPROBED = (
    "domain",
    "general_tasks",
    "domain_tasks",
    "task_items",
    "score",
    "remeasure_tokens",
    "test_tokens",
    "compile",
)


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
    taken = ("name", "storage", "report_only", "comparison", "json_lines")
    others = [name for name in SearchRun.model_fields if name not in taken]
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
    changes = {name: getattr(args, name) for name in ("workers", "gpus_per_worker", "micro_batch", "cache")}
    changes = {name: value for name, value in changes.items() if value is not None}
    return apply_changes(run, changes | {"concurrent": 1, "min_workers": 0})


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


def train_model(args: TrainRun) -> str:
    """Train at full length with what a search found and export the model; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    display = Display(args.json_lines)
    best = load_best(args.config)
    check_trust(args.trust_remote_code, best["run"], args.config)
    run, training, results = resolve_training(args, best)
    launch.check_workers(run)
    began = results.about().get("fingerprints", known_fingerprints(best))  # text may have come since a search
    sources = find_sources(run, display, made_from=began)
    record_run(results, run, display, sources, training=training)
    command = f"scripts/train.py --config {shlex.quote(args.config)} --tokens {args.tokens}"
    with explain_stops(command, run, results, display):
        with open_context(run, results, display) as (board, memory):
            fit = plan_fit(run, sources, training, memory, display, best["layers"])
            replays = training.replay > 0
            made = prepare(run, sources, display, board, best["k_max"], args.tokens, replays, fit=fit)
            results.write_json("importance.json", made.importance)
            weights = validate_spec(ScoreWeights, best["score"], args.config)
            work = replace(build_work(run, made, training, tuple(best["layers"]), weights), fit=fit)
            work = choose_compiling(run, work, work.steps, made, display, board)
            with show_jobs(display, board, "train", f"stage 2, {work.steps} steps", "train"):
                last = run_job(board, Job("train", "train", work, store_blocks(made.blocks), results.ray))
            test = test_and_export(run, work, made, results, display, board, last["saved"])
        write_curves(results, [{"trial": "training", "curve": last["curve"]}])
        record_best(results, run, made, work, test, best.get("choice", {}), best["k_max"])
        record_run(results, run, display, sources, made, training)
        write_pages(results)
    show_summary(display, f"Trained with the configuration of {args.config}.", test, work, made, results)
    return results.publish()


def resolve_training(args: TrainRun, best: Mapping[str, Any]) -> tuple[RunSpec, TrainingSpec, Results]:
    """The settings of a training with what a best.yaml holds, new or resumed, and its folder, which is made.

    Raises :class:`UserError` for settings that can't be.
    """
    if args.resume:
        results = Results(args.storage, args.name)
        results.open(resume=True)
        return *resume_training(args, best, results.about()), results
    run = resolve_settings(
        validate_spec(RunSpec, {**best["run"], **overrides_from(args)}, args.config), "train"
    )
    sizes = {"tokens": args.tokens, "reports": args.reports}
    training = validate_spec(TrainingSpec, {**best["training"], **sizes}, args.config)
    results = Results(run.storage, run.name)
    results.open(resume=False)
    return run, training, results


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
    return f"adept_ray {fingerprint(made.fingerprints, sizes, probed, tasks, asked, run.dtype, wanted)}"


def probe_layers(run: ProbeRun) -> str:
    """Run stage 1 alone; write importance.json and importance.png; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    display = Display(run.json_lines)
    refuse_flags(run, UNPROBED, "is for models that are trained: there is none in a probe")
    run = resolve_settings(run, "probe")
    results = Results(run.storage, run.name)
    results.open(resume=False)
    launch.check_workers(run)
    sources = find_sources(run, display, with_domain=False)
    record_run(results, run, display, sources)
    with open_context(run, results, display, trains=False) as (board, memory):
        fit = plan_fit(run, sources, TrainingSpec(k=0), memory, display, what="probe")
        # A pass more is little on a GPU, and what gradients of units take isn't in the plan.
        fit = replace(fit, recompute=run.activation_checkpointing == "on" or run.gpus_per_worker > 0)
        made = prepare(run, sources, display, board, run.k_max, fit=fit)
    results.write_json("importance.json", made.importance)
    draw_importance(made.importance, (), results.folder / "importance.png")
    record_run(results, run, display, sources, made)
    display.importance(made.importance)
    place = results.publish()
    display.say(f"importance.json and importance.png are in {place}")
    return place
