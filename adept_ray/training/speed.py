"""How fast the workers are at what a search will ask of them: measured on them, in its shapes.

All ranks call these functions together. Nothing of what is computed is kept.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from adept_ray.data.blocks import Blocks, make_micro_batches
from adept_ray.data.loading import borrow, borrow_sharded
from adept_ray.method.anatomy import layers_of
from adept_ray.method.importance import limit_layers, limit_sequences, measure_bypass_losses, unit_importance
from adept_ray.method.ranks import sum_over_ranks, world_size
from adept_ray.method.scores import Metrics
from adept_ray.training.callbacks import Progress, ignore_progress
from adept_ray.training.learner import Learner, prepare_learner, take_step
from adept_ray.training.pace import time_compiling, time_steps
from adept_ray.training.scoring import measure_document_nats
from adept_ray.training.stage2 import make_probe_batches
from adept_ray.training.streams import make_store
from adept_ray.training.work import SpeedWork, TrainWork

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PIECE = (
    2**26
)  # float32 values that travel at a time: gradients do so in pieces, and there may be no more room
REPEATS, LONG_S = 3, 2.0  # calls that are timed, unless one takes so many seconds
PARTS = 5  # of progress
SLOW = 1e-9  # a rate that changes no speed, and at which nothing diverges


def measure_speed(
    work: SpeedWork,
    blocks: Mapping[str, Blocks],
    device: torch.device,
    progress: Progress = ignore_progress,
) -> Metrics:
    """Measure on this rank how fast a training computes; all ranks have to call this.

    `blocks` has ``train``, ``remeasure``, ``general`` (a micro-batch a rank) and ``probe`` (a micro-batch).
    Returns seconds: of a ``step`` and, if asked for, ``compiled`` and ``compiling`` as in
    :func:`~adept_ray.training.pace.time_compiling` or the ``fault`` why that can't be; of measuring units
    again on ``remeasure``; of ``validation`` of the ``validated`` blocks; of a step and of a validation that
    begin at kept streams, ``kept_step`` and ``kept_validation``, where a training keeps any; of a ``forward``
    pass of ``probed`` blocks of the probe, and of a ``bypass`` in it. Also ``product_flops`` a second of a
    layer's largest product, and the ``reduced`` bytes that a step's gradients send over the workers in
    ``reducing`` seconds.
    """
    training = work.training
    found: Metrics = {"fault": ""}
    if work.compiling:
        found |= time_compiling(training, blocks, device)
        found["step"] = found.pop("plain", None)
    if found.get("step") is None:
        found["step"] = time_steps(
            replace(training, fit=replace(training.fit, compiled=False)), blocks, device
        )[1]
    progress(1, PARTS)
    gc.collect()
    found |= time_learner(training, blocks, device)
    progress(3, PARTS)
    gc.collect()
    found |= time_probe(training, blocks["probe"], device)
    progress(PARTS, PARTS)
    return found


def time_learner(work: TrainWork, blocks: Mapping[str, Blocks], device: torch.device) -> Metrics:
    """Seconds of validation and of measuring units again, and of sending the gradients over the workers."""
    slow = work.training.model_copy(update={"base_lr": SLOW})
    work = replace(work, training=slow, fit=replace(work.fit, compiled=False))
    learner = prepare_learner(work, blocks, device)
    tuning, general = learner.tuning, blocks["general"]
    validation = time_validation(learner, general)

    def measure_units() -> None:
        batches = make_probe_batches(work, blocks, device)
        unit_importance(tuning.model, batches, tuning.rated, limit_layers(tuning.model))

    trained = sum(parameter.numel() for parameter in tuning.parameters.values())
    remeasured = time_calls(measure_units, device)
    return {
        **time_kept_streams(learner, general),
        "validation": validation,
        "validated": len(general),
        "remeasure": remeasured,
        "reduced": 4 * trained,
        "reducing": time_reduction(trained, device),
        "product_flops": measure_product(tuning.model, work, device),
    }


def time_validation(learner: Learner, held_out: Blocks) -> float:
    """Seconds of validation, as a trial has it."""
    tuning, size = learner.tuning, learner.work.micro_batch
    with tuning.use_exported_weights():
        return time_calls(lambda: measure_document_nats(tuning.model, held_out, size), learner.device)


def time_kept_streams(learner: Learner, held_out: Blocks) -> Metrics:
    """Seconds of a step and of validation that begin where the lowest copy does, as most of a search's do.

    The first call of each, which doesn't count, keeps the streams. Nothing, where a training keeps none.
    """
    work, tuning = learner.work, learner.tuning
    if not work.fit.stream_bytes or work.training.tunes != "copies" or tuning.lowest == 0:
        return {}
    tuning.keep_prefix(make_store(learner.device, work.fit.stream_bytes), keeps_text=True)
    scales = tuning.compute_scales(tuning.importance, work.training)
    ids = learner.order.list_batch(0, work.blocks_per_step)
    step = time_calls(lambda: take_step(learner, scales, 0, ids), learner.device)
    return {"kept_step": step, "kept_validation": time_validation(learner, held_out)}


def time_probe(work: TrainWork, probe: Blocks, device: torch.device) -> Metrics:
    """Seconds of a pass of the untouched backbone over a batch of the probe, and of bypassing a layer in it.

    A bypass runs the layers behind the bypassed one, so three that lie evenly stand for all.
    """
    model = (borrow_sharded if work.fit.sharded else borrow)(work.backbone, device)
    count = min(limit_sequences(model, work.seq_len), work.micro_batch, len(probe))
    (batch,) = make_micro_batches(probe, range(count), count, device)
    layers = [len(layers_of(model)) * quarter // 4 for quarter in (1, 2, 3)]
    forward = time_calls(lambda: measure_bypass_losses(model, batch, []), device)
    bypassed = time_calls(lambda: measure_bypass_losses(model, batch, layers), device)
    return {"probed": count, "forward": forward, "bypass": max(0.0, bypassed - forward) / len(layers)}


def time_reduction(values: int, device: torch.device) -> float:
    """Seconds in which so many float32 `values` are summed over all ranks; 0 where there is one."""
    if world_size() == 1:
        return 0.0
    piece = torch.zeros(min(PIECE, values), device=device)

    def reduce() -> None:
        for start in range(0, values, PIECE):
            dist.all_reduce(piece[: values - start])

    return time_calls(reduce, device)


def measure_product(model: PreTrainedModel, work: TrainWork, device: torch.device) -> float:
    """Operations a second of the product of a micro-batch with a layer's largest matrix, in the real type."""
    config = model.config
    dtype = getattr(torch, work.backbone.dtype)
    rows, wide = work.micro_batch * work.seq_len, getattr(config, "intermediate_size", config.hidden_size)
    left = torch.randn(rows, config.hidden_size, device=device, dtype=dtype)
    right = torch.randn(config.hidden_size, wide, device=device, dtype=dtype)
    many = 20 if device.type == "cuda" else 1

    def multiply() -> None:
        for _ in range(many):
            left @ right

    return many * 2 * rows * config.hidden_size * wide / time_calls(multiply, device)


def time_calls(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of `call`, after one that doesn't count; once is enough where that one took long."""
    seconds = [time_call(call, device)]
    # All ranks have to make as many calls, so they go by all their clocks.
    first = sum_over_ranks(torch.tensor(seconds, dtype=torch.float64), device) / world_size()
    for _ in range(1 if float(first) > LONG_S else REPEATS):
        seconds.append(time_call(call, device))
    return statistics.median(seconds[1:])


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device has done it."""
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
