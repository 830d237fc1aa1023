"""What one rank trains in stage 2: the model made ready, its optimizer, its text, and one step of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from adept_ray.config.schedules import count_warmup_steps
from adept_ray.config.specs import TrainingSpec
from adept_ray.data.blocks import BlockOrder, Blocks, join_blocks, make_shared_batches
from adept_ray.data.loading import borrow, build_outline
from adept_ray.method.gradients import sum_gradients
from adept_ray.method.loss import next_token_nats
from adept_ray.method.ranks import rank
from adept_ray.method.rates import cosine_factor, parameter_groups, set_rates, wsd_factor
from adept_ray.method.sharding import gather_whole, is_sharded
from adept_ray.method.tuning import Tuning, build_tuning
from adept_ray.training.alarms import Alarms
from adept_ray.training.streams import drop_store, lend_store
from adept_ray.training.work import TrainWork

# Where one kernel makes AdamW's whole step. On two CPU cores it takes 12 in place of 57 ms for four copies of
# SmolLM2's layers, and 120 in place of 720 ms for all its parameters. Other devices may have none.
FUSED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Learner:
    """What one rank trains, on which text, and with which optimizer."""

    work: TrainWork
    device: torch.device
    tuning: Tuning
    optimizer: torch.optim.Optimizer | None
    """None where there is nothing to train."""
    text: Blocks
    """The blocks to train on, those of its parts one after the other."""
    order: BlockOrder
    """Which of them come at a step."""
    alarms: Alarms = field(default_factory=Alarms)
    """What is due by the clock."""


def prepare_learner(work: TrainWork, blocks: Mapping[str, Blocks], device: torch.device) -> Learner:
    """Make model, optimizer and text of a training ready on this rank."""
    tuning = prepare_tuning(work, device)
    optimizer = build_optimizer(tuning.model, work.training, device)
    return Learner(work, device, tuning, optimizer, *order_text(work, blocks))


def prepare_tuning(work: TrainWork, device: torch.device) -> Tuning:
    """What the work trains, on this rank.

    Copies are trained beside the backbone that the process holds; other methods change its weights, so they
    take it for themselves.
    """
    how = work.training, work.layers, work.units, work.seed
    alone = work.training.tunes != "copies"
    if work.fit.sharded:
        whole = build_tuning(borrow(work.backbone, alone=alone), *how).model if rank() == 0 else None
        tuning = build_tuning(build_outline(work.backbone), *how)
        tuning.shard(whole, device)
    else:
        tuning = build_tuning(borrow(work.backbone, device, alone=alone), *how)
    if work.fit.recompute:
        tuning.recompute_activations()
    if work.fit.compiled:
        tuning.compile_layers()
    keep_prefix(tuning, work, device)
    return tuning


def keep_prefix(tuning: Tuning, work: TrainWork, device: torch.device) -> None:
    """Let the layers below the lowest copy run once for each batch, as far as this worker may keep streams.

    Another kind of training has no such layers, and gets the memory. Random weights are others each time.
    """
    if work.training.tunes != "copies" or not work.fit.stream_bytes or work.backbone.random:
        drop_store()
    else:
        tuning.keep_prefix(lend_store(work.backbone, device, work.fit.stream_bytes), work.text_returns)


def build_optimizer(
    model: nn.Module, spec: TrainingSpec, device: torch.device
) -> torch.optim.Optimizer | None:
    """AdamW with a group for each unit of what `model` trains, in pieces or not; None if that is nothing.

    A checkpoint holds AdamW's moments and steps and not its kind, so each kind goes on from the other's.
    """
    groups = parameter_groups(model, spec.weight_decay)
    return torch.optim.AdamW(groups, fused=device.type in FUSED_DEVICES) if groups else None


def order_text(work: TrainWork, blocks: Mapping[str, Blocks]) -> tuple[Blocks, BlockOrder]:
    """The blocks to train on and the order in which they come, part by part."""
    shares = work.text_shares
    parts = [blocks[name] for name in shares]
    order = BlockOrder(tuple(map(len, parts)), work.seed, tuple(shares.values()))
    return join_blocks(parts), order


def take_step(learner: Learner, scales: Mapping[str, float], step: int, ids: Sequence[int]) -> float:
    """Make optimizer step number `step` (from 0) on the blocks `ids` of the text; returns the loss before it.

    Raises FloatingPointError, naming the step, when the loss or its gradient is not finite.
    """
    work, tuning, optimizer = learner.work, learner.tuning, learner.optimizer
    assert optimizer is not None, "there is nothing to train"
    spec, parameters = work.training, list(tuning.parameters.values())
    set_rates(optimizer, spec.base_lr, compute_rate_factor(work, step), scales)
    share = compute_gradients(tuning.model, parameters, learner.text, ids, work.micro_batch, learner.device)
    loss = learner.alarms.sum_with_loss(share, learner.device)
    clip_gradients(parameters, spec.clip, loss, f"step {step + 1} of {work.steps}")
    optimizer.step()
    tuning.observe_step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    return loss


def compute_rate_factor(work: TrainWork, step: int) -> float:
    """Factor of all rates at a step (from 0), by the schedule of the work."""
    spec, decay_start = work.training, work.decay_start
    if decay_start is None:
        return cosine_factor(step, work.steps, spec.warmup, spec.final_lr)
    return wsd_factor(step, work.steps, count_warmup_steps(spec, work.seq_len), decay_start, spec.final_lr)


def compute_gradients(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    blocks: Blocks,
    ids: Sequence[int],
    micro_batch: int,
    device: torch.device,
) -> torch.Tensor:
    """Fill ``.grad`` with the gradient of the mean loss over the global batch `ids`.

    Returns this rank's share of that loss, float64 [1] on `device`. Every rank works on its share and the
    gradients are summed: as the last backward pass goes on, or by FSDP where ranks hold pieces of the model.
    Shares may be uneven: the sum is divided by the tokens of the whole batch.
    """
    total = len(ids) * (blocks.tokens.shape[1] - 1)  # packed blocks have no padding
    nats = torch.zeros(1, dtype=torch.float64, device=device)
    batches = list(make_shared_batches(blocks, ids, micro_batch, device))
    for number, batch in enumerate(batches, 1):
        loss = next_token_nats(model, batch)[0].sum() / total
        is_last = number == len(batches) and not is_sharded(model)
        with sum_gradients(parameters) if is_last else nullcontext():
            loss.backward()
        nats += loss.detach()
    return nats


def clip_gradients(parameters: Sequence[nn.Parameter], clip: float, loss: float, at: str) -> None:
    """Clip the global norm; raises FloatingPointError, naming where, when it or the loss isn't finite."""
    norm = float(gather_whole(nn.utils.clip_grad_norm_(parameters, clip)))
    # Clipping an infinite gradient would make every weight nan.
    if not math.isfinite(loss + norm):
        raise FloatingPointError(f"the loss is {loss} and its gradient's norm {norm} at {at}")
