"""The section of a page about the dial: how far the model is turned from its backbone, and what that does."""

from __future__ import annotations

from html import escape

from adept_ray.method.dial import FOLDS
from adept_ray.method.scores import is_finite
from adept_ray.report.evidence import Evidence
from adept_ray.report.html import format_signed, inline_figure, make_figure, make_scrollable
from adept_ray.report.trial_figures import draw_dial
from adept_ray.report.trial_sections import describe_trials
from adept_ray.search.trials import Reading, Trial

DIAL = (
    "The dial says how far a model is turned from its backbone (0) to what training made of it (1): what "
    "copies add to the residual stream is scaled by it. It is folded into the weights, so it costs nothing "
    "to run."
)


def build_dial_section(results: Evidence) -> str:
    """Score and changes of what was chosen against its dial, and the scores of other trials."""
    label = "Score, general and domain change against the dial"
    others = " Thin: the scores of other trials." if len(results.dials) > 1 else ""
    figure = make_figure(
        inline_figure(draw_dial(results), "dial", label, describe_trials(results)),
        "What was read on the validation split at the end of the training, at each dial that was tried; 0 is "
        f"the untouched backbone, the dashed line the exported model.{others}",
    )
    words = f"<p>{DIAL}</p><p>{escape(describe_dial(results))}</p>"
    return f'<div class="two">{figure}<div>{words}{build_dial_table(results)}</div></div>'


def describe_dial(results: Evidence) -> str:
    """Sentences: the dial of the exported model, and the validation score there and as it was trained."""
    exported, measured = results.best.test.dial, find_measured(results)
    if exported is None or measured is None or not is_finite(measured.dial):
        return ""
    plain = f"as it was trained {format_signed(measured.plain_score, 2)}"
    at = f"{format_signed(measured.score, 2)}, {plain}"
    if exported != measured.dial:
        return (
            f"Exported is dial {exported:g}, as it was asked for. Of those tried {measured.dial:g} is the "
            f"best: there the validation score is {at}."
        )
    return (
        f"Exported is dial {exported:g}, the best of those tried. The validation score there is {at}. Each "
        f"of {FOLDS} parts of the text counts at the dial that the other parts choose, so that choosing "
        "alone gains little."
    )


def find_measured(results: Evidence) -> Trial | Reading | None:
    """The chosen trial, or the last reading of a training at full length."""
    if results.trials:
        return next((trial for trial in results.trials if trial.name == results.chosen), None)
    curve = results.curves.get(results.chosen or "", [])
    return curve[-1] if curve else None


def build_dial_table(results: Evidence) -> str:
    """A row for each dial that was read of what was chosen."""
    points = results.dials.get(results.chosen or "", [])
    if not points:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("dial", "general Δ", "domain Δ", "score"))
    body = ""
    for point in points:
        css = ' class="won"' if point.dial == results.best.test.dial else ""
        numbers = (point.general_delta, point.domain_delta, point.score)
        cells = "".join(f"<td>{format_signed(number, 2)}</td>" for number in numbers)
        body += f"<tr{css}><td>{point.dial:g}</td>{cells}</tr>"
    table = f'<table class="narrow"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return make_scrollable(table, "What was read at each dial")
