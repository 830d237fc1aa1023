"""Choosing k from the table of a search, with what the table leaves open; no Ray, no Optuna, no file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adept_ray.config.errors import UserError
from adept_ray.config.specs import ScoreWeights
from adept_ray.method.scores import count_general, difference_error, weigh_changes
from adept_ray.search.edges import Edge, describe_edge

Row = Mapping[str, Any]
UNTOUCHED = "untouched"  # name and state of the backbone's own row
TOLD_APART = 1.96  # standard errors beyond which two scores differ, at 95 %
EVEN = ScoreWeights()
RELIABLE = 20  # trials from which on the importance of hyperparameters means something


@dataclass(frozen=True)
class Depth:
    """What the search knows of one k."""

    k: int
    trials: int
    """Trials of that k, whatever became of them."""
    trial: str
    """The best finished one."""
    score: float
    standard_error: float | None
    """Of `score`, paired with the untouched backbone over validation documents; None with a single one."""
    gain: float | None
    """`score` minus that of the next smaller k with a finished trial; None for the untouched backbone."""
    gain_error: float | None
    """Standard error of `gain`, paired document by document."""
    differs: bool | None
    """Whether `gain` stands out of its noise; None where that isn't known."""
    per_layer: float | None = None
    """`gain` by the layers that earned it."""


@dataclass(frozen=True)
class Choice:
    """The chosen trial, why, and how sure that is; goes into best.yaml as it is."""

    k: int
    advised_k: int
    """`k`, or 0 where nothing that was tried is more than one standard error better than the backbone."""
    trial: str
    score: float
    best_k: int
    best_score: float
    threshold: float
    """The score that a trial of this k needed to be chosen."""
    reason: str
    """Two sentences: why this k, and what one layer more or fewer would change."""
    depths: tuple[Depth, ...] = ()
    """By k, ascending, as far as a trial was finished; the first one is the untouched backbone."""
    unfinished: Mapping[int, int] = field(default_factory=dict)
    """k → number of trials, where none of them was trained to its end."""
    edges: tuple[Edge, ...] = ()
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    """Parameter → its share in what good trials have in common."""
    hyperparameters_reliable: bool = False
    front: tuple[str, ...] = ()
    """Of a search for all trade-offs: the trials that no other one beats on both sides."""
    min_gain_per_layer: float | None = None


def choose_k(
    rows: Sequence[Row], weights: ScoreWeights = EVEN, min_gain_per_layer: float | None = None
) -> Choice:
    """The smallest k whose best score lies within one standard error of the best (the 1-SE rule).

    An added layer costs inference time for ever, so a larger k must earn it. Only finished trials count,
    since others saw fewer tokens. The error is that of the difference between the two trials, paired over
    validation documents: both saw the same text, so what is hard for one is hard for the other, and the
    difference is far less noisy than either score. A k that a smaller one equals or beats is never taken.
    A model has to be exported, so what is chosen was tried; what is advised is 0 all the same where no
    trial lies more than its standard error above the untouched backbone, whose score is 0.

    With `min_gain_per_layer` every added layer has to earn so many points: they are taken off each score.
    Raises :class:`UserError` without a finished trial.
    """
    per_k = best_of_each_k(rows)
    price = min_gain_per_layer or 0.0

    def worth(row: Row) -> float:
        return float(row["score"] - price * row["k"])

    climbing: list[Row] = []
    for row in per_k.values():
        if not climbing or worth(row) > worth(climbing[-1]):
            climbing.append(row)
    top = climbing[-1]
    errors = [0.0 if row is top else finite_or_zero(difference_error(top, row, weights)) for row in climbing]
    chosen, error = next(
        (row, error) for row, error in zip(climbing, errors, strict=True) if worth(top) - worth(row) <= error
    )
    best = max(per_k.values(), key=lambda row: (row["score"], -row["k"]))
    depths = compare_depths(rows, per_k, weights)
    futile = chosen["k"] > 0 and all(worth(row) <= finite_or_zero(row["score_se"]) for row in per_k.values())
    reason = (
        explain_choice(chosen, best, error, price, max(per_k)) + " " + explain_neighbours(chosen["k"], depths)
    )
    tried = {row["k"] for row in rows if row["state"] != UNTOUCHED}
    return Choice(
        k=chosen["k"],
        advised_k=0 if futile else chosen["k"],
        trial=chosen["trial"],
        score=chosen["score"],
        best_k=best["k"],
        best_score=best["score"],
        threshold=worth(top) - error + price * chosen["k"],
        reason=explain_no_gain(per_k.values(), chosen, price) if futile else reason,
        depths=depths,
        unfinished={k: sum(row["k"] == k for row in rows) for k in sorted(tried - {0, *per_k})},
        min_gain_per_layer=min_gain_per_layer,
    )


