"""Stage 2, what every Ray Train worker runs: make ready, tune with unit-wise rates, measure again, score.

:func:`train` is the loop; :func:`score_and_export` looks once at the test splits and exports the model. Both
are ordinary functions of their arguments: Ray, the command line and the tests call the same ones.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adept_ray.config.specs import TrainingSpec
from adept_ray.data.benchmark_tasks import answer_items
from adept_ray.data.blocks import BlockOrder, Blocks, join_blocks, make_shared_batches
from adept_ray.data.loading import borrow, build_outline, load_tokenizer
from adept_ray.method.anatomy import unit_of
from adept_ray.method.importance import max_layers, unit_importance
from adept_ray.method.loss import next_token_nats
from adept_ray.method.ranks import rank, sum_over_ranks, sum_over_ranks_in_place, world_size
from adept_ray.method.rates import mean_scales, parameter_groups, schedule_factor, set_rates
from adept_ray.method.scores import SIDES
from adept_ray.method.sharding import gather_whole, is_sharded
from adept_ray.method.tuning import Tuning, build_tuning
from adept_ray.training.scoring import measure_document_nats, score_model, tasks_key
from adept_ray.training.state import TrainState
from adept_ray.training.work import TrainWork

Report = Callable[[dict[str, Any], Path | None], None]
Progress = Callable[[int, int], None]


def train(
    work: TrainWork,
    blocks: Mapping[str, Blocks],
    device: torch.device,
    report: Report,
    should_stop: Callable[[int], bool] = lambda reports: False,
    resume: Path | None = None,
    grown_from: Path | None = None,
    progress: Progress = lambda done, of: None,
    asked_to_save: Callable[[], bool] = lambda: False,
    keep: Callable[[int, Path | None], None] = lambda step, folder: None,
) -> None:
    """Run stage 2 on this rank.

    `blocks` has ``train``, ``remeasure``, ``general`` and ``domain`` (validation), and ``replay`` where
    general text is trained on. `report` gets the metrics and, on rank 0, a folder with the checkpoint; it is
    called equally often on every rank.
    `should_stop` is asked after each report but the last. `resume` is such a checkpoint folder; `grown_from`
    is one of a training with fewer of the layers, which this one goes on from.
    `asked_to_save` is asked after each other step; where it says so, on all ranks alike, `keep` gets the step
    and, on rank 0, a folder with the checkpoint.
    Raises FloatingPointError, naming the step, when the loss, its gradient or an importance is not finite.
    """
    spec, started = work.training, time.perf_counter()
    tuning = prepare_tuning(work, device)
    model = tuning.model
    optimizer = build_optimizer(model, spec, device)
    state = TrainState.load(resume, model, optimizer) if resume else begin_state(work, tuning, grown_from)
    scales = tuning.scales(state.importance, spec)
    text, order = order_text(work, blocks)
    began_at, training_seconds = state.step, 0.0  # of this process: what ran before a resume is not known

    def checkpointed(hand_over: Callable[[Path | None], None]) -> None:
        # Nothing is trained after the end, so the optimizer is left out there.
        save_for(hand_over, state, model, optimizer if state.step < work.steps else None)

    def stopped_after_report() -> bool:
        metrics = take_reading(work, tuning, state, blocks)
        metrics["training_seconds"] = round(training_seconds, 2)
        tokens = (state.step - began_at) * work.blocks_per_step * work.seq_len
        metrics["tokens_per_second"] = round(tokens / training_seconds, 1) if training_seconds else None
        metrics["seconds"] = round(time.perf_counter() - started, 1)
        checkpointed(lambda folder: report(metrics, folder))
        return state.step < work.steps and should_stop(state.reports)

    # A checkpoint with a report: who was cut off then may not have been heard, so say it again.
    if resume and state.step in work.report_steps and stopped_after_report():
        return

    measures = tuning.rated and spec.normalization != "none"  # else there is nothing to be asked for
    while state.step < work.steps:
        step_began = time.perf_counter()
        # Once in a while: the domain has moved what is trained, so ask the general probe again.
        if measures and state.step > 0 and state.step % spec.recompute_every == 0:
            at = f"step {state.step + 1} of {work.steps}"
            state.importance = remeasure_importance(model, tuning, probe_batches(work, blocks, device), at)
            record_rates(state, tuning, spec)
            scales = tuning.scales(state.importance, spec)

        if optimizer is not None:
            ids = order.batch(work.steps_before + state.step, work.blocks_per_step)
            state.loss = take_step(work, tuning, optimizer, scales, state.step, text, ids, device)
        state.step += 1
        progress(state.step, work.steps)
        if optimizer is not None and state.step == work.steps:
            tuning.conclude(optimizer, probe_batches(work, blocks, device))
        training_seconds += time.perf_counter() - step_began

        # Once in a while: score on the held-out blocks, save, report, and hear whether to go on.
        if state.step in work.report_steps:
            state.reports += 1
            if stopped_after_report():
                return
        elif asked_to_save():
            checkpointed(lambda folder: keep(state.step, folder))


def take_step(
    work: TrainWork,
    tuning: Tuning,
    optimizer: torch.optim.Optimizer,
    scales: Mapping[str, float],
    step: int,
    text: Blocks,
    ids: Sequence[int],
    device: torch.device,
) -> float:
    """Make optimizer step number `step` (from 0) on the blocks `ids` of `text`; returns the loss before it.

    Raises FloatingPointError, naming the step, when the loss or its gradient is not finite.
    """
    spec, parameters = work.training, list(tuning.parameters.values())
    set_rates(optimizer, spec.base_lr, schedule_factor(step, work.steps, spec.warmup, spec.final_lr), scales)
    loss = compute_gradients(tuning.model, parameters, text, ids, work.micro_batch, device)
    clip_gradients(parameters, spec.clip, loss, f"step {step + 1} of {work.steps}")
    optimizer.step()
    tuning.observe(optimizer)
    optimizer.zero_grad(set_to_none=True)
    return loss


def prepare_tuning(work: TrainWork, device: torch.device) -> Tuning:
    """What the work trains, on this rank; others go on with the backbone's weights unless they are changed."""
    backbone = work.source, work.revision, work.dtype
    how = work.training, work.layers, work.units, work.seed
    changed = work.training.tunes != "copies"
    if work.fit.sharded:
        first = (
            build_tuning(borrow(*backbone, alone=changed, trusted=work.trusted), *how).model
            if rank() == 0
            else None
        )
        tuning = build_tuning(build_outline(*backbone, work.trusted), *how)
        tuning.shard(first, device)
    else:
        tuning = build_tuning(borrow(*backbone, device, alone=changed, trusted=work.trusted), *how)
    if work.fit.recompute:
        tuning.recompute()
    if work.fit.compiled:
        tuning.compile()
    return tuning


