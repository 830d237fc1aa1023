"""The report and the model card of a results folder, written again."""

from __future__ import annotations

from adept_ray.config.errors import UserError
from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.specs import SearchRun
from adept_ray.config.validation import refuse_flags
from adept_ray.report.search_page import adopt_rivals, write_pages
from adept_ray.run.terminal import Display
from adept_ray.storage.results import Results


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
