"""The first screen of a search's page: which k, why, what it gained and what it costs."""

from __future__ import annotations

from html import escape
from pathlib import Path

from adept_ray.method.scores import value_or_zero
from adept_ray.report.evidence import Evidence
from adept_ray.report.html import NONE, format_count, format_duration, format_signed, make_card
from adept_ray.report.records import Side, Test, list_corpora
from adept_ray.search.trials import UNTOUCHED


def build_first_screen(results: Evidence) -> str:
    """The answer, its reason, gains beside costs, and the values at an end of their range."""
    best = results.best
    k, layers = best.k, ", ".join(map(str, best.layers))
    copies = f" {'Copy of layer' if k == 1 else 'Copies of layers'} {layers}." if k else ""
    backbone, domain = name_setting(results, "backbone"), name_setting(results, "domain")
    head, answer = f"k = {k}", f"{format_layers(k)} added to {backbone} to learn {domain}.{copies}"
    if results.advises_against:
        head = "Advice: k = 0"
        answer = f"Leave {backbone} as it is: nothing is surely better. Exported is k = {k}: {answer}"
    why = f'<p class="why">{escape(results.reason)}</p>' if results.reason else ""
    return (
        f'<p class="eyebrow">adept_ray · {escape(results.name)}</p>'
        f'<h1>{head}</h1><p class="lead">{escape(answer)}</p>{why}'
        f'<div class="answers">'
        f'<div><h2>Gained</h2><div class="cards one">{format_gains(results)}</div></div>'
        f'<div><h2>Cost</h2><div class="cards">{format_costs(results)}</div></div></div>'
        f'<p class="note">Gains are measured once, on the test split, against the untouched backbone: the '
        f"reduction of bits per byte (bpb) in percent, or on a side judged by tasks the gain in accuracy in "
        f"points, ± one standard error, so positive is better; less than two of them is called no clear "
        f"change. Test score{format_formula(results)} {describe_score(best.test)}.</p>"
        f"{format_edges(results)}{format_contamination(results)}"
    )


def describe_score(test: Test) -> str:
    """The test score; where the model was turned at which dial that is, and that of the model as trained."""
    score, plain = format_signed(test.score, 3), test.plain
    if not test.is_turned or plain is None:
        return score
    return (
        f"{score} at dial {test.dial:g}; as it was trained {format_signed(plain.score, 3)} (general Δ "
        f"{format_signed(plain.general_delta, 2)}, domain Δ {format_signed(plain.domain_delta, 2)})"
    )


def format_formula(results: Evidence) -> str:
    """The score as a formula, to follow its name; empty for an older folder."""
    weights = results.best.score
    return f" ({escape(weights.format_formula())})" if weights else ""


def format_gains(results: Evidence) -> str:
    """A card for each side, with what the test split says of it."""
    domain, general = name_setting(results, "domain"), name_setting(results, "general")
    test = results.best.test
    return format_side(f"Domain: {domain}", test.domain) + format_side(f"General: {general}", test.general)


def format_side(title: str, side: Side) -> str:
    """The card of a side."""
    error = "" if side.standard_error is None else f"± {side.standard_error:.2f}, "
    return make_card(
        title,
        f"{format_signed(side.delta, 2)} {side.unit}",
        f"{error}{judge_change(side)}",
        side.describe_levels("bpb"),
    )


def judge_change(side: Side) -> str:
    """Whether Δ stands out of its noise (two standard errors), in words."""
    if abs(side.delta) <= 2 * value_or_zero(side.standard_error):
        return "no clear change"
    return "better" if side.delta > 0 else "worse"


def format_costs(results: Evidence) -> str:
    """Cards with what the added layers cost, and what it cost to find them."""
    run, k, cost = results.run, results.best.k, results.cost
    depth = len(results.importance.layers)
    cards = make_card("Layers", f"{depth} → {depth + k}", format_increase(depth + k, depth))
    if cost:
        before = cost.parameters - cost.added
        share = f"{format_increase(cost.parameters, before)}, {format_count(cost.parameters)} in all"
        cards += make_card("Parameters", f"+{format_count(cost.added)}" if k else "none added", share)
        slower = "operations per token of a forward pass"
        cards += make_card("Inference", format_increase(cost.flops, cost.flops_before), slower)
    count = sum(trial.state != UNTOUCHED for trial in results.trials)
    work = f"{count} trials" if count else "training at full length"
    memory = "" if run.peak_memory_gib is None else f"peak memory {run.peak_memory_gib:.1f} GiB"
    return cards + make_card("Wall clock", format_duration(run.total_seconds), work, memory)


def format_increase(after: float, before: float) -> str:
    """How much more it is, in percent."""
    return f"{format_signed(100 * (after / max(before, 1) - 1), 1)} %" if after != before else "as before"


def name_setting(results: Evidence, name: str) -> str:
    """The name of the run's backbone or corpus; a path's last part, since the last section has the whole."""
    return " + ".join(Path(each).name for each in list_corpora(results.best.run, name)) or NONE


def format_layers(k: int) -> str:
    """So many layers, at the beginning of a sentence."""
    return "No layer" if k == 0 else f"{k} layer{'s' * (k > 1)}"


def format_edges(results: Evidence) -> str:
    """A warning for each chosen value at an end of its range."""
    choice = results.best.choice
    warnings = ""
    for edge in choice.edges if choice else ():
        beyond = "" if edge.held else ", so the best may lie beyond it"
        further = f" This searches further:<pre>{escape(edge.command)}</pre>" if edge.command else ""
        warnings += f'<div class="warning">{escape(edge.describe_place())}{beyond}.{further}</div>'
    return warnings


def format_contamination(results: Evidence) -> str:
    """A warning where much of what was held out stands in the training text, too."""
    found = results.run.contamination
    sentence = found.express_warning() if found else ""
    return f'<div class="warning">{escape(sentence[0].upper() + sentence[1:])}.</div>' if sentence else ""
