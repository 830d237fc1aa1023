"""compare.py: ADEPT and its rivals at equal tokens."""

from __future__ import annotations

from dataclasses import replace

from adept_ray.config.specs import (
    CompareRun,
)
from adept_ray.method.placement import check_placement
from adept_ray.report.comparison_page import express_verdict, write_comparison
from adept_ray.rivals.methods import list_entrants
from adept_ray.run.comparison import build_field, list_needs, plan_rivals, run_comparison
from adept_ray.run.context import open_context, open_session
from adept_ray.run.examination import plan_refusal
from adept_ray.run.load import describe_load
from adept_ray.run.preparing import prepare
from adept_ray.run.record import record_run
from adept_ray.run.resuming import explain_stops, resume_settings
from adept_ray.run.settings import (
    resolve_settings,
)
from adept_ray.run.sources import count_train_tokens, find_sources


def compare_methods(run: CompareRun) -> str:
    """Train and score the rivals on the same blocks; write the comparison; returns the results' place.

    Raises :class:`UserError` for bad input, KeyboardInterrupt when it was stopped half-way.
    """
    session = open_session(resolve_settings(run, "compare"), run.resume)
    results, display = session.results, session.display
    if run.resume:
        session = replace(session, run=resume_settings(session.run, results.read_record()["run"]))
    run = session.run
    rivals = list_entrants(run)
    distinct = run.tokens // run.passes * (run.seeds + 1)
    sources = find_sources(session, train_tokens=count_train_tokens(distinct, True))
    for rival in rivals:
        check_placement(rival.training, sources.layers)
    record_run(session, sources)
    with explain_stops(session, "compare"):
        load = describe_load(run, sources, [rival.training for rival in rivals])
        with open_context(session, load, plan_refusal(session, sources)) as context:
            rivals = plan_rivals(context, sources, rivals)
            prepared = prepare(context, sources, list_needs(run, rivals, sources))
            results.write_json("importance.json", prepared.importance)
            rows = run_comparison(context, rivals, build_field(context, prepared))
        record_run(session, sources, prepared)
        about = {rival.label: rival.about for rival in rivals}
        settings = results.read_record()["run"]
        summaries = write_comparison(results.folder, rows, about, settings, prepared.contamination)
        display.say(f"\n{express_verdict(summaries)}")
        display.show_comparison(summaries)
        for name in ("comparison.html", "comparison.csv", "runs.csv"):
            display.say(f"{name + ':':16} {results.place}/{name}")
        return results.publish()
