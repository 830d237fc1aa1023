"""Growing in place of restarting: one model that is given the next copy again and again.

S_k is nested in S_{k+1} and a fresh copy changes nothing, so a model trained with k copies becomes one with
k + 1 when the next copy is inserted. Train a while, insert, train: the whole curve of score against k for
about the cost of one training at the largest. Each reading comes at the end of a schedule of its own (warm-up
and decay), so readings compare; but the later ones have seen more text, so a gain is that of a layer *and* of
the text that it was trained on, and growing asks for a larger k than independent trials do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adept_ray.config.errors import UserError, find_cause
from adept_ray.config.search_space import Range, SearchSpace
from adept_ray.config.specs import ScoreWeights, SearchRun
from adept_ray.config.validation import apply_changes
from adept_ray.engine.client import BoardClient, follow_job
from adept_ray.engine.job import CrewLost, DiskFull, Job, JobFailed
from adept_ray.method.importance import LayerImportance
from adept_ray.method.placement import resolve_layers
from adept_ray.method.scores import difference_error
from adept_ray.search.choice import TOLD_APART
from adept_ray.search.trials import describe_trial, title_trial
from adept_ray.training.work import TrainWork

Row = dict[str, Any]
NESTED = ("guided", "deepest")  # placements whose layers for k are among those for k + 1


@dataclass(frozen=True)
class GrowthStage:
    """One depth of a growth: its setting, as a trial has one, and the training that leads to it."""

    setting: Mapping[str, Any]
    work: TrainWork

    @property
    def name(self) -> str:
        """What a trial of that depth is called."""
        return f"grow-{self.setting['k']:02d}"

    def row(self, metrics: Mapping[str, Any], state: str) -> Row:
        """A row of trials.csv; it and its curve count all that the model has seen."""
        curve = [self._in_all(reading) for reading in metrics.get("curve", [])]
        seen = {**self._in_all(metrics), "curve": curve} if metrics else {}
        return describe_trial(self.name, self.setting, seen, state, lambda _: self.work.layers)

    def _in_all(self, reading: Mapping[str, Any]) -> Row:
        """What was reported, with the steps and tokens of the depths before added to its own."""
        steps = self.work.steps_before
        tokens = steps * self.work.blocks_per_step * self.work.seq_len
        return {**reading, "step": steps + reading["step"], "tokens": tokens + reading["tokens"]}


def plan_growth(
    run: SearchRun, space: SearchSpace, work: TrainWork, importance: LayerImportance
) -> list[GrowthStage]:
    """The depths of the space, ascending; the tokens of a trial are shared out among them.

    All but k is what the space tries first. Raises :class:`UserError` for a placement that isn't nested.
    """
    depths = list_depths(space.parameters["k"])
    found: list[GrowthStage] = []
    for depth in depths:
        setting = {**space.first[0], "k": depth}
        sizes = {"tokens": max(1, run.tokens_per_trial // len(depths)), "reports": 1}
        training = apply_changes(work.training, setting | sizes)
        if training.placement not in NESTED:
            raise UserError(
                f"--strategy grow: at placement {training.placement} a larger k doesn't keep the layers of a "
                f"smaller one; the setting that the search space tries first must have {' or '.join(NESTED)}"
            )
        stage = replace(work, training=training, layers=resolve_layers(importance, training, work.seed))
        found.append(GrowthStage(setting, replace(stage, steps_before=len(found) * stage.steps)))
    return found


def list_depths(k: Range) -> list[int]:
    """The depths above 0 that a range of k holds. Raises :class:`UserError` when there is none."""
    every = range(k.values[0], k.values[1] + 1) if k.kind == "int" else sorted(k.values)
    if found := [depth for depth in every if depth > 0]:
        return found
    raise UserError("--strategy grow: the search space has no k above 0")


def grow_model(
    plan: Sequence[GrowthStage],
    blocks: Any,
    storage: str,
    board: BoardClient,
    note: Callable[[Row], None] = lambda row: None,
    price: float = 0.0,
) -> list[Row]:
    """Grow through the stages of a `plan`; returns a row a depth, as a search does a trial.

    It stops at the first depth whose layers don't surely earn more than `price` points each (see
    :func:`growth_stop_reason`), and at one that fails. A depth that was trained before an interruption is only scored
    again. `note` is given each row when its depth begins and when it ends.
    """
    rows: list[Row] = []
    for stage in plan:
        note(stage.row({}, "running"))
        start = rows[-1]["saved"] if rows else ""
        try:
            title = title_trial(stage.name, stage.setting)
            job = Job(stage.name, "train", stage.work, blocks, storage, title=title, grown_from=start)
            *_, metrics = follow_job(board, job)
        except (CrewLost, DiskFull):
            raise
        except JobFailed as problem:
            error = find_cause(problem)
            rows.append({**stage.row({}, "failed"), "error": error})
            note(rows[-1])
            break
        rows.append(stage.row(metrics, "finished"))
        note(rows[-1])
        if growth_stop_reason(rows, stage.work.weights, price):
            break
    return rows


def growth_stop_reason(rows: Sequence[Row], weights: ScoreWeights, price: float = 0.0) -> str:
    """The sentence that says why no more layers are worth a try; empty as long as they are.

    They are while each added layer earns more than `price` points, at 95 %. What the last depth gains over
    the one before (the untouched backbone, at first), paired document by document, is shared out among them.
    """
    last, before = rows[-1], rows[-2] if len(rows) > 1 else {"k": 0, "score": 0.0, "score_se": 0.0}
    if last["state"] != "finished":
        return ""
    added = last["k"] - before["k"]
    gain, error = (last["score"] - before["score"]) / added, difference_error(last, before, weights) / added
    if not gain - price <= TOLD_APART * error:
        return ""
    asked = f"the {price:g} asked of it" if price else "none"
    return (
        f"the growth ended at k = {last['k']}: each layer beyond k = {before['k']} earned "
        f"{gain:.2f} ± {error:.2f} points, not surely more than {asked}"
    )
