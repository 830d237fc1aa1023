"""Gradients summed over ranks while the backward pass goes on, so that the network isn't waited for.

That is what torch's DistributedDataParallel does (arXiv 2006.15704). It doesn't fit here: it hooks into nodes
of autograd that torch drops without a word when a parameter's data changes its type, as scoring has it
(:meth:`~adept_ray.method.tuning.Tuning.use_exported_weights`), it takes means, and it keeps its buckets while
nothing is trained. Models in pieces need none of this: FSDP sums their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from adept_ray.method.ranks import world_size

BUCKET_BYTES = 32 * 2**20  # so large that a network is used well, so small that the last one isn't waited for


@contextmanager
def sum_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within this comes one backward pass; afterwards ``.grad`` of `parameters` are sums over all ranks.

    Every rank must come here with the same parameters; some may get no gradient, here or everywhere. What
    earlier passes left in ``.grad`` is part of the sum. A sum begins as soon as its bucket of gradients is
    there, and memory is taken for one bucket more than there are gradients.
    """
    if world_size() == 1:
        yield
        return
    sums = BucketSums(fill_buckets(parameters, BUCKET_BYTES))
    hooks = [each.register_post_accumulate_grad_hook(sums.note_gradient) for each in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    sums.finish()


def fill_buckets(parameters: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """All `parameters` in buckets of at least `size` bytes but for the last one.

    The last parameter comes first: a backward pass reaches the last layer first.
    """
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        if room <= 0:
            buckets.append([])
            room = size
        buckets[-1].append(parameter)
        room -= parameter.numel() * parameter.element_size()
    return buckets


class BucketSums:
    """The sums of buckets of gradients, begun in the order of the buckets, the same on all ranks."""

    def __init__(self, buckets: Sequence[Sequence[nn.Parameter]]) -> None:
        self._buckets = buckets
        self._missing = [set(bucket) for bucket in buckets]
        self._bucket_of = {each: number for number, bucket in enumerate(buckets) for each in bucket}
        self._running: list[dist.Work] = []

    def note_gradient(self, parameter: torch.Tensor) -> None:
        """Take in that the gradient of `parameter` is there, and begin the sums that can begin."""
        assert isinstance(parameter, nn.Parameter)
        # A second one would be lost in a sum that has begun.
        self._missing[self._bucket_of[parameter]].remove(parameter)
        while len(self._running) < len(self._buckets) and not self._missing[len(self._running)]:
            self._begin_next()

    def finish(self) -> None:
        """Begin the sums of what has no gradient here, and wait for all."""
        while len(self._running) < len(self._buckets):
            self._begin_next()
        for work in self._running:
            work.wait()

    def _begin_next(self) -> None:
        bucket = self._buckets[len(self._running)]
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([piece.flatten() for piece in pieces])
        for parameter, piece in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = piece.view_as(parameter)  # which frees the gradient that was copied
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._running.append(work)
