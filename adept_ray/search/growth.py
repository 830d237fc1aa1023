"""Growing in place of restarting: one model that is given the next copy again and again.

S_k is nested in S_{k+1} and a fresh copy changes nothing. So a model that was trained with k copies becomes
one with k + 1 when the next copy is inserted. Train a while, insert, train: that gives the whole curve of
score against k for about the cost of one training at the largest k. Each reading comes at the end of a
schedule of its own (warm-up and decay), so readings compare. But the later ones have seen more text. So a
gain is that of a layer *and* of the text that it was trained on, and growing asks for a larger k than
independent trials do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adept_ray.config.errors import UserError, find_cause
from adept_ray.config.search_space import Range, SearchSpace
from adept_ray.config.specs import ScoreWeights, SearchRun
from adept_ray.config.validation import apply_changes
from adept_ray.engine.client import BoardClient, follow_job
from adept_ray.engine.job import CrewLost, DiskFault, Job, JobFailed
from adept_ray.method.importance import LayerImportance
from adept_ray.method.placement import resolve_layers
from adept_ray.method.scores import difference_error, value_or_nan
from adept_ray.search.answers import SURE_ERRORS
from adept_ray.search.choice import BACKBONE
from adept_ray.search.trials import Facts, Setting, Trial, describe_trial, title_trial
from adept_ray.training.work import TrainWork

if TYPE_CHECKING:
    from ray import ObjectRef

NESTED = ("guided", "deepest")  # placements whose layers for k are among those for k + 1


@dataclass(frozen=True)
class GrowthStage:
    """One depth of a growth: its setting, as a trial has one, and the training that leads to it."""

    setting: Setting
    work: TrainWork

    @property
    def name(self) -> str:
        """What a trial of that depth is called."""
        return f"grow-{self.setting['k']:02d}"

    def describe_trial(self, metrics: Facts, state: str) -> Trial:
        """The depth as a trial, with what its last report says; it counts all that the model has seen."""
        trial = describe_trial(self.name, self.setting, metrics, state, self.work.layers)
        if trial.tokens is None:
            return trial
        steps = self.work.steps_before
        tokens = steps * self.work.blocks_per_step * self.work.seq_len
        curve = [replace(each, step=steps + each.step, tokens=tokens + each.tokens) for each in trial.curve]
        return replace(trial, tokens=tokens + trial.tokens, curve=tuple(curve))


def plan_growth(
    run: SearchRun, space: SearchSpace, work: TrainWork, importance: LayerImportance
) -> list[GrowthStage]:
    """The depths of the space, ascending; they share the tokens of one trial.

    The rest of the setting is what the space tries first. Raises :class:`UserError` for a placement that
    isn't nested.
    """
    depths = list_depths(space.parameters["k"])
    plan: list[GrowthStage] = []
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
        plan.append(GrowthStage(setting, replace(stage, steps_before=len(plan) * stage.steps)))
    return plan


def list_depths(k: Range) -> list[int]:
    """The depths above 0 that a range of k holds. Raises :class:`UserError` when there is none."""
    every = range(k.values[0], k.values[1] + 1) if k.kind == "int" else sorted(k.values)
    if depths := [depth for depth in every if depth > 0]:
        return depths
    raise UserError(
        "--strategy grow: the search space has no k above 0: give a range with some, such as --range k=1:8"
    )


def grow_model(
    plan: Sequence[GrowthStage],
    blocks: ObjectRef,
    storage: str,
    board: BoardClient,
    show: Callable[[Trial], None] = lambda trial: None,
    price: float = 0.0,
) -> list[Trial]:
    """Grow through the stages of a `plan`; returns a trial for each depth.

    Growth stops at a depth that fails, and at the first depth whose layers don't surely earn more than
    `price` points each (see :func:`explain_growth_end`). A depth that was trained before an interruption is
    only scored again. `show` is given each trial when its depth begins and when it ends.
    """
    trials: list[Trial] = []
    for stage in plan:
        show(stage.describe_trial({}, "running"))
        start = trials[-1].checkpoint if trials else ""
        try:
            title = title_trial(stage.name, stage.setting)
            job = Job(stage.name, "train", stage.work, blocks, storage, title=title, grown_from=start)
            *_, metrics = follow_job(board, job)
        except (CrewLost, DiskFault):
            raise
        except JobFailed as problem:
            trials.append(replace(stage.describe_trial({}, "failed"), error=find_cause(problem)))
            show(trials[-1])
            break
        trials.append(stage.describe_trial(metrics, "finished"))
        show(trials[-1])
        if explain_growth_end(trials, stage.work.weights, price):
            break
    return trials


def explain_growth_end(trials: Sequence[Trial], weights: ScoreWeights, price: float = 0.0) -> str:
    """The sentence that says why no more layers are worth a try; empty as long as they are.

    They are while each added layer earns more than `price` points, at 95 %. The gain of the last depth over
    the one before (at first over the untouched backbone), paired document by document, is divided by the
    layers that it added.
    """
    last, before = trials[-1], trials[-2] if len(trials) > 1 else BACKBONE
    if last.state != "finished":
        return ""
    added = last.k - before.k
    gain = (value_or_nan(last.score) - value_or_nan(before.score)) / added
    error = difference_error(last, before, weights) / added
    if not gain - price <= SURE_ERRORS * error:
        return ""
    bar = f"the {price:g} asked of it" if price else "none"
    return (
        f"the growth ended at k = {last.k}: each layer beyond k = {before.k} earned "
        f"{gain:.2f} ± {error:.2f} points, not surely more than {bar}"
    )
