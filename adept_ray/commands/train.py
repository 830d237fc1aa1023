"""train.py: train at full length with what a search found."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec, TrainRun
from adept_ray.config.validation import validate_spec
from adept_ray.engine import cluster as launch
from adept_ray.engine.crew import Job, run_job
from adept_ray.report.search_page import write_pages
from adept_ray.run.context import open_context
from adept_ray.run.preparing import prepare, show_jobs
from adept_ray.run.record import record_best, record_run, show_summary
from adept_ray.run.resuming import explain_stops, resume_training
from adept_ray.run.settings import (
    check_trust,
    known_fingerprints,
    load_best,
    overrides_from,
    resolve_settings,
)
from adept_ray.run.sources import find_sources
from adept_ray.run.terminal import Display
from adept_ray.run.training import build_work, choose_compiling, plan_fit, store_blocks, test_and_export
from adept_ray.search.trials import (
    write_curves,
)
from adept_ray.storage.checkpoints import NO_STEP as NO_STEP
from adept_ray.storage.results import Results


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
