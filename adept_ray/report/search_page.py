"""``report.html``: one self-contained page about a search, or about a training at full length.

Reads only a results folder (see :mod:`adept_ray.report.evidence`), so a report can be written again long
after the run. The page needs no network, and its few lines of script only show what is also in its tables.
The same folder always gives the same bytes.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import yaml

from adept_ray.config.errors import UserError
from adept_ray.report.contamination_section import CONTAMINATION, build_contamination_section
from adept_ray.report.dial_section import build_dial_section
from adept_ray.report.evidence import FILES, RIVALS, Evidence, read_evidence
from adept_ray.report.first_screen import build_first_screen
from adept_ray.report.horizon_section import build_horizon_section
from adept_ray.report.html import (
    build_share_table,
    format_duration,
    format_share,
    list_definitions,
    write_page,
)
from adept_ray.report.layer_sections import build_importance_section, build_rates_section
from adept_ray.report.model_card import write_card
from adept_ray.report.records import RunRecord
from adept_ray.report.rerun import ELSEWHERE, format_rerun
from adept_ray.report.trial_sections import (
    build_curves_section,
    build_rivals_section,
    build_score_section,
    build_trade_section,
    build_trials_section,
)
from adept_ray.storage.results import Results


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a results folder and return its path.

    Raises :class:`UserError` that names the file when one is missing or does not hold what it should.
    """
    return write_search_page(folder, read_evidence(folder))


def write_search_page(folder: Path, results: Evidence) -> Path:
    """Write the page; a training at full length has fewer sections than a search. Returns its path."""
    searched = bool(results.trials)
    sections = {
        "Why this k": build_score_section if searched else None,
        "For longer trainings": build_horizon_section if searched and looks_ahead(results) else None,
        "Dial": build_dial_section if results.dials else None,
        "Domain against general": build_trade_section if searched else None,
        "Learning curves": build_curves_section if results.curves else None,
        "Importance of each layer": build_importance_section,
        "Unit rates": build_rates_section,
        "All trials": build_trials_section if searched else None,
        "Rivals": build_rivals_section if results.rivals else None,
        CONTAMINATION: build_found_section if results.run.contamination else None,
        "How this was made": build_making_section,
    }
    parts = {title: build(results) for title, build in sections.items() if build}
    title, first = f"{results.name}: adept_ray", build_first_screen(results)
    return write_page(folder / "report.html", title, first, parts)


def looks_ahead(results: Evidence) -> bool:
    """Whether the search answers for other lengths; an older folder doesn't."""
    return bool(results.best.choice and results.best.choice.horizons)


def build_found_section(results: Evidence) -> str:
    """Held-out text that stands in the training text, too."""
    assert results.run.contamination is not None
    return build_contamination_section(results.run.contamination)


def build_making_section(results: Evidence) -> str:
    """The command that does the same again, and what it takes to know of the run."""
    run, best = results.run, results.best
    settings = {name: value for name, value in best.run.items() if name not in ELSEWHERE}
    return (
        f"<h3>Does the same again</h3><pre>{escape(format_rerun(run))}</pre>{format_space(results)}"
        f"{format_text(run)}<h3>Licences and notes</h3>{list_definitions(run.notes)}"
        f'<div class="two"><div><h3>Wall clock</h3>{build_stages(run)}'
        f"<h3>Run</h3>{list_definitions(settings)}</div>"
        f"<div><h3>Training of the winner</h3>{list_definitions(best.training)}"
        f"<h3>Versions</h3>{list_definitions(run.versions)}"
        f"<h3>Fingerprints</h3>{list_definitions(run.fingerprints)}</div></div>"
    )


def format_space(results: Evidence) -> str:
    """The search space as it was; its file may hold another one by now."""
    if not results.run.space:
        return ""
    text = yaml.safe_dump(results.run.space, sort_keys=False, default_flow_style=None, width=100)
    return f"<h3>Search space</h3><pre>{escape(text)}</pre>"


def format_text(run: RunRecord) -> str:
    """What the winner's training took of each corpus."""
    rows = {
        f"{part.side}: {part.corpus}": f"{part.tokens:,} tokens ({part.share:.3g} of all, weight "
        f"{part.weight:g}), {part.passes:.2f} passes"
        for part in run.text
    }
    return f"<h3>Text that the winner was trained on</h3>{list_definitions(rows)}" if rows else ""


def build_stages(run: RunRecord) -> str:
    """The wall clock of every stage."""
    total, rows = run.total_seconds, ""
    for stage, seconds in run.seconds.items():
        share = seconds / total if total > 0 and stage != "total" else 0
        rows += format_share(stage, format_duration(seconds), share, "total" if stage == "total" else "")
    return build_share_table(rows)


def adopt_rivals(results: Results, comparison: str) -> None:
    """Copy the table of a comparison (a folder or URI) into `results`, where the report finds it.

    Raises :class:`UserError` where there is none, or one of another backbone or other corpora.
    """
    storage, _, name = comparison.rstrip("/").rpartition("/")
    rivals = Results(storage or ".", name)
    rivals.fetch((RIVALS, "run.json"))
    results.fetch(("run.json",))
    if not rivals.has(RIVALS):
        raise UserError(f"{comparison}: no {RIVALS} in it; give the results folder of scripts/compare.py")
    theirs, ours = (
        json.loads((r.folder / "run.json").read_text(encoding="utf-8")) for r in (rivals, results)
    )
    for key in ("backbone", "general", "domain"):
        names = [about["run"][key] for about in (theirs, ours)]
        if names[0] != names[1]:
            shown = [name if isinstance(name, str) else " ".join(name) for name in names]
            raise UserError(f"{comparison}: its {key} is {shown[0]}, that of {results.place} {shown[1]}")
    parts = (*theirs["fingerprints"], *ours["fingerprints"])
    for key in sorted({each for each in parts if each == "backbone" or " corpus" in each}):
        contents = {about["fingerprints"][key] for about in (theirs, ours) if key in about["fingerprints"]}
        if len(contents) > 1:
            raise UserError(f"{comparison}: its {key} has the name but not the content of {results.place}'s")
    results.write(RIVALS, (rivals.folder / RIVALS).read_text(encoding="utf-8"))


def write_pages(results: Results) -> None:
    """Write report and model card of what lies in `results`, here or behind its URI.

    Raises :class:`UserError` as :func:`write_report` does.
    """
    results.fetch(FILES)
    evidence = read_evidence(results.folder)
    write_search_page(results.folder, evidence)
    if results.has("model"):
        write_card(results.folder / "model", evidence)
