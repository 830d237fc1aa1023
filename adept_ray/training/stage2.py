"""Stage 2, what every Ray Train worker runs: make ready, tune with unit-wise rates, measure again, score.

:func:`train` is the loop. It is an ordinary function of its arguments: Ray, the command line and the tests
call the same one.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from adept_ray.config.specs import TrainingSpec
from adept_ray.data.blocks import BlockOrder, Blocks, join_blocks, make_shared_batches
from adept_ray.data.loading import borrow, build_outline
from adept_ray.method.anatomy import unit_of
from adept_ray.method.importance import limit_layers, unit_importance
from adept_ray.method.loss import Batch, next_token_nats
from adept_ray.method.ranks import rank, sum_over_ranks, sum_over_ranks_in_place, world_size
from adept_ray.method.rates import average_scales, parameter_groups, schedule_factor, set_rates
from adept_ray.method.scores import Metrics
from adept_ray.method.sharding import gather_whole, is_sharded
from adept_ray.method.tuning import Tuning, build_tuning
from adept_ray.training.callbacks import FROM_BACKBONE, Callbacks, ResumePoint
from adept_ray.training.scoring import measure_held_out, score_model
from adept_ray.training.state import TrainState
from adept_ray.training.work import TrainWork


def train(
    work: TrainWork,
    blocks: Mapping[str, Blocks],
    device: torch.device,
    callbacks: Callbacks,
    start: ResumePoint = FROM_BACKBONE,
) -> None:
    """Run stage 2 on this rank.

    `blocks` has ``train``, ``remeasure``, ``general`` and ``domain`` (validation), and ``replay`` where
    general text is trained on. Raises FloatingPointError, naming the step, when the loss, its gradient or an
    importance is not finite.
    """
    clock = Clock()
    learner = prepare_learner(work, blocks, device)
    tuning, optimizer = learner.tuning, learner.optimizer
    state = begin_state(learner, start)
    scales = tuning.compute_scales(state.importance, work.training)
    begun = state.step  # by an earlier process
    while True:
        # Once in a while: all steps are made, and some methods have a last word on the weights.
        if optimizer is not None and begun < state.step == work.steps:
            with clock.count_training():
                tuning.finish(optimizer, make_probe_batches(work, blocks, device))

        # Once in a while: score on the held-out blocks, save, report, and hear whether to go on. After a
        # resume the last report comes again: it may not have been heard before the interruption.
        if state.step in work.report_steps:
            state.reports += state.step > begun
            metrics = take_reading(learner, state, blocks)
            metrics |= clock.read(work.count_tokens(state.step - begun))
            with save_temporarily(learner, state) as folder:
                callbacks.report(metrics, folder)
            if state.step == work.steps or callbacks.should_stop(state.reports):
                return

        # Once in a while: this machine is about to be taken away, so save now.
        elif state.step > begun and callbacks.asked_to_save():
            with save_temporarily(learner, state) as folder:
                callbacks.keep(state.step, folder)

        with clock.count_training():
            # Once in a while: the domain has moved what is trained, so ask the general probe again.
            if needs_measuring(learner, state):
                state.importance = remeasure_importance(
                    learner, state, make_probe_batches(work, blocks, device)
                )
                record_rates(state, tuning, work.training)
                scales = tuning.compute_scales(state.importance, work.training)

            if optimizer is not None:
                ids = learner.order.list_batch(work.steps_before + state.step, work.blocks_per_step)
                state.loss = take_step(learner, scales, state.step, ids)
            state.step += 1
            callbacks.progress(state.step, work.steps)


@dataclass(frozen=True)
class Learner:
    """What one rank trains, on which text, and with which optimizer."""

    work: TrainWork
    device: torch.device
    tuning: Tuning
    optimizer: torch.optim.Optimizer | None
    """None where there is nothing to train."""
    text: Blocks
    """The blocks to train on, replayed ones behind the others."""
    order: BlockOrder


def prepare_learner(work: TrainWork, blocks: Mapping[str, Blocks], device: torch.device) -> Learner:
    """Make model, optimizer and text of a training ready on this rank."""
    tuning = prepare_tuning(work, device)
    optimizer = build_optimizer(tuning.model, work.training, device)
    return Learner(work, device, tuning, optimizer, *order_text(work, blocks))


def take_step(learner: Learner, scales: Mapping[str, float], step: int, ids: Sequence[int]) -> float:
    """Make optimizer step number `step` (from 0) on the blocks `ids` of the text; returns the loss before it.

    Raises FloatingPointError, naming the step, when the loss or its gradient is not finite.
    """
    work, tuning, optimizer = learner.work, learner.tuning, learner.optimizer
    assert optimizer is not None, "there is nothing to train"
    spec, parameters = work.training, list(tuning.parameters.values())
    set_rates(optimizer, spec.base_lr, schedule_factor(step, work.steps, spec.warmup, spec.final_lr), scales)
    loss = compute_gradients(tuning.model, parameters, learner.text, ids, work.micro_batch, learner.device)
    clip_gradients(parameters, spec.clip, loss, f"step {step + 1} of {work.steps}")
    optimizer.step()
    tuning.observe_step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    return loss


class Clock:
    """How long this process has worked, and how long of that it has trained."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._training = 0.0

    @contextmanager
    def count_training(self) -> Iterator[None]:
        """Count the time within this as training."""
        began = time.perf_counter()
        yield
        self._training += time.perf_counter() - began

    def read(self, tokens: int) -> Metrics:
        """Seconds, and tokens per second, of a training that has seen so many `tokens` in this process."""
        trained = self._training
        return {
            "training_seconds": round(trained, 2),
            "tokens_per_second": round(tokens / trained, 1) if trained else None,
            "seconds": round(time.perf_counter() - self._started, 1),
        }


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
    return tuning


