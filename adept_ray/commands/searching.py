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
    fingerprint,
    overlay,
    refuse,
    validated,
)
from adept_ray.engine import cluster as launch
from adept_ray.engine.crew import Progresses, Task, do, watching
from adept_ray.method.memory_plan import layer_sizes
from adept_ray.method.placement import placed
from adept_ray.report.evidence import PICKED, flags
from adept_ray.report.figures import draw_importance
from adept_ray.report.search_page import adopt_rivals, write_pages
from adept_ray.run.context import (
    as_begun,
    as_trained,
    at_work,
    backbone_of,
    check_trust,
    conclude,
    given,
    has_ended,
    job_of,
    load_best,
    paced,
    planned,
    put,
    resumable,
    seconds_before,
    settled,
    summary,
    write_best,
    write_run,
)
from adept_ray.run.preparing import Prepared, Sources, find_sources, on_crew, prepare
from adept_ray.run.terminal import Display
from adept_ray.search.choice import (
    RELIABLE,
    UNTOUCHED,
    Choice,
    Reach,
    choose,
    edges_of,
    front_of,
    rescored,
    said,
)
from adept_ray.search.growth import enough, grow, stages
from adept_ray.search.ranges import affordable, amount, check_space, doubled, paper_first, with_ranges
from adept_ray.search.study import opened, shares
from adept_ray.search.trials import prune, training_of, untouched_row, write_curves, write_trials
from adept_ray.search.tune import search
from adept_ray.storage.files import NONE as NO_STEP
from adept_ray.storage.files import TRIALS, Results, checkpoint_at, last_checkpoint
from adept_ray.training.stage2 import TrainJob

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
        return report_again(run)
    if run.strategy == "grow":
        refuse(run, ("trials", "reports"), "is for independent trials: leave it out with --strategy grow")
    display = Display(run.json_lines)
    run = settled(run)
    results = Results(run.storage, run.name)
    results.open(run.resume or run.more_trials > 0)
    if run.resume or run.more_trials:
        run = gone_on(run, results)
    opened(run.study)
    begun_with = space_of(run, results.about(), display.say)
    launch.check_workers(run)
    sources = find_sources(run, display, made_from=results.about().get("fingerprints"))
    base = TrainingSpec(tokens=run.tokens_per_trial, reports=run.reports)
    space, most = searchable(run, begun_with, sources, display.say)
    deepest, k_max = check_space(space, sources.layers, base)
    write_run(results, run, display, sources, space=begun_with)
    with resumable("scripts/tune_k.py", run, results, display):
        with at_work(run, results, display) as (board, memory):
            fit = planned(run, sources, deepest, memory, display)
            searched = space.parameters
            receptive = "placement" in searched and "receptive" in searched["placement"].values
            texts = run.tokens_per_trial, "replay" in searched, receptive
            made = prepare(run, sources, display, board, k_max, *texts, fit)
            results.write_json("importance.json", made.importance)
            layers = placed(made.layer_importance, deepest, run.seed)
            job = replace(job_of(run, made, deepest, layers, space.weights), fit=fit)
            fit = paced(run, job, job.steps * trials_to_come(run, results, board), made, display, board).fit
            job = replace(job_of(run, made, base, (), space.weights), fit=fit)
            rows = run_trials(run, space, job, made, results, display, board)
            choice, row = chosen(run, space, rows, reach(run, sources, most))
            training = overlay(training_of(row, base), {"tokens": row["tokens"]})
            layers = placed(made.layer_importance, training, run.seed)
            job = replace(job_of(run, made, training, layers, space.weights), fit=fit)
            test = conclude(run, job, made, results, display, board, row["saved"])
        write_best(results, run, made, job, test, asdict(choice), k_max)
        write_run(results, run, display, sources, made)
        write_pages(results)
    display.say(said(choice))
    summary(display, choice.reason, test, job, made, results, choice.advised_k)
    return results.publish()


def trials_to_come(run: SearchRun, results: Results, board: Any) -> int:
    """Trials that each crew of a search, which may have begun before, still has to do."""
    import ray

    if run.strategy == "grow":
        return 1
    over = json.loads(file.read_text())["trials"] if (file := results.folder / "trials.json").exists() else ()
    had = sum(row["state"] != UNTOUCHED for row in over)
    return math.ceil((run.trials - had) / ray.get(board.crews.remote()))


