"""A pass of a model without data: what it keeps for the gradient, and how many operations it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from adept_ray.method.anatomy import layers_of
from adept_ray.method.loss import next_token_nats
from adept_ray.method.sharding import build_skeleton

PLANNED = "adept_planned"  # name of an attention without masks
OUTSIDE = -1  # stands for what lies in no layer


def build_traceable(
    config: Any, dtype: str = "float32", trusted: bool = False, revision: str | None = None
) -> Any:
    """A model of that Hugging Face `config` without data, ready to be traced."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # A pass without data can't see that no sequence is packed in another, and would make a mask for that.
    AttentionInterface.register(PLANNED, sdpa_attention_forward)
    AttentionMaskInterface.register(PLANNED, lambda *_, **__: None)
    model = build_skeleton(config, dtype, trusted, revision)
    if model.config._attn_implementation == "sdpa":
        with torch.device("meta"):
            model.set_attn_implementation(PLANNED)
    return model


def growing_bytes(half: int, whole: int, seq_len: int) -> int:
    """What of `whole` bytes goes by the sequence, when half a sequence keeps `half`.

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
    """Operations of that and the gradient."""


class Losses(nn.Module):
    """The losses of a model as a module, so that it can be called with other weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return next_token_nats(self.model, {"input_ids": ids})[0].sum()


def trace_pass(model: nn.Module, seq_len: int, gradient: bool = True) -> Trace:
    """Pass one sequence, and unless only what is kept for it is asked for its gradient, without data.

    `model` lies on the meta device; here its weights pass for a CPU's, where autocast is known. They aren't
    counted as kept, nor are masks, which attention within a window has.
    """
    losses, mode = Losses(model), FakeTensorMode(allow_non_fake_inputs=True)
    tensors = {
        name: FakeTensor(mode, tensor.detach(), torch.device("cpu")).requires_grad_(tensor.requires_grad)
        for name, tensor in (*losses.named_parameters(), *losses.named_buffers())
    }
    weights = {id(tensor) for tensor in tensors.values()}
    found = Trace({layer: 0 for layer in range(OUTSIDE, len(layers_of(model)))}, {})
    seen: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice
    at = OUTSIDE

    def note(tensor: torch.Tensor) -> torch.Tensor:
        owner = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if id(owner) not in weights and storage._cdata not in seen:
            seen[storage._cdata] = storage
            found.kept[at] += storage.nbytes()
        return tensor

    @contextmanager
    def watching() -> Iterator[None]:
        def enter(layer: int) -> Any:
            def hook(_: nn.Module, args: Any, *__: Any) -> None:
                nonlocal at
                at = layer
                if layer != OUTSIDE:
                    found.streams[layer] = args[0].numel() * args[0].dtype.itemsize

            return hook

        hooks = []
        for number, layer in enumerate(layers_of(model)):
            hooks.append(layer.register_forward_pre_hook(enter(number)))
            hooks.append(layer.register_forward_hook(enter(OUTSIDE)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    with mode, FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter, watching():
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            ids = torch.zeros(1, seq_len, dtype=torch.long)
            nats = torch.func.functional_call(losses, tensors, ids)
        found.forward = counter.get_total_flops()
        if gradient and nats.requires_grad:
            nats.backward()
        found.both = counter.get_total_flops()
    return found


def attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Operations of scaled dot-product attention, the masked half counted too (from three shapes)."""
    return sdpa_flop_count(query, key, value)


def attention_backward_flops(slope: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The same of its gradient."""
    return sdpa_backward_flop_count(slope, query, key, value)


# torch counts those of GPUs itself
ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}
