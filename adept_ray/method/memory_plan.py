"""What a training will take, before any weight is loaded: parameters, memory by part, operations per token.

Nothing here is a formula for an architecture. The model itself is built of tensors without data, made ready
as the training will make it, and run once, of layers that are alike one. Autograd then says what it keeps for
the gradient, and torch counts the operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.config.machine import Machine
from adept_ray.config.specs import TrainingSpec
from adept_ray.method.anatomy import find_listed_family, layer_parameters, layers_of
from adept_ray.method.fit import Fit
from adept_ray.method.head import CPU_LOGITS, GPU_LOGITS, find_plain_head
from adept_ray.method.importance import UNIT_BYTES
from adept_ray.method.measuring import describe_briefly
from adept_ray.method.tracing import OUTSIDE, Trace, count_growing_bytes, make_traceable, trace_pass
from adept_ray.method.tuning import Tuning, Whole, build_tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIB = 2**30
# Share of a memory that can be planned with: fragments, kernels and their work space take the rest.
SLACK = 0.9
STREAM_SHARE = 0.25  # of the memory that a training leaves, for what enters the lowest copy
STREAM_DISK_BYTES = 2**38  # of a GPU's worker, on its node's disk
WIDTHS = (2, 4, 8, 16, 32, 64)  # numbers of workers that are advised


@dataclass(frozen=True)
class MemoryPlan:
    """What one worker needs, bytes unless said otherwise."""

    parameters: int
    """Scalars of the model with what was added."""
    added: int
    """Scalars that the backbone doesn't have."""
    trained: int
    """Scalars that are trained."""
    weights: int
    """Frozen weights in the backbone's type, trained ones in float32."""
    gradients: int
    """Gradients, or what measuring units again takes at a time where that is more."""
    optimizer: int
    """AdamW's two moments."""
    casts: int
    """Trained weights in the backbone's type, as autocast keeps them."""
    kept: int
    """What one sequence keeps for the gradient."""
    recomputed: int
    """What it keeps when the activations of layers are computed again."""
    logits: int
    """The logits of one sequence, or their gradient."""
    pieces: bool
    """Whether they are there a piece at a time, but for what is kept (see adept_ray.method.head)."""
    gathered: int
    """The part of a model in pieces that workers put together at a time, and one layer's gradient."""
    flops: float
    """Operations of a training step per token, nothing computed twice; a multiplication and an addition count
    as two."""
    origin: int = 0
    """Trained weights as the backbone has them, to which a dial turns them back, where these are kept."""
    stream: int = 0
    """What enters a layer, of one sequence; the largest of all layers."""

    def count_activations(self, sequences: int, fit: Fit, on_gpus: bool = True) -> int:
        """Bytes that so many sequences in a forward pass keep, and those of their logits that are there."""
        logits = sequences * self.logits
        if self.pieces:
            logits = min(logits, GPU_LOGITS if on_gpus else CPU_LOGITS)
        return sequences * (self.recomputed if fit.recompute else self.kept) + logits

    def count_memory(self, sequences: int, fit: Fit, workers: int = 1, on_gpus: bool = True) -> int:
        """Bytes of one worker at its peak, with so many sequences in a forward pass."""
        passing = self.casts + self.count_activations(sequences, fit, on_gpus)
        # Turned weights, of which a reading makes a copy, take no more than the gradients, gone by then.
        held = self.weights + self.gradients + self.optimizer + self.count_origin(fit)
        copied = self.count_checkpoint_copy(on_gpus)
        if fit.sharded:
            return held // workers + self.gathered + self.count_whole_copy(on_gpus) + passing + copied
        # Gradients travel in one piece; activations are gone by then.
        travelling = 4 * self.trained if workers > 1 else 0
        return held + max(passing, travelling) + copied

    def count_origin(self, fit: Fit) -> int:
        """Bytes of the trained weights as they were, where they are kept; pieces of them are float32."""
        return 4 * self.trained if self.origin and fit.sharded else self.origin

    def count_whole_copy(self, on_gpus: bool) -> int:
        """Bytes of the whole model, from which the first worker deals the others their pieces.

        It lies in a machine's memory, which is the worker's own where that computes on CPUs; else 0.
        """
        return 0 if on_gpus else self.weights

    def count_checkpoint_copy(self, on_gpus: bool) -> int:
        """Bytes of the weights and moments that the first worker holds until they are written.

        They lie in a machine's memory, as :meth:`count_whole_copy`.
        """
        return 0 if on_gpus else 12 * self.trained

    def find_peak(self, machine: Machine, sequences: int, fit: Fit) -> int:
        """:meth:`count_memory` at the worse of the numbers of workers that the machine may have."""
        numbers, on_gpus = (machine.fewest_workers, machine.most_workers), machine.on_gpus
        return max(self.count_memory(sequences, fit, workers, on_gpus) for workers in numbers)

    def find_lowest_peak(self, machine: Machine, sequences: int) -> int:
        """:meth:`find_peak` of the allowed fit that takes least, where activations are computed again."""
        fits = (replace(fit, recompute=True) for fit in list_allowed_fits(machine))
        return min(self.find_peak(machine, sequences, fit) for fit in fits)

    @property
    def share(self) -> float:
        """Trained scalars of all."""
        return self.trained / self.parameters


