"""probe.py: stage 1 alone."""

from __future__ import annotations

from dataclasses import replace

from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.specs import ProbeRun, RunSpec, TrainingSpec
from adept_ray.config.validation import refuse_flags
from adept_ray.method.anatomy import family_of_config
from adept_ray.report.layer_figures import save_importance
from adept_ray.run.context import open_context, open_session
from adept_ray.run.examination import plan_refusal
from adept_ray.run.load import describe_measuring
from adept_ray.run.preparing import prepare
from adept_ray.run.record import record_run
from adept_ray.run.settings import resolve_settings
from adept_ray.run.sources import Needs, find_sources
from adept_ray.run.training import plan_fit


def probe_layers(run: ProbeRun) -> str:
    """Run stage 1 alone; write importance.json and importance.png; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    reason = "is for models that are trained: there is none in a probe, so leave it out"
    refuse_flags(run, list_fields(RunSpec, Mark.UNPROBED), reason)
    session = open_session(resolve_settings(run, "probe"))
    run, results, display = session.run, session.results, session.display
    sources = find_sources(session, with_domain=False)
    display.say(family_of_config(sources.config).describe())
    record_run(session, sources)
    load = describe_measuring(run, run.probe_tokens)
    with open_context(session, load, plan_refusal(session, sources), trains=False) as context:
        fit = plan_fit(context, sources, TrainingSpec(k=0), what="probe")
        # A pass more is little on a GPU, and what gradients of units take isn't in the plan.
        again = run.machine.activation_checkpointing == "on" or run.machine.on_gpus
        prepared = prepare(context, sources, Needs(run.k_max, fit=replace(fit, recompute=again)))
    results.write_json("importance.json", prepared.importance)
    save_importance(prepared.importance, (), results.folder / "importance.png")
    record_run(session, sources, prepared)
    display.show_importance(prepared.importance)
    place = results.publish()
    display.say(f"importance.json and importance.png are in {place}")
    return place
