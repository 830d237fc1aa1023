"""``comparison.html``: one self-contained page that sets the methods of a comparison side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from adept_ray.report.contamination_section import CONTAMINATION, build_contamination_section
from adept_ray.report.html import (
    NONE,
    format_signed,
    inline_figure,
    list_definitions,
    make_card,
    make_figure,
    make_scrollable,
    write_page,
)
from adept_ray.report.method_figures import draw_ranking, draw_sides
from adept_ray.report.records import Contamination, check_record, list_corpora
from adept_ray.rivals.table import (
    MEASURE,
    ComparedTraining,
    Summary,
    format_csv,
    is_dialled,
    summarise_methods,
)
from adept_ray.storage.records import ContaminationRecord

COLUMNS = {
    "method": "method",
    "score": "score",
    "dial": "dial",
    "plain_score": "as trained",
    "against_adept": "score − adept",
    "general_delta": "general Δ",
    "domain_delta": "domain Δ",
    "general_accuracy": "general accuracy %",
    "domain_accuracy": "domain accuracy %",
    "base_lr": "base rate",
    "layers": "layers",
    "trained_parameters": "trained",
    "training_seconds": "seconds",
    "peak_gib": "peak GiB",
    "seeds": "seeds",
}
WORDS = ("method", "layers")
SOMETIMES = ("general_accuracy", "domain_accuracy", "dial", "plain_score")  # columns that may be empty


def write_comparison(
    folder: Path,
    rows: Sequence[ComparedTraining],
    about: Mapping[str, str],
    settings: Mapping[str, object],
    contamination: ContaminationRecord | None = None,
) -> list[dict[str, object]]:
    """Write comparison.csv and comparison.html into `folder`; returns the summaries, a row a method.

    `about` says in words what each method is; `settings` are those of the comparison, nested or not;
    `contamination` is what training text has of all that they are judged by, if that is known.
    """
    summaries = summarise_methods(rows)
    (folder / "comparison.csv").write_text(format_csv(summaries), encoding="utf-8")
    sections = {
        "Score": draw_figures(summaries),
        "All methods": build_table(summaries, about),
        "Base rates tried": list_rates(rows),
    }
    if contamination:
        found = check_record(Contamination, contamination, CONTAMINATION)
        sections[CONTAMINATION] = build_contamination_section(found)
    sections["How this was made"] = list_definitions(settings)
    write_page(
        folder / "comparison.html", "Comparison: adept_ray", build_first_screen(summaries, settings), sections
    )
    return summaries


def build_first_screen(summaries: Sequence[Summary], settings: Mapping[str, object]) -> str:
    """Who won, and where ADEPT stands."""
    ranked = rank_methods(summaries)
    best = ranked[0]
    cards = make_card("Best score", f"{best['method']}", format_interval(best, "score"))
    for row in ranked:
        if row["method"] == MEASURE and row is not best:
            cards += make_card(
                "ADEPT", f"{format_signed(row['score'], 2)}", f"place {format_place(row, ranked)}"
            )
    cards += make_card(
        "Tokens each", f"{best['tokens'] or ranked[-1]['tokens'] or 0:,}", "the same for every method"
    )
    where = f"{settings.get('backbone', '')} on {' + '.join(list_corpora(settings, 'domain'))}"
    return (
        f'<p class="eyebrow">adept_ray · comparison</p><h1>{escape(str(best["method"]))} leads</h1>'
        f'<p class="lead">{escape(express_verdict(summaries))}</p>'
        f'<p>{escape(where)}</p><div class="cards">{cards}</div>'
        '<p class="note">Score: weighted reduction of bits per byte in percent of the untouched backbone, on '
        "the test splits (of a side judged by tasks: gain in accuracy, points); positive is better. ± is "
        "half of a 95 % confidence interval over seeds (Student’s t): it says what another draw of training "
        "blocks would change, not what another test text would.</p>"
    )


def rank_methods(summaries: Sequence[Summary]) -> list[Summary]:
    """The methods with a score, best first."""
    scored = [row for row in summaries if row["score"] is not None]
    return sorted(scored, key=lambda row: -row["score"])


def format_place(row: Summary, ranked: Sequence[Summary]) -> str:
    """A method's place, such as "2 of 11"."""
    return f"{ranked.index(row) + 1} of {len(ranked)}"


def express_verdict(summaries: Sequence[Summary]) -> str:
    """Sentences: ADEPT's place, and which rivals are better or worse beyond the noise over seeds."""
    ranked = rank_methods(summaries)
    own = next((row for row in ranked if row["method"] == MEASURE), None)
    if own is None:
        return f"{ranked[0]['method']} has the best mean score of {len(ranked)} methods."
    rivals = [row for row in ranked if row["against_adept"] is not None]
    differing = [row for row in rivals if is_beyond_noise(row)]
    better = [str(row["method"]) for row in differing if row["against_adept"] > 0]
    worse = [str(row["method"]) for row in differing if row["against_adept"] < 0]
    others = [str(row["method"]) for row in rivals if row not in differing]
    parts = (
        ("Better beyond the noise over seeds: ", better),
        ("Worse: ", worse),
        ("Not told apart: ", others),
    )
    sentences = " ".join(f"{what}{', '.join(names)}." for what, names in parts if names)
    place = f"ADEPT is number {format_place(own, ranked)} by mean score."
    return " ".join(filter(None, (place, sentences, describe_dials(ranked, own))))


