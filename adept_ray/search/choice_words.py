"""The words for a choice of k: why, what its neighbours would change, and the table per k."""

from __future__ import annotations

from collections.abc import Sequence

from adept_ray.method.scores import is_finite, value_or_zero
from adept_ray.search.answers import (
    CONFIDENCE,
    RELIABLE_TRIALS,
    SURE_ERRORS,
    Choice,
    Depth,
    Horizon,
    find_horizon,
)
from adept_ray.search.trials import Trial

LONGER = 10  # times a trial's tokens, for which a search that was told nothing says its answer, too


def explain_no_gain(chosen: Trial, price: float) -> str:
    """The two sentences of a search in which nothing is surely worth having."""
    fault = (
        f"surely earns {price:g} points a layer" if price else "is surely better than the untouched backbone"
    )
    error = f" ± {chosen.score_se:.2f}" if is_finite(chosen.score_se) else ""
    score = value_or_zero(chosen.score)
    return (
        f"Nothing that was tried {fault}, so the advice is k = 0: leave the model as it is. The exported "
        f"model is that of k = {chosen.k} all the same, which scores {abs(score):.2f}{error} "
        f"{'more' if score > 0 else 'less'} than the backbone."
    )


def explain_choice(now: Horizon, price: float) -> str:
    """The sentence that says why this k."""
    head = f"k = {now.k} is expected to score {now.score:.2f} ± {now.error:.2f} at its best rate"
    if not now.score > SURE_ERRORS * now.error:
        head += ", which can't be told from the untouched backbone"
    wage = f", {price:g} points a layer taken off" if price else ""
    if now.end == "tolerance":
        return (
            f"{head}, and the best, k = {now.best_k}{wage}, no more than {now.tolerance:.2f} points more, "
            f"as sure as {CONFIDENCE:.0%}."
        )
    if now.end == "price":
        return f"{head}, and more layers don't earn {price:g} points each."
    most = ", and it is the largest that was tried" if now.end == "range" else ""
    return f"{head}, the best{wage}{most}."


def explain_neighbours(k: int, depths: Sequence[Depth]) -> str:
    """The sentence that says what fewer layers and what more layers would change."""
    at = next((at for at, depth in enumerate(depths) if depth.k == k), 0)
    clauses = []
    if at:
        below, depth = depths[at - 1], depths[at]
        place = f"k = {below.k}" if below.k else "the untouched backbone"
        change = format_change(-value_or_zero(depth.gain), depth)
        clauses.append(f"{format_layers(k - below.k)} fewer ({place}) would score {change}")
    if at + 1 < len(depths):
        above = depths[at + 1]
        change = format_change(value_or_zero(above.gain), above)
        clauses.append(f"{format_layers(above.k - k)} more (k = {above.k}) would score {change}")
    else:
        clauses.append("no larger k was trained to its end")
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def format_layers(count: int) -> str:
    return f"{count} layer{'s' * (count > 1)}"


def format_change(change: float, depth: Depth) -> str:
    """A change of the score in words, with the doubt of the step to that depth."""
    error = "" if depth.gain_error is None else f" ± {depth.gain_error:.2f}"
    doubt = " (within the noise)" if depth.differs is False else ""
    return f"{abs(change):.2f}{error} {'more' if change > 0 else 'less'}{doubt}"


def format_choice(choice: Choice) -> str:
    """The table per k, and what else the search says and leaves open, as lines of text."""
    rows = {
        k: f"{k:3}  {n:>6}  –                          none was trained to its end"
        for k, n in choice.unfinished.items()
    }
    rows |= {depth.k: format_depth(depth, choice) for depth in choice.depths}
    head = "  k  trials  expected score  best rate  against the next smaller k"
    lines = [head, *(rows[k] for k in sorted(rows))]
    lines += list_answers(choice)
    if choice.hyperparameters:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in choice.hyperparameters.items())
        guess = f"; of fewer than {RELIABLE_TRIALS} trials: a guess"
        doubt = "" if choice.hyperparameters_reliable else guess
        lines.append(f"what mattered: {shares}{doubt}")
    for edge in choice.edges:
        remedy = f"; to {'allow more' if edge.held else 'widen it'}: {edge.command}"
        lines.append(edge.describe_place() + (remedy if edge.command else ""))
    if choice.front:
        lines.append(f"front: {' '.join(choice.front)}; pick.py chooses among them by other weights")
    return "\n".join(lines)


def list_answers(choice: Choice) -> list[str]:
    """A line for a training as long as a trial, and one for the one that follows, or for a longer one."""
    if not choice.horizons:
        return []
    now = choice.horizons[0]
    told = choice.asked is not None and choice.asked.tokens != now.tokens
    later = choice.asked if told else find_horizon(choice.horizons, LONGER * now.tokens)
    return [answer.describe() for answer in (now, later) if answer is not None]


def format_depth(depth: Depth, choice: Choice) -> str:
    """A line of the table per k."""
    error = "" if depth.standard_error is None else f" ± {depth.standard_error:.2f}"
    score = f"{depth.score:+.2f}{error}" if depth.k else "0  untouched"
    rate = f"{depth.rate:.1e}" if depth.rate else ""
    step = ""
    if depth.gain is not None:
        noise = "" if depth.gain_error is None else f" ± {depth.gain_error:.2f}"
        step = f"{depth.gain:+.2f}{noise}" + (" within the noise" if depth.differs is False else "")
        if depth.per_layer != depth.gain and choice.min_gain_per_layer:
            step += f", {depth.per_layer:+.2f} a layer"
    mark = " ← chosen" if depth.k == choice.k else " ← advised" if depth.k == choice.advised_k else ""
    return f"{depth.k:3}  {depth.trials or '–':>6}  {score:14}  {rate:9}  {step}{mark}".rstrip()