def save_for(
    hand_over: Callable[[Path | None], None],
    state: TrainState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Save to a folder that `hand_over` is given on rank 0, None elsewhere, and that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder), model, optimizer)
        hand_over(Path(folder) if rank() == 0 else None)


def begin_state(work: TrainWork, tuning: Tuning, grown_from: Path | None) -> TrainState:
    """The state before the first step, with the copies of the training that it is grown from, if of any."""
    state = TrainState(work.layers, tuning.added, importance=tuning.importance)
    if grown_from:
        state.grow_from(grown_from, tuning.model)
    record_rates(state, tuning, work.training)
    return state


def take_reading(
    work: TrainWork, tuning: Tuning, state: TrainState, blocks: Mapping[str, Blocks]
) -> dict[str, Any]:
    """The metrics of a report but for what the clock says; the reading is added to the state's curve."""
    with tuning.as_exported():
        after = measure_held_out(tuning.model, work, blocks)
    metrics = score_model(work.before, after, blocks, work.by_tasks, work.weights)
    metrics |= {**count_progress(state, work), "loss": state.loss}
    metrics["curve"] = state.told(metrics)
    scales = tuning.scales(state.importance, work.training)
    metrics["scales"] = mean_scales(scales) if tuning.rated else {}
    metrics["trained_parameters"] = sum(p.numel() for p in tuning.parameters.values())
    return metrics


def build_optimizer(
    model: nn.Module, spec: TrainingSpec, device: torch.device
) -> torch.optim.Optimizer | None:
    """AdamW with a group for each unit of what `model` trains; None if that is nothing."""
    groups = parameter_groups(model, spec.weight_decay)
    return torch.optim.AdamW(groups, fused=device.type == "cuda") if groups else None


def remeasure_importance(
    model: nn.Module, tuning: Tuning, general: Iterator[dict[str, torch.Tensor]], at: str
) -> dict[str, float]:
    """Importance of the units with rates of their own, as it is now on general text.

    Raises FloatingPointError, naming where, when one isn't finite: the training has diverged.
    """
    found = unit_importance(model, general, tuning.rated, max_layers(model))
    for name, value in found.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"the importance of {unit_of(name)} is {value} at {at}")
    return found


def order_text(work: TrainWork, blocks: Mapping[str, Blocks]) -> tuple[Blocks, BlockOrder]:
    """The blocks to train on and the order in which they come, replayed ones among them."""
    text = blocks["train"]
    if not work.replayed:
        return text, BlockOrder(len(text), work.seed)
    replay = blocks["replay"]
    return join_blocks(text, replay), BlockOrder(len(text), work.seed, len(replay), work.replayed)


def probe_batches(
    work: TrainWork, blocks: Mapping[str, Blocks], device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
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

    Every rank works on its share and the gradients are summed, in one piece (or by FSDP where the model is
    shared out). Shares may be uneven: the sum is divided by the tokens of the whole batch.
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
    scales = tuning.scales(state.importance, spec)
    rows = {
        unit_of(name): {"step": state.step, "unit": unit_of(name), "importance": value, "scale": scales[name]}
        for name, value in state.importance.items()
    }
    state.rates += rows.values()


def count_progress(state: TrainState, work: TrainWork) -> dict[str, Any]:
    """How far the training is: steps, tokens, reports."""
    tokens = state.step * work.blocks_per_step * work.seq_len
    return {
        "step": state.step,
        "tokens": tokens,
        "report": state.reports,
        "complete": state.step == work.steps,
    }


def measure_held_out(
    model: nn.Module, work: TrainWork, blocks: Mapping[str, Blocks]
) -> dict[str, np.ndarray]:
    """The loss of each held-out document of both sides, and the answers to the items of a side's tasks."""
    found = {side: measure_document_nats(model, blocks[side], work.micro_batch) for side in SIDES}
    if work.items:
        tokenizer = load_tokenizer(work.source, work.revision, work.trusted)
        for side, items in work.items.items():
            found[tasks_key(side)] = answer_items(model, tokenizer, items, work.micro_batch)
    return found