def chosen(
    run: SearchRun,
    space: SearchSpace,
    rows: Sequence[Mapping[str, Any]],
    most: Reach,
    among: Sequence[Mapping[str, Any]] = (),
) -> tuple[Choice, Mapping[str, Any]]:
    """What a search that is over says, with all that it leaves open; and the row of the chosen trial.

    It is chosen `among` some of the rows where not all of them can be had any more.
    """
    among = among or rows
    choice = choose(among, space.weights, run.min_gain_per_layer)
    row = next(row for row in among if row["trial"] == choice.trial)
    choice = replace(
        choice,
        edges=edges_of(row, space, most, again(run), run.range),
        hyperparameters=shares(space, rows) if run.strategy == "trials" else {},
        hyperparameters_reliable=sum(row["state"] == "finished" for row in rows) >= RELIABLE,
        front=front_of(rows, space.weights) if run.pareto else (),
    )
    return choice, row


def report_again(run: SearchRun) -> str:
    """Write report and model card of a results folder again; returns its place.

    Raises :class:`UserError` when there is none, or when something in it isn't as it should be.
    """
    taken = ("name", "storage", "report_only", "comparison", "json_lines")
    others = [name for name in SearchRun.model_fields if name not in taken]
    refuse(run, others, "is for a search: leave it out with --report-only, where nothing is searched")
    results = Results(run.storage, run.name)
    if not run.name or not results.exists():
        raise UserError(f"{results.place} holds no results: --report-only takes --name and maybe --storage")
    if run.comparison:
        adopt_rivals(results, run.comparison)
    write_pages(results)
    place = results.publish()
    Display(run.json_lines).say(f"report.html: {place}/report.html")
    return place


def gone_on(run: SearchRun, results: Results) -> SearchRun:
    """The settings of a search that goes on, or of a finished one that is extended.

    Raises :class:`UserError` for flags that contradict them, and for more trials of an unfinished search.
    """
    about = results.about()
    begun = as_begun(run, about["run"])
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
    return overlay(begun, changes, where=f"--more-trials {run.more_trials}")


def space_of(run: SearchRun, about: Mapping[str, Any], say: Say = lambda text: None) -> SearchSpace:
    """The space that a search began with; that of its file, with the run's ranges, where none is kept.

    `about` is the run.json, and `say` hears of a file that has another one by now. Raises
    :class:`UserError` for a file that is needed and can't be used.
    """
    if "space" not in about:
        return with_ranges(load_search_space(run.search_space), run.range)
    kept = validated(SearchSpace, about["space"], "run.json: space")
    try:
        same = kept == with_ranges(load_search_space(run.search_space), run.range)
    except UserError:
        same = False
    if not same:
        say(
            f"{run.search_space} isn't what the search '{run.name}' began with any more: it goes on with "
            "what it was, and another --name begins one with what it is now"
        )
    return kept


def searchable(
    run: SearchRun, space: SearchSpace, sources: Sources, say: Say = lambda text: None
) -> tuple[SearchSpace, int]:
    """The space as it is searched, and the largest k that backbone and budget allow.

    The budget ends the range of k, which `say` hears of, and the paper's setting goes first. Raises
    :class:`UserError`.
    """
    most = sources.layers
    if run.max_new_params:
        backbone = sources.backbone
        total, sizes = layer_sizes(sources.config, backbone.trusted, backbone.revision)
        limit = amount(run.max_new_params, total)
        allowed, most = affordable(space, sizes, limit, f"--max-new-params {run.max_new_params}")
        if allowed != space:
            say(
                f"--max-new-params {run.max_new_params}: at most {limit / 1e6:.1f} M parameters are added, "
                f"so no k above {most} is tried"
            )
        space = allowed
    return paper_first(space), most


def again(run: SearchRun) -> str:
    """The command that starts such a search again."""
    return f"python scripts/tune_k.py {flags(run)}".strip()


def reach(run: SearchRun, sources: Sources, most: int) -> Reach:
    """How large k may be in such a search, `most` by its budget, and the command with twice that."""
    if not run.max_new_params:
        return Reach(sources.layers, most)
    dearer = overlay(run, {"max_new_params": doubled(run.max_new_params)})
    return Reach(sources.layers, most, f"--max-new-params {run.max_new_params}", again(dearer))


