"""A pass of a model without data: what it keeps for the gradient, and how many operations it takes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from adept_ray.method.anatomy import layers_of
from adept_ray.method.forwards import replace_forward, take_stream
from adept_ray.method.loss import next_token_nats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shape = torch.Size
EXPERTS = "transformers.integrations.moe"  # where transformers multiplies by the weights of experts
PLANNED = "adept_planned"  # name of an attention without masks
OUTSIDE = -1  # stands for what lies in no layer
# Types of values that are compared as such.
PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.device)
# Attributes of a module by which its pass doesn't differ: those that any module has, the layer's place in a
# cache, which there is none of here, and what peft was called with.
NOT_OWN = {*vars(nn.Module())} - {"training"} | {"forward", "layer_idx", "kwargs"}


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
    streams: dict[int, int] = field(default_factory=dict)
    """Layer → bytes that enter it."""
    layers: dict[int, int] = field(default_factory=dict)
    """Layer → operations of its forward pass."""
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
    """Hears what one pass of `model` keeps, layer by layer; what lies in `weights` isn't counted.

    A layer that is like one that ran isn't run but hands on what enters it, and counts as that one did. Two
    are alike if they are of the same modules, shapes and types, the same of them trained, and are given
    the same, of which the same is kept already: what they keep and compute can't differ then.
    """

    def __init__(self, model: nn.Module, weights: Collection[torch.Tensor], counter: FlopCounterMode) -> None:
        self._layers = layers_of(model)
        self._kinds = [describe_layer(layer) for layer in self._layers]
        self._counter = counter
        self.trace = Trace(dict.fromkeys(range(OUTSIDE, len(self._layers)), 0))
        self._weights = {id(tensor) for tensor in weights}
        # What was met is held, so that no address comes twice.
        self._kept: dict[int, torch.UntypedStorage] = {}
        self._inputs: dict[int, object] = {}
        self._at = OUTSIDE
        self._ran: dict[Hashable, int] = {}  # kind of layer and its inputs → the first such layer
        self._stand_ins: dict[int, int] = {}  # layer that wasn't run → the one that ran in its place
        self._slopes = Counter[int]()  # layer that ran → operations of its gradient

    def count_kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor that autograd keeps, once, for the layer that runs; returns it."""
        owner = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if id(owner) not in self._weights and storage._cdata not in self._kept:
            self._kept[storage._cdata] = storage
            self.trace.kept[self._at] += storage.nbytes()
        return tensor

    def count_flops(self) -> int:
        """Operations so far, with those of the layers that weren't run."""
        flops = {layer: self.trace.layers[layer] + self._slopes[layer] for layer in self._ran.values()}
        return self._counter.get_total_flops() + sum(flops[layer] for layer in self._stand_ins.values())

    @contextmanager
    def follow_layers(self) -> Iterator[None]:
        """Within this the recorder knows which layer runs, and runs one of those that are alike."""
        with ExitStack() as stack:
            for number, layer in enumerate(self._layers):
                forward = partial(self._run_layer, number, layer.forward)
                stack.enter_context(replace_forward(layer, forward))
            yield

    def _run_layer(
        self,
        layer: int,
        forward: Callable[..., object],
        *args: object,
        **settings: object,
    ) -> object:
        """What a layer makes of its stream; the stream itself where a layer like this one ran."""
        stream = take_stream(args, settings)
        self.trace.streams[layer] = stream.numel() * stream.dtype.itemsize
        entered = self._describe_stream(stream)
        others = [each for each in tree_leaves((args, settings)) if each is not stream]
        given = [self._describe_input(each) for each in others]
        kind = (self._kinds[layer], entered, *settings, *given)
        if kind in self._ran:
            like = self._stand_ins[layer] = self._ran[kind]
            for found in (self.trace.kept, self.trace.layers):
                found[layer] = found[like]
            return stream
        before, self._at = self._counter.get_total_flops(), layer
        left = forward(*args, **settings)
        self.trace.layers[layer], self._at = self._counter.get_total_flops() - before, OUTSIDE
        if isinstance(left, torch.Tensor) and self._describe_stream(left) == entered:
            self._ran[kind] = layer
            if left.requires_grad:  # autograd goes back in the order of the pass
                left.register_hook(lambda _: self._slopes.subtract({layer: self._counter.get_total_flops()}))
                stream.register_hook(lambda _: self._slopes.update({layer: self._counter.get_total_flops()}))
        return left

    def _describe_stream(self, stream: torch.Tensor) -> Hashable:
        kept = stream.untyped_storage()._cdata in self._kept
        return stream.shape, stream.stride(), stream.dtype, stream.requires_grad, kept

    def _describe_input(self, value: object) -> Hashable:
        self._inputs[id(value)] = value
        if not isinstance(value, torch.Tensor):
            return describe_value(value)
        return id(value), value.untyped_storage()._cdata in self._kept


def describe_layer(layer: nn.Module) -> Hashable:
    """What a layer's pass depends on, but for its inputs: two that compare equal do the same.

    A layer that runs code of other libraries than torch, transformers and peft is like no other.
    """
    parts: list[Hashable] = []
    for name, module in layer.named_modules():
        if not type(module).__module__.startswith(("torch.", "transformers.", "peft.")):
            return object()
        own = {key: value for key, value in vars(module).items() if key not in NOT_OWN}
        hooks = list(module._forward_hooks.values()), list(module._forward_pre_hooks.values())
        parts.append((name, type(module), describe_value(own), describe_value(hooks)))
    tensors = (*layer.named_parameters(), *layer.named_buffers())
    parts += [(name, each.shape, each.dtype, each.requires_grad) for name, each in tensors]
    return tuple(parts)


def describe_value(value: object) -> Hashable:
    """Equal for equal plain values and collections of such; anything else is equal to itself alone."""
    if isinstance(value, partial):
        return describe_value((value.func, value.args, value.keywords))
    if isinstance(value, Mapping):
        return tuple((key, describe_value(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(describe_value(each) for each in value)
    return (type(value), value) if isinstance(value, PLAIN) else id(value)


@contextmanager
def multiply_without_data() -> Iterator[None]:
    """Within this transformers' products of experts, which go by data, are those of one expert with all rows.

    Each row meets one expert there, whichever it is: what is kept and the operations are the same.
    """
    experts = sys.modules.get(EXPERTS)
    if experts is None:  # no model with experts was made
        yield
        return

    def multiply(rows: torch.Tensor, weights: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        return rows.to(weights.dtype) @ weights[0]

    before = vars(experts)["_grouped_mm"]
    vars(experts)["_grouped_mm"] = multiply
    try:
        yield
    finally:
        vars(experts)["_grouped_mm"] = before


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
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    recorder = Recorder(model, tensors.values(), counter)
    with mode, counter, recorder.follow_layers(), multiply_without_data():
        with torch.autograd.graph.saved_tensors_hooks(recorder.count_kept, lambda tensor: tensor):
            ids = torch.zeros(1, seq_len, dtype=torch.long)
            nats = torch.func.functional_call(losses, tensors, ids)
        recorder.trace.forward = recorder.count_flops()
        if gradient and nats.requires_grad:
            nats.backward()
        recorder.trace.both = recorder.count_flops()
    return recorder.trace


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
