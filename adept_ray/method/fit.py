"""How a model is made to fit into its workers' memories."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fit:
    """How a model is made to fit into its workers' memories, and to run on them."""

    recompute: bool = False
    """Compute activations again for the gradient."""
    sharded: bool = False
    """Share the model out over the workers."""
    compiled: bool = False
    """Train with layers by torch.compile."""
    stream_bytes: int = 0
    """Bytes that a worker may keep of what enters the lowest copy: in memory on CPUs, else on its disk."""


PLAIN = Fit()
