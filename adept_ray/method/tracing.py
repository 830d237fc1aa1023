"""A pass of a model without data: what it keeps for the gradient, and how many operations it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from adept_ray.method.anatomy import layers_of
from adept_ray.method.loss import next_token_nats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shape = torch.Size
PLANNED = "adept_planned"  # name of an attention without masks
OUTSIDE = -1  # stands for what lies in no layer


def make_traceable(skeleton: PreTrainedModel) -> PreTrainedModel:
    """`skeleton` (a model without data), in place, with an attention that a pass without data can run."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # A pass without data can't see that no sequence is packed in another, and would make a mask for that.
    AttentionInterface.register(PLANNED, sdpa_attention_forward)
    AttentionMaskInterface.register(PLANNED, lambda *_, **__: None)
    if skeleton.config._attn_implementation == "sdpa":
        with torch.device("meta"):
            skeleton.set_attn_implementation(PLANNED)
    return skeleton


def count_growing_bytes(half: int, whole: int, seq_len: int) -> int:
    """The part of `whole` bytes that grows with the sequence, when half a sequence keeps `half`.

    The rest are casts of trained weights: they are there once, however many sequences there are.
    """
    short = seq_len // 2
    fixed = (half * seq_len - whole * short) // (seq_len - short)
    return whole - max(0, fixed)


@dataclass
class Trace:
    """What one pass of one sequence and its gradient showed."""

    kept: dict[int, int]
    """Layer (or OUTSIDE) → bytes kept for the gradient."""
    streams: dict[int, int]
    """Layer → bytes that enter it."""
    forward: int = 0
    """Operations of the forward pass."""
    both: int = 0
    """Operations of the forward pass and the gradient."""


class Losses(nn.Module):
    """The losses of a model as a module, so that it can be called with other weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return next_token_nats(self.model, {"input_ids": ids})[0].sum()


class Recorder:
    """Hears what one pass of `model` keeps, layer by layer; what lies in `weights` isn't counted."""

    def __init__(self, model: nn.Module, weights: Collection[torch.Tensor]) -> None:
        self._layers = layers_of(model)
        self.trace = Trace({layer: 0 for layer in range(OUTSIDE, len(self._layers))}, {})
        self._weights = {id(tensor) for tensor in weights}
        self._seen: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice
        self._at = OUTSIDE

    def count_kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor that autograd keeps, once, for the layer that runs; returns it."""
        owner = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if id(owner) not in self._weights and storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.trace.kept[self._at] += storage.nbytes()
        return tensor

    def _enter_layer(self, layer: int, stream: torch.Tensor) -> None:
        self._at = layer
        self.trace.streams[layer] = stream.numel() * stream.dtype.itemsize

    def _leave_layer(self) -> None:
        self._at = OUTSIDE

    @contextmanager
    def follow_layers(self) -> Iterator[None]:
        """Within this the recorder knows which layer runs."""
        hooks = []
        for number, layer in enumerate(self._layers):
            hooks += [
                layer.register_forward_pre_hook(
                    lambda _, args, number=number: self._enter_layer(number, args[0])
                ),
                layer.register_forward_hook(lambda *_: self._leave_layer()),
            ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def trace_pass(model: nn.Module, seq_len: int, gradient: bool = True) -> Trace:
    """Pass one sequence through `model` without data, and its gradient back unless `gradient` is False.

    `model` lies on the meta device. Here its weights pass for a CPU's, where autocast is known. They don't
    count as kept, nor do masks, which attention within a window has.
    """
    losses, mode = Losses(model), FakeTensorMode(allow_non_fake_inputs=True)
    tensors = {
        name: FakeTensor(mode, tensor.detach(), torch.device("cpu")).requires_grad_(tensor.requires_grad)
        for name, tensor in (*losses.named_parameters(), *losses.named_buffers())
    }
    recorder = Recorder(model, tensors.values())
    found, counter = recorder.trace, FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with mode, counter, recorder.follow_layers():
        with torch.autograd.graph.saved_tensors_hooks(recorder.count_kept, lambda tensor: tensor):
            ids = torch.zeros(1, seq_len, dtype=torch.long)
            nats = torch.func.functional_call(losses, tensors, ids)
        found.forward = counter.get_total_flops()
        if gradient and nats.requires_grad:
            nats.backward()
        found.both = counter.get_total_flops()
    return found


def count_attention_flops(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    """Operations of scaled dot-product attention, the masked half counted too (from three shapes)."""
    return sdpa_flop_count(query, key, value)


def count_attention_gradient_flops(
    slope: Shape, query: Shape, key: Shape, value: Shape, *_: object, **__: object
) -> int:
    """The same of its gradient."""
    return sdpa_backward_flop_count(slope, query, key, value)


# torch counts those of GPUs itself
ATTENTION: dict[object, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: count_attention_gradient_flops,
}