def describe_dials(ranked: Sequence[Summary], own: Summary) -> str:
    """A sentence: whether scores are those of turned models, and ADEPT's place as all were trained.

    Empty for an older comparison, which knows no dials.
    """
    turned = [row for row in ranked if is_dialled(row)]
    if all(row.get("plain_score") is None for row in ranked):
        return f"Every model is scored at dial {turned[0]['dial']:g}, as it was asked for." if turned else ""
    if not turned:
        return "All models are scored as they were trained."
    plain = sorted(ranked, key=read_plain_score, reverse=True)
    scores = f"{plain[0]['method']} leads with {format_signed(read_plain_score(plain[0]), 2)}"
    return (
        "Every model is scored at the dial that validation text likes best; as they were trained ADEPT is "
        f"number {format_place(own, plain)}, with {format_signed(read_plain_score(own), 2)}, and {scores}."
    )


def read_plain_score(row: Summary) -> float:
    """The mean score of a method's models as they were trained; what trains nothing has but one score."""
    return float(row["score"] if row.get("plain_score") is None else row["plain_score"])


def is_beyond_noise(row: Summary) -> bool:
    """Whether the interval of a difference leaves out 0; a single seed can't say so."""
    half = row["against_adept_ci"]
    return half is not None and abs(row["against_adept"]) > half


def format_interval(row: Summary, name: str, digits: int = 2) -> str:
    """A mean with half its interval, or a dash."""
    if row[name] is None:
        return NONE
    half = row.get(f"{name}_ci")
    return format_signed(row[name], digits) + (f" ± {half:.{digits}f}" if half is not None else "")


def format_cell(row: Summary, name: str) -> str:
    """A field of the table as text."""
    value = row[name]
    if name.endswith("_accuracy") and value is not None:
        half = row[f"{name}_ci"]
        return f"{100 * value:.1f}" + (f" ± {100 * half:.1f}" if half is not None else "")
    if f"{name}_ci" in row:
        return format_interval(row, name)
    if value is None or value == "":
        return NONE
    if name == "base_lr":
        return f"{value:.3g}" + (" (edge)" if row["rate_at_edge"] else "")
    if name == "trained_parameters":
        return f"{value / 1e6:.3g} M"
    if name == "seeds":
        return f"{value}" + (f" ({row['failed']} failed)" if row["failed"] else "")
    return (
        f"{value:.2f}" if name == "peak_gib" else f"{value:.0f}" if name == "training_seconds" else str(value)
    )


def build_table(summaries: Sequence[Summary], about: Mapping[str, str]) -> str:
    """All methods, best first."""

    def field(tag: str, name: str, text: str) -> str:
        css = f' class="words {name}"' if name in WORDS else ""
        return f"<{tag}{css}>{escape(text)}</{tag}>"

    failed = [row for row in summaries if row["score"] is None]
    columns = {
        name: text
        for name, text in COLUMNS.items()
        if name not in SOMETIMES or any(row[name] is not None for row in summaries)
    }
    head = "".join(field("th", name, text) for name, text in columns.items())
    body = "".join(
        f'<tr class="{"won" if row["method"] == MEASURE else ""}">'
        + "".join(field("td", name, format_cell(row, name)) for name in columns)
        + "</tr>\n"
        for row in [*rank_methods(summaries), *failed]
    )
    turned = (
        "Dial: how far models are turned from the backbone (0) to what was trained (1), found on validation "
        "text; as trained: the score at dial 1. "
        if "plain_score" in columns
        else ""
    )
    notes = list_definitions({str(row["method"]): about.get(str(row["method"]), "") for row in summaries})
    return (
        '<p class="note">Means over seeds ± half of the 95 % interval; “score − adept” goes seed by seed, '
        "each interval for itself: of twenty rivals that are no different one would stand out. "
        "(edge): the best rate has no worse one on one side, so more tries may still help that method. "
        f"{turned}Seconds are those of the steps, loading and scoring left out; memory is that of one worker."
        "</p>"
        + make_scrollable(
            f'<table class="trials"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>',
            "All methods",
        )
        + f"<h3>The methods</h3>{notes}"
    )


def draw_figures(summaries: Sequence[Summary]) -> str:
    """Scores with their intervals, and the trade between the two sides."""
    ranked = rank_methods(summaries)
    points = [(str(r["method"]), r["score"], r["score_ci"]) for r in ranked]
    trade = [
        (
            str(r["method"]),
            (r["general_delta"], r["general_delta_ci"]),
            (r["domain_delta"], r["domain_delta_ci"]),
        )
        for r in ranked
    ]
    return (
        '<div class="two">'
        + "".join(
            (
                make_figure(
                    inline_figure(draw_ranking(points, MEASURE), "methods", "Score of every method"),
                    "Mean score over seeds with its 95 % interval.",
                ),
                make_figure(
                    inline_figure(draw_sides(trade, MEASURE), "sides", "General against domain change"),
                    "What each method gained in the domain and what it cost, or brought, in general.",
                ),
            )
        )
        + "</div>"
    )


def list_rates(rows: Sequence[ComparedTraining]) -> str:
    """The validation score of every base rate that was tried."""
    tried: dict[str, list[ComparedTraining]] = {}
    for row in rows:
        if row.phase == "rate":
            tried.setdefault(row.method, []).append(row)
    if not tried:
        return "<p>No rates were searched: a method takes the one it would begin a search with.</p>"
    body = ""
    for method, tries in tried.items():
        texts = [
            f"{row.base_lr:.3g}: {format_signed(row.score, 2) if row.score is not None else 'failed'}"
            for row in sorted(tries, key=lambda row: row.base_lr or 0.0)
        ]
        body += (
            f'<tr><td class="words">{escape(method)}</td>' + "".join(f"<td>{t}</td>" for t in texts) + "</tr>"
        )
    return (
        '<p class="note">Base rate and validation score, a training each, all of the same seed.</p>'
        + make_scrollable(f'<table class="trials"><tbody>{body}</tbody></table>', "Base rates tried")
    )
