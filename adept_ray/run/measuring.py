"""The workers of a search that is to begin measure how fast they are at it."""

from __future__ import annotations

from dataclasses import replace

from adept_ray.config.errors import find_cause
from adept_ray.config.specs import DoctorRun
from adept_ray.config.validation import apply_changes
from adept_ray.engine.client import run_job
from adept_ray.engine.job import Job, JobFailed, is_out_of_memory
from adept_ray.run.check_list import Check, CheckList
from adept_ray.run.context import Context, Session, start_work
from adept_ray.run.preview import Preview
from adept_ray.run.speed import describe_forecast, describe_speed, pose_speed_question
from adept_ray.run.stage_one import store_blocks
from adept_ray.run.training import plan_fit

NEEDED = ("cluster", "nodes", "versions", "GPUs", "--storage")  # without these no worker can measure anything


def measure_search(session: Session[DoctorRun], preview: Preview, checks: CheckList) -> None:
    """Start the workers and have them measure what a search will ask of them; show what it comes to."""
    if preview.sources is None or preview.question is None or checks.has_fault(*NEEDED):
        why = "not measured: what is marked ✗ above has to be mended first"
        checks.show(Check("speed", why, looked_at=False))
        return
    # The doctor itself finds out whether compiling works, and goes on without.
    compiled = "off" if session.run.machine.compile == "off" else "auto"
    quiet = replace(session, run=apply_changes(session.run, {"compile": compiled}))
    load = preview.question.describe_load(session.run, preview.sources)
    with start_work(quiet, load) as context:
        asked = apply_changes(session.run, {"workers": context.run.machine.most_workers})
        measure_on_workers(context, asked, preview, checks)


def measure_on_workers(
    context: Context[DoctorRun], run: DoctorRun, preview: Preview, checks: CheckList
) -> None:
    """Have the workers measure a step, a validation batch and a probe batch; show what that comes to."""
    sources, question = preview.sources, preview.question
    assert sources is not None and question is not None
    fit = checks.attempt("memory", lambda: plan_fit(context, sources, question.deepest), lambda _: "enough")
    if fit is None:
        return
    asked = pose_speed_question(run, sources, question, fit)
    job = Job("speed", "measure_speed", asked.work, store_blocks(asked.blocks))
    try:
        with context.show_jobs("speed", "a step, a validation batch and a probe batch", "speed"):
            found = run_job(context.board, job)
    except JobFailed as problem:
        checks.show(Check("speed", "the workers can't do a step", (explain_failed_step(problem, run),)))
        return
    for check in describe_speed(run, asked, found):
        checks.show(check)
    line, seconds = describe_forecast(run, asked, found, sources.layers, context.board.count_crews())
    checks.show(line)
    context.display.emit("forecast", seconds=seconds, measured=found)


def explain_failed_step(problem: JobFailed, run: DoctorRun) -> str:
    """Why the workers couldn't make a step, and what mends it."""
    if is_out_of_memory(str(problem)):
        return (
            f"a worker runs out of memory at the deepest trial with --micro-batch {run.machine.micro_batch}: "
            "lower that, give --activation-checkpointing on, or search smaller k"
        )
    return f"a step fails on the workers, as it would in the search: {find_cause(problem)}"
