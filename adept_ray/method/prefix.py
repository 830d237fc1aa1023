"""The frozen layers below the lowest trained one: what they make of a batch is computed once (pure torch).

While copies alone are trained, the layers below the lowest copy are the backbone's. So the stream that a
batch brings to that copy is the same in every pass of every training with copies that high. It is kept, and
later passes begin there. Which streams are kept, and where, is for a :class:`StreamStore` to decide.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from adept_ray.method.forwards import answer_at_once, take_stream


@dataclass(frozen=True)
class StreamKey:
    """What a stream was computed from and how; with the same key every bit is the same."""

    digest: bytes
    """Names the batch: its shape and all of its token ids. A product of another size may round otherwise."""
    depth: int
    """Layers that it has passed."""
    how: Hashable
    """The types that were computed in, whether for a gradient, whether by torch.compile."""


class StreamStore(Protocol):
    """Keeps streams of one backbone on one device."""

    def __contains__(self, key: StreamKey) -> bool: ...

    def find(self, key: StreamKey) -> torch.Tensor | None:
        """The stream of a key that it contains; None if that can't be had in time."""

    def keep(self, key: StreamKey, stream: torch.Tensor, for_text: bool) -> None:
        """Keep a stream if there is room; `for_text` says that it is one of training text."""


@dataclass(frozen=True)
class FrozenPrefix:
    """The frozen layers below the lowest trained one, and the store of what they hand on."""

    layers: Sequence[nn.Module]
    """The layers from the lowest one up to and with the lowest trained one."""
    store: StreamStore
    keeps_text: bool = False
    """Whether streams of training text are worth keeping: other trainings see the same batches."""
    passed: int = 0
    """How many things a layer gives, the stream first; 0 where it gives the stream alone."""

    @property
    def depth(self) -> int:
        """Number of frozen layers."""
        return len(self.layers) - 1

    @contextmanager
    def skip_or_keep(self, digest: bytes, autocast: torch.dtype | None, compiled: bool) -> Iterator[None]:
        """Within this, the layers hand on what is kept of a batch; what isn't is computed, and kept.

        A pass begins at the deepest kept stream, which another training with lower copies may have left.
        """
        for_text = torch.is_grad_enabled()
        how = (autocast, for_text, torch.is_inference_mode_enabled(), compiled and for_text)
        key = StreamKey(digest, self.depth, how)
        with self._skip(key), self._keep(key, for_text):
            yield

    @contextmanager
    def _skip(self, whole: StreamKey) -> Iterator[None]:
        keys = (replace(whole, depth=depth) for depth in range(self.depth, 0, -1))
        key = next((key for key in keys if key in self.store), None)
        stream = self.store.find(key) if key else None
        if key is None or stream is None:
            yield
            return
        with answer_at_once(self.layers[: key.depth], stream, self.passed):
            yield

    @contextmanager
    def _keep(self, key: StreamKey, for_text: bool) -> Iterator[None]:
        if key in self.store or (for_text and not self.keeps_text):
            yield
            return

        def take(_: nn.Module, args: tuple[object, ...], options: Mapping[str, object]) -> None:
            self.store.keep(key, take_stream(args, options).detach(), for_text)

        hook = self.layers[-1].register_forward_pre_hook(take, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
