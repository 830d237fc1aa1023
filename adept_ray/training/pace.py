"""Whether torch.compile is faster: steps of a training without it and with it, timed where they will run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from adept_ray.data.blocks import Blocks
from adept_ray.method.compiling import find_compiler_fault
from adept_ray.method.ranks import sum_over_ranks
from adept_ray.training.stage2 import build_optimizer, order_text, prepare_tuning, take_step
from adept_ray.training.work import TrainWork

FIRST = 2  # steps in which what will be needed is made: layers are compiled, memory is taken
TIMED = 5  # steps after those
MARGIN = 0.05  # of a step's time: less than that is chance


def compiling_pays(times: Mapping[str, float], steps: int) -> bool:
    """Whether compiled layers save time over so many steps, by the `times` that :func:`time_compiling` returns.

    They have to save as much as compiling took: for batches of other sizes, such as importance is measured
    on, and in other crews that is still to come.
    """
    saved = times["plain"] - times["compiled"]
    return saved > MARGIN * times["plain"] and steps * saved > times["compiling"]


def time_compiling(
    work: TrainWork,
    blocks: Mapping[str, Blocks],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Time the first steps of `work` on this rank; all ranks have to call this.

    Returns the seconds of a step ``plain`` and ``compiled``, those of ``compiling``, which serves all
    trainings of this process, and as ``fault`` why no rank may compile, empty if all can. What is trained is
    thrown away. `blocks` are those of :func:`~adept_ray.training.stage2.train`.
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
    # So small a rate changes no speed, and nothing diverges.
    work = replace(work, training=work.training.model_copy(update={"base_lr": 1e-9}))
    tuning = prepare_tuning(work, device)
    optimizer = build_optimizer(tuning.model, work.training, device)
    assert optimizer is not None, "there is nothing to train"
    scales = tuning.scales(tuning.importance, work.training)
    text, order = order_text(work, blocks)
    seconds = []
    for step in range(FIRST + TIMED):
        began = time.perf_counter()
        ids = order.batch(step, work.blocks_per_step)
        take_step(work, tuning, optimizer, scales, step, text, ids, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return sum(seconds[:FIRST]), statistics.median(seconds[FIRST:])