def pick(args: PickRun) -> str:
    """Choose anew among the trials of a finished search, by other weights; returns the results' place.

    Nothing is trained: of each candidate the weights were kept. Raises :class:`UserError` for bad input.
    """
    display = Display(args.json_lines)
    searched, results = as_finished(args)
    run = with_machine(searched, args)
    best = load_best(results.folder / "best.yaml")
    space = space_of(searched, results.about())
    weights = {"score.general": args.general, "score.domain": 1 - args.general}
    space = overlay(space, weights, where=f"--general {args.general}")
    rows = json.loads((results.folder / "trials.json").read_text())["trials"]
    rows = rescored(rows, space.weights)
    candidates = with_candidates(rows, results)
    launch.check_workers(run)
    sources = find_sources(run, display, made_from=results.about()["fingerprints"])
    space, most = searchable(searched, space, sources)
    choice, row = chosen(searched, space, rows, reach(searched, sources, most), candidates)
    training = overlay(training_of(row, TrainingSpec()), {"tokens": row["tokens"]})
    layers = [int(layer) for layer in row["layers"].split()]
    with at_work(run, results, display, trains=False) as (board, memory):
        fit = planned(run, sources, training, memory, display, layers)
        made = prepare(run, sources, display, board, best["k_max"], run.tokens_per_trial, fit=fit)
        job = replace(job_of(run, made, training, layers, space.weights), fit=fit)
        test = conclude(run, job, made, results, display, board, row["saved"])
    write_trials(results, rows)
    write_best(results, run, made, job, test, asdict(choice), best["k_max"])
    results.write_json("run.json", results.about() | {"pick": {name: getattr(args, name) for name in PICKED}})
    write_pages(results)
    display.say(said(choice))
    summary(display, choice.reason, test, job, made, results, choice.advised_k)
    return results.publish()


def as_finished(args: PickRun) -> tuple[SearchRun, Results]:
    """A finished search as it is picked from, and its folder. Raises :class:`UserError` for anything else."""
    storage, _, name = args.results.rpartition("/")
    results = Results(storage or ".", name)
    if not results.exists():
        raise UserError(f"{args.results} holds no search: give a results folder, such as results/NAME")
    results.open(resume=True)
    about = results.about()
    if "seconds" not in about or not (results.folder / "trials.json").exists():
        raise UserError(f"{args.results} holds no finished search to choose from")
    run = validated(SearchRun, about["run"], f"{args.results}/run.json")
    check_trust(args.trust_remote_code, about["run"], args.results)
    here = {"storage": storage or ".", "name": name, "min_gain_per_layer": args.min_gain_per_layer}
    return overlay(run, here), results


def with_machine(run: SearchRun, args: PickRun) -> SearchRun:
    """The settings of a search with the machine that is picked on: no trial is run, so one crew is enough."""
    changes = {name: getattr(args, name) for name in ("workers", "gpus_per_worker", "micro_batch", "cache")}
    changes = {name: value for name, value in changes.items() if value is not None}
    return overlay(run, changes | {"concurrent": 1, "min_workers": 0})


def with_candidates(rows: Sequence[Mapping[str, Any]], results: Results) -> list[dict[str, Any]]:
    """The rows with the places of the weights that were kept; finished ones without any don't count.

    Raises :class:`UserError` when no weights are left.
    """
    found = []
    for row in rows:
        place = f"{results.ray}/{TRIALS}/{row['trial']}"
        number = NO_STEP if row["state"] != "finished" else last_checkpoint(place)
        state = "given up" if row["state"] == "finished" and number == NO_STEP else row["state"]
        saved = None if number == NO_STEP else checkpoint_at(place, number)
        found.append({**row, "state": state, "saved": saved})
    if not any(row["saved"] for row in found):
        raise UserError(
            f"{results.place} has no candidates any more: their weights under ray/trials are gone"
        )
    return found


