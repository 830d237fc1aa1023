"""Choosing k among the trials of a search, and what that leaves open; no Ray, no Optuna, no file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from adept_ray.config.errors import UserError
from adept_ray.config.specs import ScoreWeights
from adept_ray.method.dial import FOLDS, TRAINED, DialChoice, choose_dial, cross_fit
from adept_ray.method.scores import (
    difference_error,
    is_finite,
    value_or_nan,
    value_or_zero,
    weigh_changes,
)
from adept_ray.search.edges import Edge
from adept_ray.search.front import find_front
from adept_ray.search.trials import UNTOUCHED, Reading, Trial

SURE_ERRORS = 1.96  # standard errors beyond which two scores differ, at 95 %
EVEN = ScoreWeights()
RELIABLE_TRIALS = 20  # from so many on the importance of hyperparameters means something
NOT_DIALLED = DialChoice(TRAINED, (TRAINED,) * FOLDS)
BACKBONE = Trial(UNTOUCHED, k=0, score=0.0, score_se=0.0, state=UNTOUCHED)


@dataclass(frozen=True, kw_only=True)
class Depth:
    """What the search knows of one k. Only a folder of an older version lacks the numbers of a trial."""

    k: int
    trials: int | None = None
    """Trials of that k, whatever became of them."""
    trial: str | None = None
    """The best finished one."""
    score: float | None = None
    standard_error: float | None = None
    """Standard error of `score`, paired with the untouched backbone over validation documents; None with a
    single document."""
    gain: float | None = None
    """`score` minus that of the next smaller k with a finished trial; None for the untouched backbone."""
    gain_error: float | None = None
    """Standard error of `gain`, paired document by document."""
    differs: bool | None = None
    """Whether `gain` stands out of its noise; None where that isn't known."""
    per_layer: float | None = None
    """`gain` divided by the layers that earned it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen trial, why, and how sure that is. It goes into best.yaml as it is.

    Only a folder of an older version lacks anything without which there would be no choice.
    """

    k: int
    advised_k: int | None = None
    """`k`, or 0 where nothing that was tried is more than one standard error better than the backbone."""
    trial: str | None = None
    score: float | None = None
    best_k: int | None = None
    best_score: float | None = None
    threshold: float | None = None
    """The score that a trial of this k needed to be chosen."""
    reason: str
    """Two sentences: why this k, and what one layer more or fewer would change."""
    depths: tuple[Depth, ...] = ()
    """Every k with a finished trial, ascending; the first one is the untouched backbone."""
    unfinished: Mapping[int, int] = field(default_factory=dict)
    """k → number of trials, where none of them was trained to its end."""
    edges: tuple[Edge, ...] = ()
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    """Searched parameter → its share in what good trials have in common."""
    hyperparameters_reliable: bool = False
    front: tuple[str, ...] = ()
    """The trials that at some dial no other one beats on both sides, if all trade-offs were searched for."""
    min_gain_per_layer: float | None = None


def choose_k(
    trials: Sequence[Trial], weights: ScoreWeights = EVEN, min_gain_per_layer: float | None = None
) -> Choice:
    """The smallest k whose best score lies within one standard error of the best (the 1-SE rule).

    An added layer costs inference time for ever, so a larger k must earn it. Only finished trials count,
    since others saw fewer tokens. The error is that of the difference between the two trials, paired over
    validation documents: both saw the same text. What is hard for one is hard for the other, so the
    difference is far less noisy than either score. A k that a smaller one equals or beats is never taken.
    A model has to be exported, so a k that was tried is chosen. Yet the advice is 0 where no trial lies more
    than its standard error above the untouched backbone, whose score is 0.

    With `min_gain_per_layer` every added layer has to earn so many points: they are taken off each score.
    Raises :class:`UserError` without a finished trial.
    """
    per_k = find_best_of_each_k(trials)
    price = min_gain_per_layer or 0.0

    def subtract_price(trial: Trial) -> float:
        return value_or_zero(trial.score) - price * trial.k

    improvements: list[Trial] = []  # each better than all of a smaller k
    for trial in per_k.values():
        if not improvements or subtract_price(trial) > subtract_price(improvements[-1]):
            improvements.append(trial)
    top = improvements[-1]
    errors = [
        0.0 if trial is top else value_or_zero(difference_error(top, trial, weights))
        for trial in improvements
    ]
    chosen, error = next(
        (trial, error)
        for trial, error in zip(improvements, errors, strict=True)
        if subtract_price(top) - subtract_price(trial) <= error
    )
    best = max(per_k.values(), key=lambda trial: (value_or_zero(trial.score), -trial.k))
    depths = compare_depths(trials, per_k, weights)
    is_futile = chosen.k > 0 and all(
        subtract_price(trial) <= value_or_zero(trial.score_se) for trial in per_k.values()
    )
    why = explain_choice(chosen, best, error, price, max(per_k))
    tried = {trial.k for trial in trials if trial.state != UNTOUCHED}
    return Choice(
        k=chosen.k,
        advised_k=0 if is_futile else chosen.k,
        trial=chosen.name,
        score=chosen.score,
        best_k=best.k,
        best_score=best.score,
        threshold=subtract_price(top) - error + price * chosen.k,
        reason=explain_no_gain(per_k.values(), chosen, price)
        if is_futile
        else f"{why} {explain_neighbours(chosen.k, depths)}",
        depths=depths,
        unfinished={k: sum(trial.k == k for trial in trials) for k in sorted(tried - {0, *per_k})},
        min_gain_per_layer=min_gain_per_layer,
    )


