"""What the two stages are to do, and what stage 1 finds, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

from adept_ray.config.schedules import count_step_blocks, count_steps, count_trial_steps, find_decay_start
from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.data.benchmark_tasks import TaskItems
from adept_ray.data.loading import Backbone
from adept_ray.method.activations import LayerSeparation
from adept_ray.method.fit import PLAIN, Fit

ONE_PART_EACH = {"domain": {"train": 1.0}, "general": {"replay": 1.0}}


@dataclass(frozen=True)
class ProbeWork:
    """What to measure of which backbone; the blocks come apart from it."""

    backbone: Backbone
    micro_batch: int
    importance: bool = True
    """Measure layer and unit importance on the blocks named ``probe``."""
    raced: bool = False
    """Give up layers that can't be among the `k_max` least important (see :mod:`adept_ray.method.race`)."""
    k_max: int | None = None
    """Largest expansion depth of interest; None: every depth."""
    confidence: float = 0.95
    """Probability that no pair of layers is put in the wrong order where the order is called certain."""
    held_out: tuple[str, ...] = ()
    """Names of the blocks on which to record the untouched backbone's losses."""
    items: Mapping[str, TaskItems] = field(default_factory=dict)
    """Name → benchmark items on which to record its answers."""
    reception: bool = False
    """Measure each layer's reception on the blocks named ``reception``."""
    separation: bool = False
    """Measure how far apart every layer keeps the blocks ``general`` and ``domain``."""
    fit: Fit = PLAIN
    """How the model is made to fit into the workers' memories."""


class LayerRow(TypedDict):
    """What importance.json says of a layer; importance is in nats per token."""

    layer: int
    mean: float
    standard_error: float | None
    """None with a single sequence."""
    sequences: int
    """Sequences of the probe that it was measured on."""
    places: list[int]
    """The lowest and the highest place (0-based) that it can have in the order."""


class ImportanceRecord(TypedDict):
    """Content of importance.json but for where it came from (see :mod:`adept_ray.method.importance`)."""

    probe: str
    base_loss: float
    layers: list[LayerRow]
    order: list[int]
    confidence: float
    settled: list[int]
    ties: list[list[int]]
    units: dict[str, float]
    seconds: float


class ProbeResult(TypedDict, total=False):
    """What stage 1 found, as far as it was asked for."""

    importance: ImportanceRecord
    nats: dict[str, list[float]]
    """Name of blocks → summed loss of each document."""
    correct: dict[str, list[float]]
    """Name of items → 1 or 0 for each."""
    reception: list[float]
    """A number a layer (see :mod:`adept_ray.method.reception`)."""
    separation: list[LayerSeparation]
    """A row a layer (see :mod:`adept_ray.method.activations`)."""


def dial_key(side: str) -> str:
    """Name of a side's blocks by which a dial is found, where those aren't what a training is judged by."""
    return f"dial {side}"


@dataclass(frozen=True)
class DialText:
    """Held-out text and items by which a dial is found, where a training is judged by others."""

    before: Mapping[str, Sequence[float]]
    """What was measured there of the untouched backbone, as :attr:`TrainWork.before`."""
    items: Mapping[str, TaskItems] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainWork:
    """One training: what to expand, how to train, what to compare with. Blocks come apart from it."""

    backbone: Backbone
    training: TrainingSpec
    layers: tuple[int, ...]
    """The placed layers (S_k where the placement is guided): ids in the backbone, ascending."""
    units: Mapping[str, float]
    """Unit importances measured on the backbone (parameter name → importance)."""
    before: Mapping[str, Sequence[float]]
    """``general`` and ``domain`` → the untouched backbone's loss of each validation document, nats; under the
    names of :func:`~adept_ray.method.scores.tasks_key` its answers to the items."""
    weights: ScoreWeights
    seq_len: int
    micro_batch: int
    seed: int
    items: Mapping[str, TaskItems] = field(default_factory=dict)
    """Side → validation items of its benchmark tasks, if it has any."""
    by_tasks: bool = True
    """Whether the answers to those count, in place of bits per byte."""
    fit: Fit = PLAIN
    """How it is made to fit into the workers' memories."""
    steps_before: int = 0
    """Steps of the trainings that it goes on from: the text goes on where it was."""
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: ONE_PART_EACH)
    """Side → name of the blocks of each of its parts to train on → its share of the side's tokens."""
    dial_text: DialText | None = None
    """By what the dial is found, where that isn't what the training is judged by."""
    text_returns: bool = False
    """Whether trainings after it have the same batches, so that what is kept of these is of use."""

    @property
    def text_shares(self) -> dict[str, float]:
        """Name of the blocks of each part of the training text → its share; parts without one are left out.

        General text that is mixed in is one part more, or several, behind those of the domain.
        """
        general = self.training.general_share
        sides = {"domain": 1.0 - general, "general": general}
        shares = {name: sides[side] * share for side in sides for name, share in self.parts[side].items()}
        return {name: share for name, share in shares.items() if share}

    @property
    def blocks_per_step(self) -> int:
        """Blocks of one optimizer step over all workers."""
        return count_step_blocks(self.training, self.seq_len)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return count_steps(self.training, self.seq_len)

    @property
    def trial_steps(self) -> int:
        """Optimizer steps of a search's trial: by wsd those of all its branches."""
        return count_trial_steps(self.training, self.seq_len)

    @property
    def decay_start(self) -> int | None:
        """Step (from 0) at which the plateau of a wsd training ends; None where there is none."""
        return find_decay_start(self.training, self.seq_len)

    @property
    def report_steps(self) -> list[int]:
        """Number of steps done at each report, ascending; the last is the end."""
        reports = min(self.training.reports, self.steps)
        return [round(self.steps * (i + 1) / reports) for i in range(reports)]

    def turn(self, dial: float | str) -> TrainWork:
        """The work of a training that is over, with the dial at which its model is tested and exported."""
        return replace(self, training=apply_changes(self.training, {"dial": dial}))

    def count_tokens(self, steps: int) -> int:
        """Tokens of so many steps."""
        return steps * self.blocks_per_step * self.seq_len


@dataclass(frozen=True)
class SpeedWork:
    """A training of which only the speed is to be measured; its backbone's weights may be random."""

    training: TrainWork
    compiling: bool
    """Measure steps by torch.compile, too."""