def train_full(args: TrainRun) -> str:
    """Train at full length with what a search found and export the model; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    display = Display(args.json_lines)
    best = load_best(args.config)
    check_trust(args.trust_remote_code, best["run"], args.config)
    run, training, results = at_full_length(args, best)
    launch.check_workers(run)
    began = results.about().get("fingerprints", backbone_of(best))  # text may have come since a search
    sources = find_sources(run, display, made_from=began)
    write_run(results, run, display, sources, training=training)
    command = f"scripts/train.py --config {shlex.quote(args.config)} --tokens {args.tokens}"
    with resumable(command, run, results, display):
        with at_work(run, results, display) as (board, memory):
            fit = planned(run, sources, training, memory, display, best["layers"])
            replays = training.replay > 0
            made = prepare(run, sources, display, board, best["k_max"], args.tokens, replays, fit=fit)
            results.write_json("importance.json", made.importance)
            weights = validated(ScoreWeights, best["score"], args.config)
            job = replace(job_of(run, made, training, tuple(best["layers"]), weights), fit=fit)
            job = paced(run, job, job.steps, made, display, board)
            with on_crew(display, board, "train", f"stage 2, {job.steps} steps", "train"):
                last = do(board, Task("train", "train", job, put(made.blocks), results.ray))
            test = conclude(run, job, made, results, display, board, last["saved"])
        write_curves(results, [{"trial": "training", "curve": last["curve"]}])
        write_best(results, run, made, job, test, best.get("choice", {}), best["k_max"])
        write_run(results, run, display, sources, made, training)
        write_pages(results)
    summary(display, f"Trained with the configuration of {args.config}.", test, job, made, results)
    return results.publish()


def at_full_length(args: TrainRun, best: Mapping[str, Any]) -> tuple[RunSpec, TrainingSpec, Results]:
    """The settings of a training with what a best.yaml holds, new or resumed, and its folder, which is made.

    Raises :class:`UserError` for settings that can't be.
    """
    if args.resume:
        results = Results(args.storage, args.name)
        results.open(resume=True)
        return *as_trained(args, best, results.about()), results
    run = settled(validated(RunSpec, {**best["run"], **given(args)}, args.config), "train")
    sizes = {"tokens": args.tokens, "reports": args.reports}
    training = validated(TrainingSpec, {**best["training"], **sizes}, args.config)
    results = Results(run.storage, run.name)
    results.open(resume=False)
    return run, training, results


def run_trials(
    run: SearchRun,
    space: SearchSpace,
    job: TrainJob,
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
    untouched = untouched_row(job, made.blocks)

    def ended(rows: list[dict[str, Any]]) -> None:
        write_trials(results, [untouched, *rows])
        pruned.update(prune([r for r in rows if r["saved"] not in pruned], space.weights, run.pareto))

    def watch(progress: Progresses, rows: list[dict[str, Any]]) -> None:
        show(progress, rows)
        now = [row["trial"] for row in rows if row["state"] != "running"]
        if now != over:
            over[:] = now
            ended([row for row in rows if row["trial"] in now])

    importance, blocks = made.layer_importance, put(made.blocks)
    plan = stages(run, space, job, importance) if run.strategy == "grow" else []
    with display.trials(len(plan) or run.trials, run.resume) as show, watching(board, watch):
        if plan:
            price = run.min_gain_per_layer or 0.0
            rows = grow(plan, blocks, f"{results.ray}/{TRIALS}", board, board.note.remote, price)
        else:
            question = question_of(run, space, made)
            spent = seconds_before(results.about()).get("search", 0.0)
            rows = search(run, space, job, importance, blocks, results.ray, question, spent)
    if plan and len(rows) < len(plan) and (why := enough(rows, space.weights, price)):
        display.say(why)
    if run.max_hours and len(rows) < run.trials:
        display.say(f"--max-hours {run.max_hours:g}: {len(rows)} of {run.trials} trials were begun in time")
    ended(rows)
    return [untouched, *rows]


def question_of(run: SearchRun, space: SearchSpace, made: Prepared) -> str:
    """The name of a study: searches of the same question share it, and learn from each other's trials."""
    sizes = (run.tokens_per_trial, run.validation_tokens, run.seq_len, run.task_items, run.score)
    probed = (run.probe, run.probe_tokens, run.probe_confidence, run.remeasure_tokens)
    tasks = (run.general_tasks, run.domain_tasks)
    asked = space.model_dump(exclude={"run", "first", "judge_after"})
    wanted = (run.pareto, run.min_gain_per_layer or 0.0)
    return f"adept_ray {fingerprint(made.fingerprints, sizes, probed, tasks, asked, run.dtype, wanted)}"


def probe_only(run: ProbeRun) -> str:
    """Run stage 1 alone; write importance.json and importance.png; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    display = Display(run.json_lines)
    refuse(run, UNPROBED, "is for models that are trained: there is none in a probe")
    run = settled(run, "probe")
    results = Results(run.storage, run.name)
    results.open(resume=False)
    launch.check_workers(run)
    sources = find_sources(run, display, with_domain=False)
    write_run(results, run, display, sources)
    with at_work(run, results, display, trains=False) as (board, memory):
        fit = planned(run, sources, TrainingSpec(k=0), memory, display, what="probe")
        # A pass more is little on a GPU, and what gradients of units take isn't in the plan.
        fit = replace(fit, recompute=run.activation_checkpointing == "on" or run.gpus_per_worker > 0)
        made = prepare(run, sources, display, board, run.k_max, fit=fit)
    results.write_json("importance.json", made.importance)
    draw_importance(made.importance, (), results.folder / "importance.png")
    write_run(results, run, display, sources, made)
    display.importance(made.importance)
    place = results.publish()
    display.say(f"importance.json and importance.png are in {place}")
    return place
