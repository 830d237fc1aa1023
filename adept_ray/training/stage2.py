"""Stage 2, what every Ray Train worker runs: make ready, tune with unit-wise rates, measure again, score.

:func:`train` is the loop. It is an ordinary function of its arguments: Ray, the command line and the tests
call the same one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from adept_ray.config.specs import TrainingSpec
from adept_ray.data.blocks import Blocks, make_shared_batches, read_tokens_ahead
from adept_ray.method.anatomy import unit_of
from adept_ray.method.importance import limit_layers, unit_importance
from adept_ray.method.loss import Batch
from adept_ray.method.ranks import rank
from adept_ray.method.rates import average_scales
from adept_ray.method.scores import Metrics
from adept_ray.method.tuning import Tuning
from adept_ray.storage.checkpoints import Checkpoint
from adept_ray.training.callbacks import FROM_BACKBONE, Callbacks, ResumePoint
from adept_ray.training.dialling import score_reading, take_dialled_reading
from adept_ray.training.learner import Learner, prepare_learner, take_step
from adept_ray.training.state import TrainState
from adept_ray.training.work import TrainWork

MOMENT_BYTES = 8  # of a trained scalar, what AdamW keeps
FEW_BYTES = 256 * 2**20  # moments that are written within a second go with every report


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
            state.reports = work.report_steps.index(state.step) + 1
            metrics = take_reading(learner, state, blocks)
            metrics |= clock.read(work.count_tokens(state.step - begun))
            callbacks.make_room()
            callbacks.report(metrics, take_report_checkpoint(learner, state))
            if state.step == work.steps or callbacks.should_stop(state.reports):
                return

        # Once in a while: this machine is about to be taken away, or much would be lost if it were.
        else:
            save_by_clock(learner, state, callbacks)

        # Once: from here on the rate falls. All that came before is that of a longer training, too.
        if callbacks.keep_plateau and 0 < state.step == work.decay_start:
            callbacks.make_room()
            callbacks.keep_plateau(take_checkpoint(learner, state))

        with clock.count_training():
            # Once in a while: the domain has moved what is trained, so ask the general probe again.
            if needs_measuring(learner, state):
                state.importance = remeasure_importance(
                    learner, state, make_probe_batches(work, blocks, device)
                )
                record_rates(state, tuning, work.training)
                scales = tuning.compute_scales(state.importance, work.training)

            if optimizer is not None:
                state.loss = take_step(learner, scales, state.step, list_step_blocks(learner, state.step))
            state.step += 1
            callbacks.progress(state.step, work.steps)


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


def save_by_clock(learner: Learner, state: TrainState, callbacks: Callbacks) -> None:
    """Save between two reports, if this machine is to be left now or the last time is some minutes ago."""
    if learner.alarms.ask.take_ring() and callbacks.asked_to_leave():
        callbacks.make_room()
        callbacks.leave(take_checkpoint(learner, state))
    elif learner.alarms.save.rings:
        callbacks.make_room()
        callbacks.keep(take_checkpoint(learner, state))


def take_checkpoint(learner: Learner, state: TrainState, resumable: bool = True) -> Checkpoint | None:
    """A copy, in rank 0's memory, of what is to be saved; None elsewhere, though all ranks must call this.

    After the last step nothing is trained any more, so the optimizer is left out.
    """
    if resumable:
        learner.alarms.save.set_again()
    optimizer = learner.optimizer if resumable and state.step < learner.work.steps else None
    files = state.take_files(learner.tuning.model, optimizer)
    return Checkpoint(state.step, files, resumable) if rank() == 0 else None


def take_report_checkpoint(learner: Learner, state: TrainState) -> Checkpoint | None:
    """The checkpoint of a report, as a rule with all that a resume needs.

    Where the optimizer's moments are large, twice as large as the weights, they are saved by the clock alone.
    The weights always are: this report may turn out to be the last one.
    """
    scalars = sum(parameter.numel() for parameter in learner.tuning.parameters.values())
    few = scalars * MOMENT_BYTES <= FEW_BYTES
    last = state.step == learner.work.steps
    return take_checkpoint(learner, state, few or last or learner.alarms.save.rings)


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
    ends = state.step == work.steps
    reading = take_dialled_reading(tuning, work, blocks, ends)
    metrics = score_reading(reading, work, blocks, ends)
    metrics |= {**count_progress(state, work), "loss": state.loss}
    metrics["curve"] = state.add_reading(metrics)
    scales = tuning.compute_scales(state.importance, work.training)
    metrics["scales"] = average_scales(scales) if tuning.rated else {}
    metrics["trained_parameters"] = sum(p.numel() for p in tuning.parameters.values())
    return metrics


def list_step_blocks(learner: Learner, step: int) -> list[int]:
    """Ids of the blocks of a step (from 0). Those of the next step are read in the background."""
    work, place = learner.work, learner.work.steps_before + step
    read_tokens_ahead(learner.text, learner.order.list_batch(place + 1, work.blocks_per_step))
    return learner.order.list_batch(place, work.blocks_per_step)


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


def make_probe_batches(
    work: TrainWork, blocks: Mapping[str, Blocks], device: torch.device
) -> Iterator[Batch]:
    """This rank's share of the general text on which importance is measured again."""
    every = range(len(blocks["remeasure"]))
    return make_shared_batches(blocks["remeasure"], every, work.micro_batch, device)


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
