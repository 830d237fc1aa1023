"""The last lines of a run on the terminal."""

from __future__ import annotations

from dataclasses import asdict

from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.report.records import Importance, Test, check_record
from adept_ray.report.search_page import write_pages
from adept_ray.run.context import Session
from adept_ray.run.next_steps import list_next_steps
from adept_ray.run.preparing import Prepared
from adept_ray.search.answers import Choice
from adept_ray.search.choice_words import format_choice
from adept_ray.storage.records import TestedRecord
from adept_ray.training.work import TrainWork

SHOWN_FILES = ("report.html", "trials.csv", "best.yaml", "model")


def show_summary(
    session: Session[RunSpec],
    prepared: Prepared,
    work: TrainWork,
    test: TestedRecord,
    reason: str,
    advised_k: int | None = None,
) -> None:
    """Write the pages of a run and show its last lines.

    These are k, the advised k where it differs, why, what the model gained, and the files.
    """
    display, results = session.display, session.results
    write_pages(results)
    layers, k = " ".join(map(str, work.layers)) or "none", work.training.k
    advised_k = k if advised_k is None else advised_k
    head = f"k = {k}" if advised_k == k else f"advice: k = {advised_k}   exported: k = {k}"
    display.show(f"\n{head}   layers copied: {layers}\n{reason}")
    doubt = check_record(Importance, prepared.importance, "importance").express_doubt(work.layers)
    if doubt:
        display.show(doubt)
    tested = check_record(Test, test, "test")
    for side, change in (("general", tested.general), ("domain", tested.domain)):
        display.show(
            f"{side + ':':9} {change.describe_levels('bits per byte')} on the test split, "
            f"{change.delta:+.2f} ± {change.standard_error:.2f} {change.unit} against the untouched backbone"
        )
    if turned := describe_turning(tested):
        display.show(turned)
    files = {name: f"{results.place}/{name}" for name in SHOWN_FILES if results.has(name)}
    for name, place in files.items():
        display.show(f"{name + ':':12} {place}")
    facts = {"k": k, "advised_k": advised_k, "layers": work.layers, "reason": reason, "doubt": doubt}
    display.emit("summary", **facts, test=test, files=files, seconds=display.seconds)


def describe_turning(test: Test) -> str:
    """The line about the dial of the exported model, and its score; empty where it is as it was trained."""
    if not test.is_turned or test.plain is None:
        return ""
    error = "" if test.score_se is None else f" ± {test.score_se:.2f}"
    there = f"score {test.score:.2f}{error} on the test split"
    return f"dial {test.dial:g}: {there}, as trained {test.plain.score:.2f}"


def show_choice(
    session: Session[SearchRun], prepared: Prepared, work: TrainWork, test: TestedRecord, choice: Choice
) -> None:
    """Show the table of k that led to a choice, the summary, and to a person what may come next."""
    display = session.display
    display.say(format_choice(choice))
    if choice.asked:
        horizons = [asdict(horizon) for horizon in choice.horizons]
        display.emit("horizons", asked=asdict(choice.asked), horizons=horizons)
    show_summary(session, prepared, work, test, choice.reason, choice.advised_k)
    if display.live:
        steps = list_next_steps(session.run, session.results.place, work.training)
        width = max(map(len, steps), default=0)
        display.show("\n" + "\n".join(f"{what:{width}}  {command}" for what, command in steps.items()))
