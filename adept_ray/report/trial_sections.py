"""The sections of a search's page about its trials: scores, trade-offs, curves, the table, rivals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Literal

from adept_ray.method.dial import TRAINED
from adept_ray.method.scores import is_finite
from adept_ray.report.comparison_page import draw_figures, express_verdict
from adept_ray.report.evidence import Evidence
from adept_ray.report.first_screen import format_formula
from adept_ray.report.html import (
    NONE,
    build_share_table,
    format_share,
    format_signed,
    inline_figure,
    make_figure,
    make_scrollable,
)
from adept_ray.report.trial_figures import draw_curves, draw_scores, draw_trade
from adept_ray.search.trials import Trial

HEADINGS = {
    "recompute_every": "recompute every",
    "base_lr": "base rate",
    "general_bpb": "general bpb",
    "domain_bpb": "domain bpb",
    "general_accuracy": "general accuracy",
    "domain_accuracy": "domain accuracy",
    "general_delta": "general Δ",
    "domain_delta": "domain Δ",
    "score_se": "±\u00a0s.e.",
    "plain_score": "as trained",
}
DIGITS = {
    "general_bpb": ".4f",
    "domain_bpb": ".4f",
    "general_accuracy": ".1%",
    "domain_accuracy": ".1%",
    "score_se": ".3f",
    "tokens": ",.0f",
    "seconds": ".0f",
}
WORDS = ("trial", "layers", "normalization", "granularity", "sign", "placement", "state")
NUMBERS = (*DIGITS, "general_delta", "domain_delta", "score", "dial", "plain_score")
ANSWERS = {None: NONE, True: "yes", False: "no"}
SIGNED = {"general_delta": 2, "domain_delta": 2, "score": 3, "plain_score": 3}
CURVES: tuple[tuple[Literal["score", "loss"], str, str], ...] = (
    ("score", "Score of every trial as it trained", "Validation score at every report of a trial."),
    ("loss", "Training loss of every trial", "Loss of the step before each report, on the training text."),
)


def build_score_section(results: Evidence) -> str:
    """Score against k, as a figure and as a table."""
    label = f"Score of every trial against k; chosen k = {results.best.k}"
    expected = any(depth.rate for depth in results.depths)
    line = " Line: what each k is expected to score at its best rate, ± standard error." if expected else ""
    score = make_figure(
        inline_figure(draw_scores(results), "score", label, describe_trials(results)),
        f"Validation score{format_formula(results)}; 0 is the untouched backbone. Filled: finished, hollow: "
        f"stopped early.{line}",
    )
    return f'<div class="two">{score}<div>{build_depth_table(results)}{explain_price(results)}</div></div>'


def build_depth_table(results: Evidence) -> str:
    """A row for each k: what it is expected to score, and what it gains over the next smaller one."""
    depths = results.depths
    is_expected = any(depth.rate for depth in depths)  # an older folder has what the best trials scored
    has_gains = any(depth.gain is not None for depth in depths)
    has_steps = results.best.choice is not None and bool(results.best.choice.min_gain_per_layer)
    names = ["k", "trials", "score" if is_expected else "best score", *["rate"] * is_expected]
    names += ["gain"] * has_gains + ["a layer"] * has_steps + ["apart"] * has_gains + ["best"] * is_expected
    head = "".join(f"<th>{name}</th>" for name in names)
    unfinished = results.best.choice.unfinished if results.best.choice else {}
    rows = {
        k: f'<tr><td>{k}</td><td>{trials}</td><td colspan="{len(names) - 2}">none finished</td></tr>'
        for k, trials in unfinished.items()
    }
    for depth in depths:
        cells = [str(depth.k), NONE if depth.trials is None else str(depth.trials)]
        cells.append(format_with_error(depth.score, depth.standard_error) if depth.k else "0")
        cells += [f"{depth.rate:.1e}" if depth.rate else NONE] * is_expected
        cells += [format_with_error(depth.gain, depth.gain_error)] * has_gains
        cells += [format_signed(depth.per_layer, 2)] * has_steps
        cells += [ANSWERS[depth.differs]] * has_gains
        cells += [NONE if depth.chance is None else f"{depth.chance:.0%}"] * is_expected
        css = ' class="won"' if depth.k == results.best.k else ""
        rows[depth.k] = f"<tr{css}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    body = "".join(rows[k] for k in sorted(rows))
    table = f'<table class="narrow"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    note = explain_depths(is_expected, has_gains, has_steps)
    return make_scrollable(table, "Score of each k") + f'<p class="note">{note}</p>'


def explain_depths(is_expected: bool, has_gains: bool, has_steps: bool) -> str:
    """What the columns of the table per k are."""
    if not has_gains:
        return "The best finished trial of each k, ± standard error over validation text."
    steps = "a layer: by the layers added; " * has_steps
    if not is_expected:
        return (
            "Gain: over the next smaller k, paired on the same validation text, ± standard error; "
            f"{steps}apart: whether it stands out of that noise."
        )
    return (
        "Each k at its own best rate, by a model of all readings; errors are of documents, seeds and rates. "
        "Gain: over the next smaller k, without what all share; "
        f"{steps}apart: whether it stands out of its error; best: the probability of being the best k."
    )


def format_with_error(value: float | None, error: float | None) -> str:
    """A number with its standard error, as far as both are known."""
    return format_signed(value, 2) + (f" ± {error:.2f}" if is_finite(value) and is_finite(error) else "")


def explain_price(results: Evidence) -> str:
    """What a layer had to earn, if anything."""
    least = results.best.choice.min_gain_per_layer if results.best.choice else None
    if not least:
        return ""
    return f'<p class="note">A layer had to earn {least:g} points of score to be added.</p>'


def build_trade_section(results: Evidence) -> str:
    """General against domain change of every trial, and which parameters mattered."""
    tips = describe_trials(results)
    what = "trials at dials" if results.dials else "trials"
    dashed = f" Dashed: the front, {what} that no other beats on both sides."
    front = dashed if len(results.front) > 1 else ""
    trade = make_figure(
        inline_figure(draw_trade(results), "trade", "General against domain change of every trial", tips),
        f"What each trial gained in the domain and kept or lost in general, on the validation split.{front}",
    )
    return f'<div class="two">{trade}<div>{build_shares(results)}</div></div>'


def build_shares(results: Evidence) -> str:
    """The share of each searched parameter in what good trials have in common."""
    choice = results.best.choice
    if not choice or not choice.hyperparameters:
        return ""
    ranked = sorted(choice.hyperparameters.items(), key=lambda item: -item[1])
    rows = "".join(format_share(HEADINGS.get(name, name), f"{share:.0%}", share) for name, share in ranked)
    doubt = (
        ""
        if choice.hyperparameters_reliable
        else " Unreliable: too few trials finished to tell one parameter's part from another's."
    )
    return (
        f"<h3>What made the difference</h3>{build_share_table(rows)}"
        '<p class="note">Share of each searched parameter in a finished trial being in the better half '
        f"(PED-ANOVA).{doubt}</p>"
    )


def explain_curves(results: Evidence) -> str:
    """What to know of the readings of a curve where it isn't one training that is read as it goes."""
    if results.is_grown:
        return " Each depth continues from the end of the one before."
    if results.schedule != "wsd":
        return ""
    if results.trials:
        return " Each reading is the end of a branch, a whole training on so many tokens."
    return " The readings before the last one are on the plateau, before the decay."


