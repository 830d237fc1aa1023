"""A run's training: how it fits, whether it is compiled, how it is tested and exported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from adept_ray.config.errors import UserError, find_cause, first_line
from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec
from adept_ray.engine.client import run_job
from adept_ray.engine.job import CrewLost, Job, JobFailed, JobRefused, Metrics
from adept_ray.method.fit import Fit
from adept_ray.method.memory_plan import allow_streams, choose_fit, plan_memory
from adept_ray.run.context import Context
from adept_ray.run.preparing import Prepared, load_test_blocks
from adept_ray.run.sources import Sources, name_parts
from adept_ray.run.stage_one import store_blocks
from adept_ray.storage.files import delete_folder, fetch_temporarily, format_json, measure_size
from adept_ray.storage.records import SideRecord, TestedRecord
from adept_ray.training.pace import compiling_pays
from adept_ray.training.state import STATE
from adept_ray.training.work import TrainWork

WORTH_ASKING = 1000  # steps of a worker; to find out whether compiled layers are faster takes as long as some


def build_work(
    run: RunSpec, prepared: Prepared, training: TrainingSpec, layers: Sequence[int], weights: ScoreWeights
) -> TrainWork:
    """The training of `layers` with `training` on what was prepared."""
    return TrainWork(
        backbone=prepared.sources.backbone,
        training=training,
        layers=tuple(layers),
        units=prepared.importance["units"],
        before=prepared.before,
        weights=weights,
        seq_len=run.seq_len,
        micro_batch=run.machine.micro_batch,
        seed=run.seed,
        items=prepared.sources.select_items("validation"),
        by_tasks=run.score == "tasks",
        fit=prepared.fit,
        parts=name_parts(run),
    )


def plan_fit(
    context: Context[RunSpec],
    sources: Sources,
    training: TrainingSpec,
    layers: Sequence[int] | None = None,
    what: str = "",
) -> Fit:
    """Show what `training` will take of a worker's memory; returns how it is made to fit.

    As long as `layers` aren't known they are taken for the lowest ones, where a gradient passes the most.
    Raises :class:`UserError` for what doesn't fit.
    """
    run, machine, display = context.run, context.run.machine, context.display
    lowest = tuple(range(training.k) if layers is None else layers)
    what = what or f"k = {training.k}"
    try:
        needs = plan_memory(sources.build_skeleton(), training, lowest, run.seq_len)
    except UserError:
        raise
    except Exception as problem:  # a pass without data is more than some architectures can do
        display.say(f"{what}: what it will take can't be said beforehand ({first_line(problem)})")
        switches = machine.activation_checkpointing, machine.sharding, machine.compile
        return Fit(*(switch == "on" for switch in switches))
    fit = choose_fit(needs, machine, context.memory, what)
    if training.tunes == "copies":
        fit = allow_streams(needs, machine, context.memory, fit)
    display.show_plan(needs, machine, fit, context.memory, what)
    context.hosts.check_training(needs, fit, machine.micro_batch, what, display.warn)
    return fit


def choose_compiling(context: Context[RunSpec], prepared: Prepared, work: TrainWork, steps: int) -> Fit:
    """How `work` is made to fit, with compiled layers where the run leaves that open and they pay.

    Whether they pay depends on the number of `steps`. Each command asks its own workers, because a resumed
    run may have others. The display says what was decided.
    """
    display = context.display
    if context.run.machine.compile != "auto" or steps < WORTH_ASKING or not work.layers:
        return work.fit
    try:
        with context.show_jobs("pace", "steps with and without torch.compile", "pace"):
            pace = run_job(context.board, Job("pace", "time_compiling", work, store_blocks(prepared.blocks)))
    except (CrewLost, JobRefused):
        raise
    except JobFailed as problem:
        display.say(f"trained without torch.compile: timing it failed ({find_cause(problem)})")
        return work.fit
    if pace["fault"]:
        display.say(f"trained without torch.compile, which a worker can't use: {pace['fault']}")
        return work.fit
    compiled = compiling_pays(pace, steps)
    times = {name: pace[name] for name in ("plain", "compiled", "compiling")}
    display.emit("pace", **times, steps=steps, compile=compiled)
    display.show(
        f"a step takes {pace['plain']:.3g} s, by torch.compile {pace['compiled']:.3g} s, which took "
        f"{pace['compiling']:.0f} s; {steps:,} steps: trained {'with' if compiled else 'without'} it"
    )
    return replace(work.fit, compiled=compiled)


def run_training(context: Context[RunSpec], prepared: Prepared, work: TrainWork) -> Metrics:
    """Run stage 2 as a job of its own, under a bar; returns its last report."""
    with context.show_jobs("train", f"stage 2, {work.steps} steps", "train"):
        job = Job("train", "train", work, store_blocks(prepared.blocks), context.results.ray)
        return run_job(context.board, job)


def test_and_export(
    context: Context[RunSpec], prepared: Prepared, work: TrainWork, checkpoint: str
) -> TestedRecord:
    """Look once at the test splits, export the model and the winner's rates; returns the test's numbers."""
    run, results, display = context.run, context.results, context.display
    backbone = prepared.sources.backbone
    about = {"backbone": backbone.name, "revision": backbone.revision, "run": run.name}
    with context.show_jobs("test", "test splits and export", "conclude"):
        blocks = store_blocks(load_test_blocks(run, prepared.sets))
        work = replace(work, items=prepared.sources.select_items("test"))
        job = Job("conclude", "conclude", work, blocks, results.ray, checkpoint=checkpoint, about=about)
        found = run_job(context.board, job)
        kept, whole = measure_size(checkpoint), measure_size(f"{found['saved']}/model")
        results.adopt_folder(f"{found['saved']}/model", "model")
        delete_folder(f"{results.ray}/conclude")
        with fetch_temporarily(checkpoint) as folder:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    results.write("rates.jsonl", "".join(format_json(row) + "\n" for row in state["rates"]))
    display.show(
        f"a checkpoint, of what is trained alone: {kept / 1e6:.1f} MB; the whole model: {whole / 1e6:.1f} MB"
    )
    display.emit("sizes", checkpoint=kept, model=whole)
    return {
        "general": describe_side(found, "general", work.by_tasks),
        "domain": describe_side(found, "domain", work.by_tasks),
        "score": found["score"],
        "score_se": found["score_se"],
        "dial": found["dial"],
        "plain": {
            "general_delta": found["plain_general_delta"],
            "domain_delta": found["plain_domain_delta"],
            "score": found["plain_score"],
        },
    }


def describe_side(found: Metrics, side: str, by_tasks: bool) -> SideRecord:
    """What best.yaml says of a side, from the metrics of the test; `measure` is what its delta is of."""
    measures = [measure for measure in ("bpb", "accuracy") if f"{side}_{measure}" in found]
    facts: dict[str, object] = {"measure": measures[-1] if by_tasks else "bpb"}
    for measure in measures:
        facts[f"before_{measure}"] = found[f"{side}_{measure}_before"]
        facts[f"after_{measure}"] = found[f"{side}_{measure}"]
    facts |= {"delta": found[f"{side}_delta"], "standard_error": found[f"{side}_delta_se"]}
    return cast("SideRecord", facts)