@contextmanager
def save_temporarily(learner: Learner, state: TrainState) -> Iterator[Path | None]:
    """A folder with the checkpoint on rank 0, None elsewhere; it is deleted afterwards.

    After the last step nothing is trained any more, so the optimizer is left out.
    """
    optimizer = learner.optimizer if state.step < learner.work.steps else None
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder), learner.tuning.model, optimizer)
        yield Path(folder) if rank() == 0 else None


def begin_state(learner: Learner, start: ResumePoint) -> TrainState:
    """The state before this process's first step: of a checkpoint, of a smaller training, or a new one."""
    work, tuning = learner.work, learner.tuning
    if start.checkpoint:
        return TrainState.load(start.checkpoint, tuning.model, learner.optimizer)
    state = TrainState(work.layers, tuning.added, importance=tuning.importance)
    if start.grown_from:
        state.grow_from(start.grown_from, tuning.model)
    record_rates(state, tuning, work.training)
    return state


def take_reading(learner: Learner, state: TrainState, blocks: Mapping[str, Blocks]) -> Metrics:
    """The metrics of a report but for what the clock says; the reading is added to the state's curve."""
    work, tuning = learner.work, learner.tuning
    with tuning.use_exported_dtype():
        after = measure_held_out(tuning.model, work, blocks)
    metrics = score_model(work.before, after, blocks, work.by_tasks, work.weights)
    metrics |= {**count_progress(state, work), "loss": state.loss}
    metrics["curve"] = state.add_reading(metrics)
    scales = tuning.compute_scales(state.importance, work.training)
    metrics["scales"] = average_scales(scales) if tuning.rated else {}
    metrics["trained_parameters"] = sum(p.numel() for p in tuning.parameters.values())
    return metrics


def build_optimizer(
    model: nn.Module, spec: TrainingSpec, device: torch.device
) -> torch.optim.Optimizer | None:
    """AdamW with a group for each unit of what `model` trains; None if that is nothing."""
    groups = parameter_groups(model, spec.weight_decay)
    return torch.optim.AdamW(groups, fused=device.type == "cuda") if groups else None


