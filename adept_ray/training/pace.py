"""Whether torch.compile is faster: steps of a training without it and with it, timed where they will run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from adept_ray.data.blocks import Blocks
from adept_ray.method.compiling import find_compiler_fault
from adept_ray.method.ranks import sum_over_ranks
from adept_ray.training.callbacks import Progress, ignore_progress
from adept_ray.training.learner import prepare_learner, take_step
from adept_ray.training.work import TrainWork

FIRST = 2  # steps in which what will be needed is made: layers are compiled, memory is taken
TIMED = 5  # steps after those
MARGIN = 0.05  # of a step's time: less than that is chance


def compiling_pays(times: Mapping[str, float], steps: int) -> bool:
    """Whether compiled layers save time over so many steps, by the `times` of :func:`time_compiling`.

    They have to save as much as compiling took. Batches of other sizes, such as importance is measured on,
    and other crews still have to compile.
    """
    saved = times["plain"] - times["compiled"]
    return saved > MARGIN * times["plain"] and steps * saved > times["compiling"]


def time_compiling(
    work: TrainWork,
    blocks: Mapping[str, Blocks],
    device: torch.device,
    progress: Progress = ignore_progress,
) -> dict[str, float | str]:
    """Time the first steps of `work` on this rank; all ranks have to call this.

    Returns the seconds of a step ``plain`` and ``compiled``, those of ``compiling``, which serves all
    trainings of this process, and as ``fault`` why no rank may compile, empty if all can. Nothing of what is
    trained is kept. `blocks` are those of :func:`~adept_ray.training.stage2.train`.
    """
    fault = find_compiler_fault(device.type)
    faults = float(sum_over_ranks(torch.tensor([float(bool(fault))], dtype=torch.float64), device))
    if faults:
        return {"fault": fault or "that of another worker fails"}
    _, plain = time_steps(work, blocks, device)
    progress(1, 2)
    first, compiled = time_steps(replace(work, fit=replace(work.fit, compiled=True)), blocks, device)
    progress(2, 2)
    compiling = max(0.0, first - FIRST * compiled)
    return {"fault": "", "plain": plain, "compiled": compiled, "compiling": compiling}


def time_steps(work: TrainWork, blocks: Mapping[str, Blocks], device: torch.device) -> tuple[float, float]:
    """Seconds of the first steps of `work` together, and the median of those after them."""
    gc.collect()  # an earlier model lies in cycles, and there may be no room for two
    # So small a rate changes no speed, and nothing diverges. What is kept of the first trial would not be
    # there in a step that others are to be judged by.
    slow = work.training.model_copy(update={"base_lr": 1e-9})
    work = replace(work, training=slow, fit=replace(work.fit, stream_bytes=0))
    learner = prepare_learner(work, blocks, device)
    scales = learner.tuning.compute_scales(learner.tuning.importance, work.training)
    seconds = []
    for step in range(FIRST + TIMED):
        began = time.perf_counter()
        take_step(learner, scales, step, learner.order.list_batch(step, work.blocks_per_step))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return sum(seconds[:FIRST]), statistics.median(seconds[FIRST:])