def find_best_of_each_k(trials: Iterable[Trial]) -> dict[int, Trial]:
    """k → its best finished trial, ascending. Raises :class:`UserError` when there is none."""
    begun = [trial for trial in trials if trial.state != UNTOUCHED]
    finished = [trial for trial in begun if trial.is_comparable]
    if not finished and begun and all(trial.state == "failed" for trial in begun):
        raise UserError(f"all {len(begun)} trials failed; the first with: {begun[0].error}")
    if not finished:
        raise UserError(
            "no trial was trained to its end, so there is no k to choose: search again with a larger --trials"
        )
    best: dict[int, Trial] = {}
    for trial in finished:
        if trial.k not in best or value_or_zero(trial.score) > value_or_zero(best[trial.k].score):
            best[trial.k] = trial
    return dict(sorted(best.items()))


def compare_depths(
    trials: Sequence[Trial], per_k: Mapping[int, Trial], weights: ScoreWeights
) -> tuple[Depth, ...]:
    """What is known of each k with a finished trial, above the untouched backbone."""
    before = BACKBONE
    without_layers = sum(trial.k == 0 and trial.state != UNTOUCHED for trial in trials)
    depths = [Depth(k=0, trials=without_layers, trial=UNTOUCHED, score=0.0, standard_error=0.0)]
    for k, trial in per_k.items():
        if k == 0:  # such a trial changes nothing: it is the untouched backbone
            continue
        gain = value_or_zero(trial.score) - value_or_zero(before.score)
        error = difference_error(trial, before, weights)
        depths.append(
            Depth(
                k=k,
                trials=sum(each.k == k for each in trials),
                trial=trial.name,
                score=trial.score,
                standard_error=trial.score_se if is_finite(trial.score_se) else None,
                gain=gain,
                gain_error=error if math.isfinite(error) else None,
                differs=abs(gain) > SURE_ERRORS * error if math.isfinite(error) else None,
                per_layer=gain / (k - before.k),
            )
        )
        before = trial
    return tuple(depths)


def explain_no_gain(trials: Collection[Trial], chosen: Trial, price: float) -> str:
    """The two sentences of a search in which nothing is surely worth having."""
    error = f" ± {chosen.score_se:.2f}" if is_finite(chosen.score_se) else ""
    if all(value_or_zero(t.score) < -SURE_ERRORS * value_or_zero(t.score_se) for t in trials):
        fault = "is better than the untouched backbone"
    elif price:
        fault = f"earns {price:g} points a layer by more than one standard error"
    else:
        fault = "is more than one standard error better than the untouched backbone"
    score = value_or_zero(chosen.score)
    return (
        f"Nothing that was tried {fault}, so the advice is k = 0: leave the model as it is. The exported "
        f"model is that of k = {chosen.k} all the same, which scores {abs(score):.2f}{error} "
        f"{'more' if score > 0 else 'less'} than the backbone."
    )


def express_doubt(chosen: Trial) -> str:
    """The words against a trial that may be no better than the untouched backbone, whose score is 0."""
    if chosen.k == 0 or value_or_zero(chosen.score) > SURE_ERRORS * value_or_zero(chosen.score_se):
        return ""
    return ", though it can't be told from the untouched backbone"


def explain_choice(chosen: Trial, best: Trial, error: float, price: float, deepest: int) -> str:
    """The sentence that says why this k."""
    head = f"k = {chosen.k} scores {chosen.score:.2f}"
    doubt = express_doubt(chosen)
    if price:
        wage = f"{price:g} points each"
        earns = value_or_zero(chosen.score) >= price * chosen.k
        these = f"these earn {wage}" if earns else f"these don't earn {wage} either"
        others = f"and more layers don't earn {wage}" if chosen.k < deepest else "the most that was tried"
        return f"{head}, {others}, within one standard error, and {these}{doubt}."
    if chosen is best:
        smaller = "no smaller k, unless an even smaller one beats it, comes within one standard error of it"
        return f"{head}, the best, and {smaller}{doubt}."
    return (
        f"{head}, within one standard error ({error:.2f}) of the best, {best.score:.2f} at "
        f"k = {best.k}, and it adds fewer layers{doubt}."
    )


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


def rescore(trials: Iterable[Trial], weights: ScoreWeights, dialled: bool = True) -> list[Trial]:
    """The trials with the scores, and their errors, that other weights give, all along their curves.

    Each takes the dial that is best by these, of those that were read at its end, or its own where it was
    `dialled` to none.
    """
    return [rescore_trial(turn_trial(trial, weights, dialled), weights) for trial in trials]


