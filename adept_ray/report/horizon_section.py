"""The section of a search's page about longer trainings: which k, at which rate, and how sure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from adept_ray.report.drawing import BLUE, GREY, HALF, ORANGE, apply_style, make_axes
from adept_ray.report.evidence import Evidence
from adept_ray.report.html import inline_figure, make_figure, make_scrollable
from adept_ray.search.answers import CONFIDENCE, FAR, Horizon, format_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("tokens", "k", "best k", "base rate", "expected score")
ENDS = {
    "tolerance": "a larger k is expected to score more, but by less than the tolerance",
    "price": "more layers don't earn what is asked of each",
    "best": "more layers are expected to score less",
    "range": "k ends where the search's range does",
}


def build_horizon_section(results: Evidence) -> str:
    """k and rate against the length of the training that follows, as figures and as a table."""
    horizons = list_shown(results)
    share = f"{CONFIDENCE:.0%}"
    depth = make_figure(
        inline_figure(draw_depths(horizons), "horizon", "k against the length of a training", {}),
        f"The k for trainings of each length. Band: where the best k lies, with {share}. Dashed: the longest "
        "reading; what lies right of it wasn't measured.",
    )
    rate = make_figure(
        inline_figure(draw_rates(horizons), "horizon-rate", "Base rate against the length of a training", {}),
        f"The base rate for that k. Band: where the best one lies, with {share}.",
    )
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in describe_horizons(horizons))
    return f'{words}<div class="two">{depth}{rate}</div>{build_horizon_table(horizons)}'


def list_shown(results: Evidence) -> list[Horizon]:
    """The answers of a search by length, the one that was asked for among them."""
    choice = results.best.choice
    assert choice is not None
    shown = {horizon.tokens: horizon for horizon in (*choice.horizons, choice.asked) if horizon}
    return [shown[tokens] for tokens in sorted(shown)]


def describe_horizons(horizons: list[Horizon]) -> list[str]:
    """What was read, what keeps k from being larger, and what can't be known."""
    now = horizons[0]
    ends = {horizon.end: horizon for horizon in reversed(horizons)}
    why = "; ".join(f"from {format_tokens(ends[end].tokens)} tokens on {ENDS[end]}" for end in reversed(ends))
    return [
        f"A model of all readings, of up to {format_tokens(now.tokens)} tokens, says what trainings of other "
        f"lengths would score. The smallest k is taken that costs no more than {now.tolerance:.2f} points "
        f"against the best, with a probability of {CONFIDENCE:.0%}: {why}.",
        f"Beyond {FAR} times the longest reading this is a guess: no reading says how curves bend out there.",
    ]


@apply_style()
def draw_depths(horizons: list[Horizon]) -> Figure:
    """k against tokens, with the band in which the best k lies."""
    figure, axes = start_axes(horizons, "k, added layers")
    tokens = [horizon.tokens for horizon in horizons]
    low, high = [each.low_k for each in horizons], [each.high_k for each in horizons]
    axes.fill_between(tokens, low, high, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(tokens, [horizon.advised_k for horizon in horizons], color=ORANGE, marker="o", markersize=4)
    axes.set_ylim(bottom=0)
    return figure


@apply_style()
def draw_rates(horizons: list[Horizon]) -> Figure:
    """The base rate against tokens, with the band in which the best one lies."""
    figure, axes = start_axes(horizons, "base rate")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}")
    axes.yaxis.set_minor_formatter(lambda rate, _: "")
    tokens = [horizon.tokens for horizon in horizons]
    low, high = [each.low_rate for each in horizons], [each.high_rate for each in horizons]
    axes.fill_between(tokens, low, high, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(tokens, [horizon.rate for horizon in horizons], color=ORANGE, marker="o", markersize=4)
    return figure


def start_axes(horizons: list[Horizon], label: str) -> tuple[Figure, Axes]:
    """Axes over tokens, with the end of the readings marked."""
    figure, axes = make_axes(*HALF)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda tokens, _: format_tokens(tokens))
    axes.xaxis.set_minor_formatter(lambda tokens, _: "")
    axes.axvline(horizons[0].tokens, color=GREY, linewidth=1, linestyle="--")
    axes.set_xlabel("tokens of the training that follows")
    axes.set_ylabel(label)
    return figure, axes


def build_horizon_table(horizons: list[Horizon]) -> str:
    """A row for each length."""
    head = "".join(f"<th>{name}</th>" for name in NAMES)
    body = ""
    for each in horizons:
        cells = (
            format_tokens(each.tokens),
            str(each.advised_k),
            f"{each.low_k} … {each.high_k}",
            f"{each.rate:.1e} ({each.low_rate:.1e} … {each.high_rate:.1e})",
            f"{each.score:.1f} ± {each.error:.1f}",
        )
        body += f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    table = f'<table class="narrow"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    note = '<p class="note">train.py --tokens takes k and rate of the nearest length.</p>'
    return make_scrollable(table, "k and rate for each length") + note