def best_of_each_k(rows: Iterable[Row]) -> dict[int, Row]:
    """k → its best finished trial, ascending. Raises :class:`UserError` when there is none."""
    trials = [row for row in rows if row["state"] != UNTOUCHED]
    finished = [row for row in trials if row["state"] == "finished" and math.isfinite(row["score"])]
    if not finished and trials and all(row["state"] == "failed" for row in trials):
        raise UserError(f"all {len(trials)} trials failed; the first with: {trials[0].get('error')}")
    if not finished:
        raise UserError("no trial was trained to its end, so there is no k to choose: run more trials")
    best: dict[int, Row] = {}
    for row in finished:
        if row["k"] not in best or row["score"] > best[row["k"]]["score"]:
            best[row["k"]] = row
    return dict(sorted(best.items()))


def compare_depths(rows: Sequence[Row], per_k: Mapping[int, Row], weights: ScoreWeights) -> tuple[Depth, ...]:
    """What is known of each k with a finished trial, above the untouched backbone."""
    before: Row = {"trial": UNTOUCHED, "k": 0, "score": 0.0, "score_se": 0.0}
    idle = sum(row["k"] == 0 and row["state"] != UNTOUCHED for row in rows)
    depths = [Depth(0, idle, UNTOUCHED, 0.0, 0.0, None, None, None)]
    for k, row in per_k.items():
        if k == 0:  # such a trial changes nothing: it is the untouched backbone
            continue
        gain, error = row["score"] - before["score"], difference_error(row, before, weights)
        sure = math.isfinite(error)
        depths.append(
            Depth(
                k=k,
                trials=sum(each["k"] == k for each in rows),
                trial=row["trial"],
                score=row["score"],
                standard_error=row["score_se"] if math.isfinite(row["score_se"]) else None,
                gain=gain,
                gain_error=error if sure else None,
                differs=abs(gain) > TOLD_APART * error if sure else None,
                per_layer=gain / (k - before["k"]),
            )
        )
        before = row
    return tuple(depths)


def explain_no_gain(rows: Collection[Row], chosen: Row, price: float) -> str:
    """The two sentences of a search in which nothing is surely worth having."""
    error = f" ± {chosen['score_se']:.2f}" if math.isfinite(chosen["score_se"]) else ""
    if all(row["score"] < -TOLD_APART * finite_or_zero(row["score_se"]) for row in rows):
        fault = "is better than the untouched backbone"
    elif price:
        fault = f"earns {price:g} points a layer by more than one standard error"
    else:
        fault = "is more than one standard error better than the untouched backbone"
    return (
        f"Nothing that was tried {fault}, so the advice is k = 0: leave the model as it is. The exported "
        f"model is that of k = {chosen['k']} all the same, which scores {abs(chosen['score']):.2f}{error} "
        f"{'more' if chosen['score'] > 0 else 'less'} than the backbone."
    )


def express_doubt(chosen: Row) -> str:
    """What is to be said against a trial beside the untouched backbone, whose score is 0."""
    if chosen["k"] == 0 or chosen["score"] > TOLD_APART * finite_or_zero(chosen["score_se"]):
        return ""
    return ", though it isn't told from the untouched backbone"


def explain_choice(chosen: Row, best: Row, error: float, price: float, deepest: int) -> str:
    """The sentence that says why this k."""
    head = f"k = {chosen['k']} scores {chosen['score']:.2f}"
    doubt = express_doubt(chosen)
    if price:
        asked = f"{price:g} points each"
        paid = chosen["score"] >= price * chosen["k"]
        these = f"these earn {asked}" if paid else f"these don't earn {asked} either"
        more = f"and more layers don't earn {asked}" if chosen["k"] < deepest else "the most that was tried"
        return f"{head}, {more}, within one standard error, and {these}{doubt}."
    if chosen is best:
        smaller = "no smaller k, unless an even smaller one beats it, comes within one standard error of it"
        return f"{head}, the best, and {smaller}{doubt}."
    return (
        f"{head}, within one standard error ({error:.2f}) of the best, {best['score']:.2f} at "
        f"k = {best['k']}, and it adds fewer layers{doubt}."
    )


def explain_neighbours(k: int, depths: Sequence[Depth]) -> str:
    """The sentence that says what fewer layers and what more layers would change."""
    here = next((at for at, depth in enumerate(depths) if depth.k == k), 0)
    said = []
    if here:
        fewer, depth = depths[here - 1], depths[here]
        place = f"k = {fewer.k}" if fewer.k else "the untouched backbone"
        said.append(
            f"{format_layers(k - fewer.k)} fewer ({place}) would score {format_gain(-gain_of(depth), depth)}"
        )
    if here + 1 < len(depths):
        more = depths[here + 1]
        said.append(
            f"{format_layers(more.k - k)} more (k = {more.k}) would score {format_gain(gain_of(more), more)}"
        )
    else:
        said.append("no larger k was trained to its end")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def format_layers(count: int) -> str:
    return f"{count} layer{'s' * (count > 1)}"