def build_curves_section(results: Evidence) -> str:
    """What every trial reported as it trained."""
    tips, start = describe_trials(results), explain_curves(results)
    parts = ""
    for what, label, caption in CURVES:
        svg = inline_figure(draw_curves(results, what), f"curve-{what}", label, tips)
        parts += make_figure(svg, caption + start)
    return f'<div class="two">{parts}</div>'


def build_trials_section(results: Evidence) -> str:
    """The table of all trials."""
    columns = list(results.rows[0])
    winner = results.best.trial
    head = "".join(format_field("th", name, HEADINGS.get(name, name.replace("_", " "))) for name in columns)
    body = ""
    for number, row in enumerate(results.rows):
        is_chosen = row["trial"] == winner
        cells = {name: format_cell(name, row[name]) for name in columns}
        cells["trial"] += " ◆" if is_chosen else ""
        fields = "".join(format_field("td", name, text) for name, text in cells.items())
        css = "won" if is_chosen else escape(row["state"])
        body += f'<tr class="{css}" data-of="trial{number}">{fields}</tr>\n'
    table = f'<table class="trials"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    legend = "" if winner is None else "◆ the chosen trial. "
    turned = (
        "As trained: the score at dial 1; the others are of the dial that is named. "
        if any(trial.plain_score is not None for trial in results.trials)
        else ""
    )
    note = f'<p class="note">{legend}{turned}All numbers are from the validation split.</p>'
    return note + make_scrollable(table, "All trials")


def format_field(tag: str, column: str, text: str) -> str:
    """A field of the table in HTML."""
    css = f' class="words {column}"' if column in WORDS else ""
    return f"<{tag}{css}>{escape(text)}</{tag}>"


def format_cell(column: str, text: str) -> str:
    """A field of trials.csv, rounded to what a reader can use."""
    if column in WORDS or not text:
        return text or NONE
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        return NONE
    if column in SIGNED:
        return format_signed(value, SIGNED[column])
    return format(value, DIGITS.get(column, "g" if value.is_integer() else ".3g")).replace("-", "−", 1)


def describe_trials(results: Evidence) -> dict[str, str]:
    """The words for every trial's mark, by its id in a figure."""
    pairs = enumerate(zip(results.trials, results.rows, strict=True))
    chosen = results.best.trial
    return {f"trial{i}": describe_trial(trial, row, trial.name == chosen) for i, (trial, row) in pairs}


def describe_trial(trial: Trial, row: Mapping[str, str], is_chosen: bool) -> str:
    """The words for a trial's mark in a figure; `row` has its settings."""
    settings = [n for n in row if n not in NUMBERS and n not in ("trial", "k", "layers", "state") and row[n]]
    setting = ", ".join(f"{HEADINGS.get(name, name)} {format_cell(name, row[name])}" for name in settings)
    error = f" ± {trial.score_se:.2f}" if is_finite(trial.score_se) else ""
    lines = (
        f"{trial.name}, k = {trial.k}, {'chosen' if is_chosen else trial.state}",
        f"score {format_signed(trial.score, 2)}{error}{format_turn(trial)}",
        f"general Δ {format_signed(trial.general_delta, 2)}, domain Δ {format_signed(trial.domain_delta, 2)}",
        setting,
    )
    return "\n".join(line for line in lines if line)


def format_turn(trial: Trial) -> str:
    """The words for a trial's dial, to follow its score; none where it scores what was trained."""
    if trial.dial is None or trial.dial == TRAINED:
        return ""
    return f" at dial {trial.dial:g}, as trained {format_signed(trial.plain_score, 2)}"


def build_rivals_section(results: Evidence) -> str:
    """What a comparison says of the rivals."""
    summaries = [rival.model_dump() for rival in results.rivals]
    note = (
        "Means over seeds ± half of the 95 % interval, of a comparison on equal tokens with a base rate of "
        "its own for each method. Its trainings aren't the trials above."
    )
    return f'<p>{escape(express_verdict(summaries))}</p>{draw_figures(summaries)}<p class="note">{note}</p>'
