"""A module's forward pass replaced for a while, and the stream that a layer takes and gives (pure torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

STREAM = "hidden_states"  # the name by which some models hand a layer its stream


@dataclass(frozen=True)
class LayerCall:
    """What a layer was called with and gave, in one batch."""

    stream: torch.Tensor
    """What left the layer, and enters its copy."""
    others: Sequence[object]
    """What the layer was called with behind the stream."""
    arguments: Mapping[str, object]
    """The layer's keyword arguments: masks, positions, …"""


@contextmanager
def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within this, `module` runs `forward`; afterwards what it ran before, somebody's own patch or not."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def take_stream(args: Sequence[object], options: Mapping[str, object]) -> torch.Tensor:
    """The stream among what a layer is called with: the first thing, or what has its name."""
    return cast("torch.Tensor", args[0] if args else options[STREAM])


def take_left(out: object) -> torch.Tensor:
    """The stream among what a layer gives: all of it, or the first of several things."""
    return cast("torch.Tensor", out[0] if isinstance(out, (tuple, list)) else out)


@contextmanager
def answer_at_once(layers: Sequence[nn.Module], stream: torch.Tensor, passed: int = 0) -> Iterator[None]:
    """Within this, each of `layers` hands on `stream` and computes nothing, however it would be run.

    Where layers give so many things as are `passed`, the others than the stream are None.
    """
    answer = (stream, *[None] * (passed - 1)) if passed else stream
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replace_forward(layer, lambda *_, **__: answer))
        yield


@contextmanager
def record_calls(layers: nn.ModuleList, calls: list[LayerCall]) -> Iterator[None]:
    """Append the call of each layer to `calls`, in layer order."""

    def record(_: nn.Module, args: tuple[object, ...], options: Mapping[str, object], out: object) -> None:
        named = {name: value for name, value in options.items() if args or name != STREAM}
        calls.append(LayerCall(take_left(out), args[1:], named))

    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