def turn_trial(trial: Trial, weights: ScoreWeights, dialled: bool) -> Trial:
    """A trial at the dial that scores best by these weights; as it was trained unless it is `dialled`.

    Of a search with benchmark tasks accuracies and bits per byte aren't known at other dials than its own.
    """
    if not trial.turned.turns:
        return trial
    if trial.general_accuracy is not None or trial.domain_accuracy is not None:
        trial = replace(trial, general_bpb=None, domain_bpb=None, general_accuracy=None, domain_accuracy=None)
    choice = choose_dial(trial.turned, weights) if dialled else NOT_DIALLED
    (general, domain), pulls = cross_fit(trial.turned, choice.by_fold)
    plain = next(turn for turn in trial.turned.turns if turn.dial == TRAINED)
    ends = [
        replace(reading, general_delta=general, domain_delta=domain, dial=choice.dial)
        for reading in trial.curve[-1:]  # turns are those of its end
    ]
    return replace(
        trial,
        general_bpb=turn_bpb(trial.general_bpb, trial.general_delta, general),
        domain_bpb=turn_bpb(trial.domain_bpb, trial.domain_delta, domain),
        general_delta=general,
        domain_delta=domain,
        pulls=pulls,
        dial=choice.dial,
        plain_score=plain.weigh(weights),
        curve=(*trial.curve[:-1], *ends),
    )


def turn_bpb(bpb: float | None, before: float | None, after: float) -> float | None:
    """Bits per byte where the change is `after` percent, from those where it was `before`."""
    return bpb if bpb is None or before is None else bpb * (100 - after) / (100 - before)


def rescore_trial(trial: Trial, weights: ScoreWeights) -> Trial:
    """A trial whose pulls are known, with the scores that other weights give; others stay as they are."""
    if not trial.pulls:
        return trial
    no_pulls = {side: [0.0] * len(pulls) for side, pulls in trial.pulls.items()}
    no_change = replace(trial, general_delta=0.0, pulls=no_pulls)
    return replace(
        trial,
        score=weigh_deltas(trial, weights),
        score_se=difference_error(trial, no_change, weights),
        curve=tuple(rescore_reading(reading, weights) for reading in trial.curve),
    )


def rescore_reading(reading: Reading, weights: ScoreWeights) -> Reading:
    """A reading with the scores that other weights give, at the dial that it was taken at."""
    general, domain = reading.plain_general_delta, reading.plain_domain_delta
    plain = None if general is None or domain is None else weigh_changes(general, domain, weights)
    return replace(reading, score=weigh_deltas(reading, weights), plain_score=plain)


def weigh_deltas(measured: Trial | Reading, weights: ScoreWeights) -> float:
    """The score that the weights give to a trial, or to a reading of its curve."""
    deltas = value_or_nan(measured.general_delta), value_or_nan(measured.domain_delta)
    return weigh_changes(*deltas, weights)


def find_candidates(trials: Sequence[Trial], weights: ScoreWeights, front: bool) -> set[str]:
    """The trials that may still be chosen: the best of each k, and with `front` those on the front of each k.

    By other weights, with the dials that these like, the best of a k is on its front. The checkpoints of all
    others can go: more trials never make them the best of their k.
    """
    try:
        names = {trial.name for trial in find_best_of_each_k(trials).values()}
    except UserError:  # none is finished yet
        return set()
    for k in {trial.k for trial in trials} if front else ():
        names.update(find_front([trial for trial in trials if trial.k == k], weights))
    return names


def format_choice(choice: Choice) -> str:
    """The table per k, and what else the search leaves open, as lines of text."""
    rows = {
        k: f"{k:3}  {n:>6}  –               none was trained to its end" for k, n in choice.unfinished.items()
    }
    rows |= {depth.k: format_depth(depth, choice) for depth in choice.depths}
    lines = ["  k  trials  score           against the next smaller k", *(rows[k] for k in sorted(rows))]
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


def format_depth(depth: Depth, choice: Choice) -> str:
    """A line of the table per k."""
    error = "" if depth.standard_error is None else f" ± {depth.standard_error:.2f}"
    score = f"{depth.score:+.2f}{error}" if depth.k else "0  untouched"
    step = ""
    if depth.gain is not None:
        noise = "" if depth.gain_error is None else f" ± {depth.gain_error:.2f}"
        step = f"{depth.gain:+.2f}{noise}" + (" within the noise" if depth.differs is False else "")
        if depth.per_layer != depth.gain and choice.min_gain_per_layer:
            step += f", {depth.per_layer:+.2f} a layer"
    mark = " ← chosen" if depth.k == choice.k else " ← advised" if depth.k == choice.advised_k else ""
    return f"{depth.k:3}  {depth.trials or '–':>6}  {score:14}  {step}{mark}".rstrip()