def gain_of(depth: Depth) -> float:
    return depth.gain or 0.0


def format_gain(change: float, depth: Depth) -> str:
    """A change of the score in words, with the doubt of the step to that depth."""
    error = "" if depth.gain_error is None else f" ± {depth.gain_error:.2f}"
    return f"{abs(change):.2f}{error} {'more' if change > 0 else 'less'}" + (
        " (within the noise)" if depth.differs is False else ""
    )


def finite_or_zero(error: float) -> float:
    """A standard error, or 0 where a single document gives none."""
    return error if math.isfinite(error) else 0.0


def find_front(rows: Iterable[Row], weights: ScoreWeights) -> tuple[str, ...]:
    """The finished trials that no other one beats on one side without losing on the other."""
    points = {
        row["trial"]: (count_general(row["general_delta"], weights), row["domain_delta"])
        for row in rows
        if row["state"] == "finished" and math.isfinite(row["score"])
    }

    def beaten(point: tuple[float, float]) -> bool:
        return any(
            other != point and other[0] >= point[0] and other[1] >= point[1] for other in points.values()
        )

    return tuple(trial for trial, point in points.items() if not beaten(point))


def rescore(rows: Iterable[Row], weights: ScoreWeights) -> list[dict[str, Any]]:
    """The rows with the scores, and their errors, that other weights give, all along their curves."""
    found = []
    for row in rows:
        if row.get("pulls"):
            none = {"general_delta": 0.0, "pulls": {side: [0.0] * len(p) for side, p in row["pulls"].items()}}
            row = _scored(row, weights) | {
                "score_se": difference_error(row, none, weights),
                "curve": [_scored(reading, weights) for reading in row.get("curve", ())],
            }
        found.append(dict(row))
    return found


def _scored(metrics: Mapping[str, Any], weights: ScoreWeights) -> dict[str, Any]:
    """A row, or a reading of its curve, with the score that the weights give."""
    return {**metrics, "score": weigh_changes(metrics["general_delta"], metrics["domain_delta"], weights)}


def find_candidates(rows: Sequence[Row], weights: ScoreWeights, front: bool) -> set[str]:
    """The trials that may still be chosen: the best of each k, and with `front` those on the front.

    All others' checkpoints can go: more trials never make them the best of their k.
    """
    try:
        kept = {row["trial"] for row in best_of_each_k(rows).values()}
    except UserError:  # none is finished yet
        return set()
    return kept | (set(find_front(rows, weights)) if front else set())


def choice_table(choice: Choice) -> str:
    """The table per k, and what else the search leaves open, as lines of text."""
    rows = {
        k: f"{k:3}  {n:>6}  –               none was trained to its end" for k, n in choice.unfinished.items()
    }
    for depth in choice.depths:
        error = "" if depth.standard_error is None else f" ± {depth.standard_error:.2f}"
        score = f"{depth.score:+.2f}{error}" if depth.k else "0  untouched"
        step = ""
        if depth.gain is not None:
            noise = "" if depth.gain_error is None else f" ± {depth.gain_error:.2f}"
            step = f"{depth.gain:+.2f}{noise}" + (" within the noise" if depth.differs is False else "")
        if depth.gain is not None and depth.per_layer != depth.gain and choice.min_gain_per_layer:
            step += f", {depth.per_layer:+.2f} a layer"
        mark = " ← chosen" if depth.k == choice.k else " ← advised" if depth.k == choice.advised_k else ""
        rows[depth.k] = f"{depth.k:3}  {depth.trials or '–':>6}  {score:14}  {step}{mark}".rstrip()
    lines = ["  k  trials  score           against the next smaller k", *(rows[k] for k in sorted(rows))]
    if choice.hyperparameters:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in choice.hyperparameters.items())
        doubt = "" if choice.hyperparameters_reliable else f"; of fewer than {RELIABLE} trials: a guess"
        lines.append(f"what mattered: {shares}{doubt}")
    for edge in choice.edges:
        place = describe_edge(edge.parameter, edge.value, edge.end, edge.held)
        again = f"; to {'allow more' if edge.held else 'widen it'}: {edge.command}"
        lines.append(place + (again if edge.command else ""))
    if choice.front:
        lines.append(f"front: {' '.join(choice.front)}; pick.py chooses among them by other weights")
    return "\n".join(lines)