def plan_memory(
    skeleton: PreTrainedModel, training: TrainingSpec, layers: Sequence[int], seq_len: int
) -> MemoryPlan:
    """What `training` of `layers` takes for a model in the type of its `skeleton` (shapes without data).

    The skeleton is used up: it becomes what is trained. No memory is taken and nothing is computed.
    Raises :class:`UserError` as :func:`~adept_ray.method.tuning.build_tuning` does.
    """
    itemsize = skeleton.dtype.itemsize
    model = make_traceable(skeleton)
    with torch.device("meta"):
        before = count_scalars(model.parameters())
        units = dict.fromkeys(layer_parameters(model, range(len(layers_of(model)))), 1.0)
        tuning = build_tuning(model, training, layers, units, seed=0)
    whole, half = try_tracing(model, seq_len), try_tracing(model, seq_len // 2, gradient=False)
    parameters, trained = list(model.parameters()), count_scalars(tuning.parameters.values())
    weights = sum(p.numel() * p.dtype.itemsize for p in parameters)
    kept, recomputed = _count_kept_bytes(whole, half, seq_len)
    return MemoryPlan(
        parameters=count_scalars(parameters),
        added=count_scalars(parameters) - before,
        trained=trained,
        weights=weights,
        gradients=_count_gradient_bytes(tuning, trained),
        optimizer=8 * trained,
        casts=itemsize * trained if itemsize < 4 else 0,
        kept=kept,
        recomputed=recomputed,
        logits=seq_len * model.config.vocab_size * itemsize if trained else 0,
        pieces=find_plain_head(model) is not None,
        gathered=count_gathered_bytes(model, weights),
        flops=whole.both / seq_len,
        origin=_count_origin_bytes(tuning),
        stream=max(whole.streams.values(), default=0),
    )


def try_tracing(model: PreTrainedModel, seq_len: int, gradient: bool = True) -> Trace:
    """:func:`trace_pass`. Raises :class:`UserError` for a model outside of the table that it can't follow.

    What some do depends on values: which experts are asked, say, by a loop over those.
    """
    try:
        return trace_pass(model, seq_len, gradient)
    except Exception as problem:
        if find_listed_family(model.config):
            raise
        raise UserError(
            f"what a training of models of type '{model.config.model_type}' takes can't be told beforehand, "
            f"since a pass of theirs goes by data ({describe_briefly(problem)}); take a model of another type"
        ) from problem


def _count_kept_bytes(whole: Trace, half: Trace, seq_len: int) -> tuple[int, int]:
    """Bytes that a sequence keeps for the gradient, and those where layers are computed again.

    A layer that is computed again keeps its input, and while the gradient passes it all that it would.
    """
    kept = {layer: count_growing_bytes(half.kept[layer], size, seq_len) for layer, size in whole.kept.items()}
    inside = {layer: size for layer, size in kept.items() if layer != OUTSIDE and size}
    inputs = sum(whole.streams[layer] for layer in inside)
    return sum(kept.values()), kept[OUTSIDE] + inputs + max([0, *inside.values()])


def _count_gradient_bytes(tuning: Tuning, trained: int) -> int:
    """Bytes of float32 gradients, or of what measuring units again takes at a time if that is more."""
    return max(4 * trained, min(8 * trained, UNIT_BYTES) if tuning.rated else 0)


def _count_origin_bytes(tuning: Tuning) -> int:
    """Bytes of the second copy of trained weights that a dial needs where these are the backbone's own."""
    origin = tuning.origin.values() if isinstance(tuning, Whole) else ()
    return sum(p.numel() * p.dtype.itemsize for p in origin)


def count_gathered_bytes(model: nn.Module, weights: int) -> int:
    """Bytes that are whole at a time of a `model` of so many bytes `weights` whose workers hold pieces.

    All that lies outside of layers, the layer that runs and the one after it, and a trained layer's gradient.
    """
    layers = [list(layer.parameters()) for layer in layers_of(model)]
    sizes = sorted(sum(p.numel() * p.dtype.itemsize for p in each) for each in layers)
    slopes = [sum(4 * p.numel() for p in each if p.requires_grad) for each in layers]
    return weights - sum(sizes) + sum(sizes[-2:]) + max(slopes)


@dataclass(frozen=True)
class InferenceCost:
    """What a forward pass takes with the added layers, and without them."""

    parameters: int
    """Scalars of the whole model."""
    added: int
    """Scalars of the added layers."""
    flops: float
    """Operations of the whole model per token."""
    flops_before: float
    """Operations without the added layers."""


def measure_inference(skeleton: PreTrainedModel, added: Sequence[int], seq_len: int) -> InferenceCost:
    """What a model takes to run, with the layers `added` and without; its `skeleton` is used up."""
    model = make_traceable(skeleton).requires_grad_(False)
    found, layers = try_tracing(model, seq_len), layers_of(model)
    less = sum(found.layers[layer] for layer in added)
    return InferenceCost(
        parameters=count_scalars(model.parameters()),
        added=sum(count_scalars(layers[layer].parameters()) for layer in added),
        flops=found.forward / seq_len,
        flops_before=(found.forward - less) / seq_len,
    )


def count_layer_parameters(skeleton: nn.Module) -> tuple[int, list[int]]:
    """Scalars of a model and of each of its layers, from its `skeleton` (shapes without data)."""
    layers = [count_scalars(layer.parameters()) for layer in layers_of(skeleton)]
    return count_scalars(skeleton.parameters()), layers


def count_scalars(parameters: Iterable[torch.Tensor]) -> int:
    """Number of scalars; a shared tensor counts once."""
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())


