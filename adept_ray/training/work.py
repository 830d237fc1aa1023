"""What the two stages are to do, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.data.benchmark_tasks import TaskItems
from adept_ray.method.fit import PLAIN, Fit


@dataclass(frozen=True)
class ProbeWork:
    """What to measure of which backbone; the blocks come apart from it."""

    source: str
    """Folder or hub id of the backbone."""
    revision: str | None
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
    dtype: str = "float32"
    """Torch type that the backbone is held in."""
    fit: Fit = PLAIN
    """How the model is made to fit into the workers' memories."""
    trusted: bool = False
    """Whether the Python code that comes with the backbone may be run."""


@dataclass(frozen=True)
class TrainWork:
    """One training: what to expand, how to train, what to compare with. Blocks come apart from it."""

    source: str
    """Folder or hub id of the backbone."""
    revision: str | None
    training: TrainingSpec
    layers: tuple[int, ...]
    """The placed layers (S_k where the placement is guided): ids in the backbone, ascending."""
    units: Mapping[str, float]
    """Unit importances measured on the backbone (parameter name → importance)."""
    before: Mapping[str, Sequence[float]]
    """``general`` and ``domain`` → the untouched backbone's loss of each validation document, nats; under the
    names of :func:`~adept_ray.training.scoring.tasks_key` its answers to the items."""
    weights: ScoreWeights
    seq_len: int
    micro_batch: int
    seed: int
    items: Mapping[str, TaskItems] = field(default_factory=dict)
    """Side → validation items of its benchmark tasks, if it has any."""
    by_tasks: bool = True
    """Whether the answers to those count, in place of bits per byte."""
    dtype: str = "float32"
    """Torch type that the backbone is held in; what is trained is float32 whatever it is."""
    fit: Fit = PLAIN
    """How it is made to fit into the workers' memories."""
    steps_before: int = 0
    """Steps of the trainings that it goes on from: the text goes on where it was."""
    trusted: bool = False
    """Whether the Python code that comes with the backbone may be run."""

    @property
    def replayed(self) -> float:
        """Share of general text in the training text."""
        return 1.0 if self.training.text == "general" else self.training.replay

    @property
    def blocks_per_step(self) -> int:
        """Blocks of one optimizer step over all workers."""
        return max(1, self.training.tokens_per_step // self.seq_len)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return max(1, self.training.tokens // (self.blocks_per_step * self.seq_len))

    @property
    def report_steps(self) -> list[int]:
        """Number of steps done at each report, ascending; the last is the end."""
        reports = min(self.training.reports, self.steps)
        return [round(self.steps * (i + 1) / reports) for i in range(reports)]
