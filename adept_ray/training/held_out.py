"""What a reading is made on: held-out text and items of both sides, all of it or a half."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from adept_ray.data.benchmark_tasks import TaskItems
from adept_ray.data.blocks import Blocks
from adept_ray.method.scores import SIDES, Metrics, tasks_key
from adept_ray.training.scoring import Measured, measure_held_out, score_model
from adept_ray.training.work import TrainWork

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEWEST = 5  # documents or items of a half: what fewer say of the error is mostly chance


@dataclass(frozen=True)
class HeldOut:
    """Held-out text and items, and what was measured of the untouched backbone on them."""

    blocks: Mapping[str, Blocks]
    """The blocks of both sides, among others."""
    items: Mapping[str, TaskItems]
    """Side → items of its tasks, if it has any."""
    before: Mapping[str, Measured]
    """As in :attr:`TrainWork.before`."""
    places: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name of a measurement of which this has a part → which of all documents or items these are."""

    def take_half(self) -> HeldOut:
        """The same half each time: the first half of a side's blocks, every second item of a task.

        A side of few documents or items keeps all.
        """
        blocks, items, places = dict(self.blocks), dict(self.items), dict(self.places)
        for side in SIDES:
            half = self.blocks[side].take_half()
            if half.counted is not None and half.counted >= FEWEST:
                blocks[side], places[side] = half, np.arange(half.counted)
        for side, every in self.items.items():
            some, chosen = every.take_half()
            if len(some) >= FEWEST:
                items[side], places[tasks_key(side)] = some, chosen
        return HeldOut(blocks, items, self._pick(self.before, places), places)

    def measure(self, model: PreTrainedModel, work: TrainWork) -> dict[str, np.ndarray]:
        """What a model loses and answers here (see :func:`measure_held_out`)."""
        return measure_held_out(model, replace(work, items=self.items), self.blocks)

    def select(self, measured: Mapping[str, Measured]) -> dict[str, Measured]:
        """What is here of what was `measured` on all."""
        return self._pick(measured, self.places)

    @staticmethod
    def _pick(measured: Mapping[str, Measured], places: Mapping[str, np.ndarray]) -> dict[str, Measured]:
        return {
            name: np.asarray(values)[places[name]] if name in places else values
            for name, values in measured.items()
        }

    def score(self, after: Mapping[str, Measured], work: TrainWork) -> Metrics:
        """The metrics of a model from what was measured of it here (see :func:`score_model`)."""
        return score_model(self.before, after, self.blocks, work.by_tasks, work.weights)