def choose_fit(needs: MemoryPlan, machine: Machine, memory: int, what: str) -> Fit:
    """How a training that `needs` so much is made to fit into workers of `memory` bytes.

    Plain where that fits, else with activations computed again, else in pieces on the workers, as far as its
    settings allow it. Raises :class:`UserError` for what doesn't fit, with what would.
    """
    if machine.sharding == "on" and machine.fewest_workers < 2:
        raise UserError(
            "--sharding on shares a model out over workers, so give it at least --workers 2"
            + (" and --min-workers 2" if machine.min_workers else "")
        )
    fits = list_allowed_fits(machine)
    for fit in fits:
        if fits_memory(needs, machine, memory, fit):
            return fit
    takes = min(needs.find_peak(machine, machine.micro_batch, fit) for fit in fits) / SLACK / GIB
    raise UserError(
        f"{what} with --micro-batch {machine.micro_batch} takes {takes:.1f} GiB a worker, and a worker has "
        f"{memory / GIB:.1f} GiB: {advise_size(needs, machine, memory)}"
    )


def fits_memory(needs: MemoryPlan, machine: Machine, memory: int, fit: Fit) -> bool:
    """Whether a training that `needs` so much fits, made to fit that way, into workers of `memory` bytes."""
    return count_free_memory(needs, machine, memory, fit) >= 0


def count_free_memory(needs: MemoryPlan, machine: Machine, memory: int, fit: Fit) -> float:
    """Bytes of a worker's `memory` that a training which `needs` so much, and its kept streams, leave."""
    streams = 0 if machine.on_gpus else fit.stream_bytes
    return SLACK * memory - needs.find_peak(machine, machine.micro_batch, fit) - streams


def allow_streams(needs: MemoryPlan, machine: Machine, memory: int, fit: Fit) -> Fit:
    """`fit` with the bytes of streams that a worker may keep (see :mod:`adept_ray.method.prefix`).

    On CPUs they are a modest share of what the training leaves of `memory`; on GPUs they are on a disk. A
    model in pieces keeps none: all workers have to make the same passes.
    """
    if fit.sharded:
        return fit
    free = max(0.0, count_free_memory(needs, machine, memory, fit))
    return replace(fit, stream_bytes=STREAM_DISK_BYTES if machine.on_gpus else int(STREAM_SHARE * free))


def list_allowed_fits(machine: Machine) -> list[Fit]:
    """The ways to make a training fit that the machine's settings allow, the fastest first."""
    switches = {"auto": (False, True), "on": (True,), "off": (False,)}
    shared = switches[machine.sharding] if machine.fewest_workers > 1 else (False,)
    again = switches[machine.activation_checkpointing]
    return [Fit(each, sharded, machine.compile == "on") for sharded in shared for each in again]


def advise_size(needs: MemoryPlan, machine: Machine, memory: int) -> str:
    """The smallest change that makes a training fit which doesn't."""
    usable, on_gpus = SLACK * memory, machine.on_gpus
    sequences = range(machine.micro_batch, 0, -1)
    fewer = next((n for n in sequences if needs.find_lowest_peak(machine, n) <= usable), 0)
    if fewer == machine.micro_batch:
        return "drop --activation-checkpointing off"
    if fewer:
        return f"use --micro-batch {fewer}"
    shared = Fit(recompute=True, sharded=True)
    wider = [
        n
        for n in WIDTHS
        if n > machine.fewest_workers and needs.count_memory(1, shared, n, on_gpus) <= usable
    ]
    if wider and machine.sharding != "off":
        fewest = f" --min-workers {wider[0]}" if machine.min_workers else ""
        return f"use --workers {wider[0]}{fewest}, over which the model is shared out, with --micro-batch 1"
    size = needs.find_lowest_peak(machine, 1) / SLACK / GIB
    return f"use fewer layers, shorter blocks (--seq-len) or workers of at least {size:.1f} GiB"