def needs_measuring(learner: Learner, state: TrainState) -> bool:
    """Whether units have rates by importance, and it is time to measure that again."""
    spec = learner.work.training
    measured = learner.tuning.rated and spec.normalization != "none"  # else all rates are alike
    return bool(measured) and state.step > 0 and state.step % spec.recompute_every == 0


def remeasure_importance(learner: Learner, state: TrainState, general: Iterator[Batch]) -> dict[str, float]:
    """Importance of the units with rates of their own, as it is now on `general` text.

    Raises FloatingPointError, naming the step, when one isn't finite: the training has diverged.
    """
    model = learner.tuning.model
    found = unit_importance(model, general, learner.tuning.rated, limit_layers(model))
    for name, value in found.items():
        if not math.isfinite(value):
            at = f"step {state.step + 1} of {learner.work.steps}"
            raise FloatingPointError(f"the importance of {unit_of(name)} is {value} at {at}")
    return found


def order_text(work: TrainWork, blocks: Mapping[str, Blocks]) -> tuple[Blocks, BlockOrder]:
    """The blocks to train on and the order in which they come, replayed ones among them."""
    text = blocks["train"]
    if not work.replay_share:
        return text, BlockOrder(len(text), work.seed)
    replay = blocks["replay"]
    return join_blocks(text, replay), BlockOrder(len(text), work.seed, len(replay), work.replay_share)


def make_probe_batches(
    work: TrainWork, blocks: Mapping[str, Blocks], device: torch.device
) -> Iterator[Batch]:
    """This rank's share of the general text on which importance is measured again."""
    every = range(len(blocks["remeasure"]))
    return make_shared_batches(blocks["remeasure"], every, work.micro_batch, device)


def clip_gradients(parameters: Sequence[nn.Parameter], clip: float, loss: float, at: str) -> None:
    """Clip the global norm; raises FloatingPointError, naming where, when it or the loss isn't finite."""
    norm = float(gather_whole(nn.utils.clip_grad_norm_(parameters, clip)))
    # Clipping an infinite gradient would make every weight nan.
    if not math.isfinite(loss + norm):
        raise FloatingPointError(f"the loss is {loss} and its gradient's norm {norm} at {at}")


def compute_gradients(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    blocks: Blocks,
    ids: Sequence[int],
    micro_batch: int,
    device: torch.device,
) -> float:
    """Fill ``.grad`` with the gradient of the mean loss over the global batch `ids`; returns that loss.

    Every rank works on its share and the gradients are summed: in one piece, or by FSDP where ranks hold
    pieces of the model. Shares may be uneven: the sum is divided by the tokens of the whole batch.
    """
    total = len(ids) * (blocks.tokens.shape[1] - 1)  # packed blocks have no padding
    nats = torch.zeros(1, dtype=torch.float64)
    for batch in make_shared_batches(blocks, ids, micro_batch, device):
        loss = next_token_nats(model, batch)[0].sum() / total
        loss.backward()
        nats += loss.detach().double().cpu()
    if world_size() > 1 and not is_sharded(model):
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = sum_over_ranks_in_place(torch.cat([piece.flatten() for piece in pieces]))
        for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter)
    return float(sum_over_ranks(nats, device))


def record_rates(state: TrainState, tuning: Tuning, spec: TrainingSpec) -> None:
    """Append a row per unit with a rate of its own to the state's history of rates."""
    if not tuning.rated:
        return
    scales = tuning.compute_scales(state.importance, spec)
    units = {unit_of(name): (value, scales[name]) for name, value in state.importance.items()}
    for unit, (importance, scale) in units.items():
        state.rates.append({"step": state.step, "unit": unit, "importance": importance, "scale": scale})


def count_progress(state: TrainState, work: TrainWork) -> Metrics:
    """How far the training is: steps, tokens, reports."""
    return {
        "step": state.step,
        "tokens": work.count_tokens(state.step),
        "report": state.reports,
        "complete": state.step == work.steps,
    }
