"""What torch.compile is worth: steps of a training with it and without, timed where it will run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import torch

from adept_ray.corpus import Blocks
from adept_ray.train import TrainJob, optimized, optimizer_of, ready, training_text

FIRST = 2  # steps in which what will be needed is made: layers are compiled, memory is taken
TIMED = 5  # steps after those


@dataclass(frozen=True)
class Pace:
    """Seconds of a training."""

    plain: float
    """Of a step."""
    compiled: float
    """Of a step with compiled layers."""
    compiling: float
    """Of making them, once for all trainings of a worker."""

    def pays(self, steps: int) -> bool:
        """Whether so many steps are over sooner with compiled layers, their making included."""
        return self.compiling + steps * self.compiled < steps * self.plain


def pace(
    job: TrainJob,
    blocks: Mapping[str, Blocks],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, float]:
    """The fields of a :class:`Pace`, from the first steps of `job` on this rank; all ranks have to call this.

    What is trained is thrown away. `blocks` are those of :func:`~adept_ray.train.train`.
    """
    first, each = {}, {}
    for number, compiled in enumerate((False, True)):
        way = replace(job, fit=replace(job.fit, compiled=compiled))
        first[compiled], each[compiled] = timed_steps(way, blocks, device)
        progress(number + 1, 2)
    made = first[True] - FIRST * each[True]
    return asdict(Pace(each[False], each[True], max(0.0, made)))


def timed_steps(job: TrainJob, blocks: Mapping[str, Blocks], device: torch.device) -> tuple[float, float]:
    """Seconds of the first steps of `job` together, and the median of those after them."""
    tuning = ready(job, device)
    optimizer = optimizer_of(tuning.model, job.training, device)
    assert optimizer is not None, "there is nothing to train"
    scales = tuning.scales(tuning.importance, job.training)
    text, order = training_text(job, blocks)
    seconds = []
    for step in range(FIRST + TIMED):
        began = time.perf_counter()
        ids = order.batch(step, job.blocks_per_step)
        optimized(job, tuning, optimizer, scales, step, text, ids, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return sum(seconds[:FIRST]), statistics.median(seconds[FIRST:])
