"""The commands that train: find k, train at full length, probe only. Arguments in, results folder out."""

from __future__ import annotations

import csv
import io
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from adept_ray import launch
from adept_ray.config import (
    ProbeRun,
    RunSpec,
    ScoreWeights,
    SearchRun,
    SearchSpace,
    TrainingSpec,
    TrainRun,
    UserError,
    load_search_space,
    validated,
)
from adept_ray.crew import Progresses, Task, do, watching
from adept_ray.display import Display
from adept_ray.figures import draw_importance
from adept_ray.placement import placed
from adept_ray.prepare import Prepared, find_sources, prepare
from adept_ray.report import write_report
from adept_ray.runs import (
    as_begun,
    at_work,
    check_backbone,
    check_same,
    conclude,
    given,
    job_of,
    load_best,
    planned,
    put,
    resumable,
    settled,
    summary,
    write_best,
    write_run,
)
from adept_ray.search import check_space, choose, search, training_of
from adept_ray.storage import Results, delete
from adept_ray.train import TrainJob


def find_k(run: SearchRun) -> str:
    """Search k, recompute frequency and base rate; write the results folder; returns its place.

    Raises :class:`UserError` for bad input, KeyboardInterrupt when it was stopped half-way.
    """
    display = Display()
    run = settled(run)
    results = Results(run.storage, run.name)
    results.open(run.resume)
    if run.resume:
        run = as_begun(run, json.loads((results.folder / "run.json").read_text())["run"])
    space = load_search_space(run.search_space)
    launch.check_workers(run)
    sources = find_sources(run, display)
    base = TrainingSpec(tokens=run.tokens_per_trial)
    deepest, k_max = check_space(space, sources.layers, base)
    write_run(results, run, display, sources)
    with resumable("scripts/tune_k.py", run), at_work(run, results, display) as (board, memory):
        fit = planned(run, sources, deepest, memory, display)
        replays = "replay" in space.parameters
        receptive = "placement" in space.parameters and "receptive" in space.parameters["placement"].values
        made = prepare(run, sources, display, board, k_max, run.tokens_per_trial, replays, receptive, fit)
        results.write_json("importance.json", made.importance)
        job = replace(job_of(run, made, base, (), space.score), fit=fit)
        rows = run_trials(run, space, job, made, results, display, board)
        choice = choose(rows)
        row = next(row for row in rows if row["trial"] == choice.trial)
        training = training_of(row, base)
        job = job_of(run, made, training, placed(made.layer_importance, training, run.seed), space.score)
        test = conclude(run, job, made, results, display, board, row["saved"])
        delete_checkpoints(rows, choice.trial)
    write_best(results, run, made, job, test, asdict(choice), k_max)
    write_run(results, run, display, sources, made)
    write_report(results.folder)
    summary(display, choice.reason, test, job, made, results)
    return results.publish()


def train_full(args: TrainRun) -> str:
    """Train at full length with what a search found and export the model; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    display = Display()
    best = load_best(args.config)
    run = validated(RunSpec, {**best["run"], **given(args)}, str(args.config))
    run = settled(run, "train")
    results = Results(run.storage, run.name)
    results.open(args.resume)
    training = validated(
        TrainingSpec, {**best["training"], "tokens": args.tokens, "reports": args.reports}, str(args.config)
    )
    if args.resume:
        check_same(training, json.loads((results.folder / "run.json").read_text())["training"])
    launch.check_workers(run)
    sources = find_sources(run, display)
    check_backbone(best, sources, run, args.config)
    write_run(results, run, display, sources, training=training)
    again = f"scripts/train.py --config {shlex.quote(str(args.config))} --tokens {args.tokens}"
    with resumable(again, run), at_work(run, results, display) as (board, memory):
        fit = planned(run, sources, training, memory, display, best["layers"])
        replays = training.replay > 0
        made = prepare(run, sources, display, board, best["k_max"], args.tokens, replays, fit=fit)
        results.write_json("importance.json", made.importance)
        weights = validated(ScoreWeights, best["score"], str(args.config))
        job = job_of(run, made, training, tuple(best["layers"]), weights)
        job = replace(job, fit=fit)
        with (
            display.stage("train", f"stage 2, {job.steps} steps") as update,
            watching(board, lambda progress, _: update(*progress.get("train", (0, job.steps)))),
        ):
            last = do(board, Task("train", "train", job, put(made.blocks), results.ray))
        test = conclude(run, job, made, results, display, board, last["saved"])
    write_best(results, run, made, job, test, best.get("choice", {}), best["k_max"])
    write_run(results, run, display, sources, made, training)
    summary(display, f"Trained with the configuration of {args.config}.", test, job, made, results)
    return results.publish()


def run_trials(
    run: SearchRun,
    space: SearchSpace,
    job: TrainJob,
    made: Prepared,
    results: Results,
    display: Display,
    board: Any,
) -> list[dict[str, Any]]:
    """Search under a live table; trials.csv is written as trials end."""
    over: list[str] = []

    def watch(progress: Progresses, rows: list[dict[str, Any]]) -> None:
        show(progress, rows)
        now = [row["trial"] for row in rows if row["state"] != "running"]
        if now != over:
            over[:] = now
            write_trials(results, [row for row in rows if row["trial"] in now])

    started = time.monotonic()
    with display.trials(run.trials) as show, watching(board, watch):
        rows = search(run, space, job, made.layer_importance, put(made.blocks), results.ray)
    display.seconds["search"] = round(time.monotonic() - started, 1)
    display.say(f"search: {display.seconds['search']:.1f} s")
    write_trials(results, rows)
    return rows


def write_trials(results: Results, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write trials.csv."""
    text = io.StringIO()
    names = [
        name
        for name in rows[0]
        if name not in ("saved", "error")
        and (not name.endswith("_accuracy") or any(row[name] is not None for row in rows))
    ]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    results.write("trials.csv", text.getvalue())


def delete_checkpoints(rows: Sequence[Mapping[str, Any]], keep: str) -> None:
    """Delete the checkpoints of all trials but the chosen one: they are most of the folder's size."""
    for row in rows:
        if row["saved"] and row["trial"] != keep:
            delete(row["saved"])


def probe_only(run: ProbeRun) -> str:
    """Run stage 1 alone; write importance.json and importance.png; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    display = Display()
    if run.general_tasks or run.domain_tasks:
        raise UserError("--general-tasks and --domain-tasks judge trained models: there is none in a probe")
    run = settled(run, "probe")
    results = Results(run.storage, run.name)
    results.open(resume=False)
    launch.check_workers(run)
    sources = find_sources(run, display, with_domain=False)
    write_run(results, run, display, sources)
    with at_work(run, results, display) as (board, memory):
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
