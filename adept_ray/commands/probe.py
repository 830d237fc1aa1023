"""probe.py: stage 1 alone."""

from __future__ import annotations

from dataclasses import replace

from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.specs import ProbeRun, RunSpec, TrainingSpec
from adept_ray.config.validation import refuse_flags
from adept_ray.engine import cluster as launch
from adept_ray.report.figures import draw_importance
from adept_ray.run.context import open_context
from adept_ray.run.preparing import prepare
from adept_ray.run.record import record_run
from adept_ray.run.settings import (
    resolve_settings,
)
from adept_ray.run.sources import find_sources
from adept_ray.run.terminal import Display
from adept_ray.run.training import plan_fit
from adept_ray.storage.checkpoints import NO_STEP as NO_STEP
from adept_ray.storage.results import Results


def probe_layers(run: ProbeRun) -> str:
    """Run stage 1 alone; write importance.json and importance.png; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    display = Display(run.json_lines)
    refuse_flags(
        run, list_fields(RunSpec, Mark.UNPROBED), "is for models that are trained: there is none in a probe"
    )
    run = resolve_settings(run, "probe")
    results = Results(run.storage, run.name)
    results.open(resume=False)
    launch.check_workers(run)
    sources = find_sources(run, display, with_domain=False)
    record_run(results, run, display, sources)
    with open_context(run, results, display, trains=False) as (board, memory):
        fit = plan_fit(run, sources, TrainingSpec(k=0), memory, display, what="probe")
        # A pass more is little on a GPU, and what gradients of units take isn't in the plan.
        fit = replace(
            fit, recompute=run.machine.activation_checkpointing == "on" or run.machine.gpus_per_worker > 0
        )
        made = prepare(run, sources, display, board, run.k_max, fit=fit)
    results.write_json("importance.json", made.importance)
    draw_importance(made.importance, (), results.folder / "importance.png")
    record_run(results, run, display, sources, made)
    display.importance(made.importance)
    place = results.publish()
    display.say(f"importance.json and importance.png are in {place}")
    return place
