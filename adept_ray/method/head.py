"""Losses from what enters the output head, a piece at a time, so that logits are hardly ever there whole.

The loss of a token depends on that token's logits alone. So its gradient in them, and in what entered the
head, can be had with the loss itself, while the piece of logits is at hand, but for the factor by which the
loss will count: that comes with the backward pass and multiplies a row. So of N tokens N·H values are kept in
place of N·V (H the model's width, V its vocabulary), and the head's products are those that there would be
anyway. A trained head keeps N·V values once, the gradients that its logits have become: its own gradient is a
sum over tokens, in which the factors multiply what entered.

torch 2.13's ``linear_cross_entropy`` makes the logits again for the gradient of single tokens' losses: with
pieces as here it takes 1.3 times as long. Its own choice are 2 rows a piece on SmolLM2: 256 tokens then take
9.2 s on two CPU cores, 0.30 s as it is done here, and 0.35 s with logits made whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import family_of
from adept_ray.method.forwards import replace_forward

IGNORED = -100
MIB = 2**20
# Bytes of float32 logits that a product makes at once: each piece reads the whole head from memory, so fewer
# than some 256 rows take longer.
CPU_LOGITS, GPU_LOGITS = 128 * MIB, 512 * MIB
# Bytes of float32 logits that become losses at once. One large temporary would be fresh memory for every
# batch, and on a CPU getting that takes as long as the loss itself; so much fits its cache.
CPU_PIECE, GPU_PIECE = 8 * MIB, 128 * MIB


def find_plain_head(model: nn.Module) -> nn.Linear | None:
    """The output head of `model` if logits are what it makes of the last stream and nothing else; or None.

    Some families scale logits or cap them, by a field of the config. Code that came with a model may do
    anything, and so may a head that isn't a linear map, or whose forward pass somebody has replaced.
    """
    own = [
        kind for kind in type(model).__mro__ if not kind.__module__.startswith(("transformers.", "torch."))
    ]
    if own != [object]:
        return None
    try:
        changed_by = family_of(model).logits_changed_by
    except UserError:
        return None
    if changed_by is None or any(getattr(model.config, name, None) not in (None, 1) for name in changed_by):
        return None
    head = cast("nn.Module", model.get_output_embeddings())  # type: ignore[operator]
    return head if type(head) is nn.Linear and "forward" not in vars(head) else None


@contextmanager
def replace_logits(head: nn.Linear, wanted: torch.Tensor) -> Iterator[None]:
    """Within this `head` puts out the losses [B, T] of `wanted` [B, T] in place of logits [B, T, V].

    So whatever belongs to a whole pass of its model (pieces put together, types, hooks) goes on as always.
    """
    with replace_forward(head, partial(_answer_with_losses, head, wanted)):
        yield


def _answer_with_losses(head: nn.Linear, wanted: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    rows, goals = stream.flatten(0, -2), wanted.flatten()
    trained = [each.requires_grad for each in (stream, *head.parameters())]
    if torch.is_grad_enabled() and any(trained):
        losses = cast("torch.Tensor", _HeadLosses.apply(rows, head.weight, head.bias, goals))
    else:
        losses = torch.cat(
            [
                measure_losses(F.linear(piece, head.weight, head.bias), goal)
                for piece, goal in _split_rows(rows, goals, head.weight)
            ]
        )
    return losses.view_as(wanted)


def measure_losses(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [N] of `logits` [N, V] against token ids `wanted` [N], in float32; 0 where IGNORED."""
    at_once = count_rows(logits, CPU_PIECE, GPU_PIECE)
    return torch.cat(
        [
            F.cross_entropy(piece.float(), goal, reduction="none", ignore_index=IGNORED)
            for piece, goal in zip(logits.split(at_once), wanted.split(at_once), strict=True)
        ]
    )


def count_rows(logits: torch.Tensor, on_cpu: int, on_gpu: int) -> int:
    """How many rows of `logits` [N, V] are so many bytes of float32; at least 1."""
    return max(1, (on_cpu if logits.device.type == "cpu" else on_gpu) // (4 * logits.shape[1]))


def _split_rows(
    rows: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pieces of what enters a head of `weight` [V, H], and of what is wanted of them."""
    at_once = count_rows(weight.T, CPU_LOGITS, GPU_LOGITS)
    return zip(rows.split(at_once), wanted.split(at_once), strict=True)


class _HeadLosses(torch.autograd.Function):
    """The losses [N] of rows [N, H] that enter a head; see the top of this file."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        wanted: torch.Tensor,
    ) -> torch.Tensor:
        losses, slopes, kept = [], [], []
        head_is_trained = any(ctx.needs_input_grad[1:3])  # type: ignore[attr-defined]
        for piece, goal in _split_rows(rows, wanted, weight):
            logits = F.linear(piece, weight, bias)
            losses.append(_turn_into_slopes(logits, goal))
            slopes.append(logits @ weight)
            if head_is_trained:
                kept.append(logits)
        counted = (wanted != IGNORED)[:, None]
        entered = (rows * counted, counted) if head_is_trained else ()
        ctx.save_for_backward(torch.cat(slopes) * counted, *entered, *kept)
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, factors: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        slopes, *others = ctx.saved_tensors  # type: ignore[attr-defined]
        for_rows, for_weight, for_bias, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        found: list[torch.Tensor | None] = [None] * 4
        if for_rows:
            found[0] = slopes * factors[:, None].to(slopes.dtype)
        if others:
            rows, counted, *kept = others
            sizes = [len(piece) for piece in kept]
            scaled = (rows * factors[:, None]).to(slopes.dtype).split(sizes)
            if for_weight:
                found[1] = _sum_products(kept, scaled)
            if for_bias:
                ones = (counted * factors[:, None]).to(slopes.dtype).split(sizes)
                found[2] = _sum_products(kept, ones)[:, 0]
        return tuple(found)


def _sum_products(lefts: Sequence[torch.Tensor], rights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The product of one matrix, transposed, with another, both in pieces of some rows; summed in float32."""
    total = (lefts[0].T @ rights[0]).float()
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        if left.dtype == total.dtype:
            total.addmm_(left.T, right)
        else:
            total += left.T @ right
    return total


def _turn_into_slopes(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Losses [N] of `logits` [N, V], which become the gradient of each row's own loss in them, in place.

    Operations and order are those of torch's cross-entropy, so the losses are :func:`measure_losses`' bits.
    """
    losses = []
    at_once = count_rows(logits, CPU_PIECE, GPU_PIECE)
    for piece, goal in zip(logits.split(at_once), wanted.split(at_once), strict=True):
        logs = F.log_softmax(piece.float(), dim=1)
        losses.append(F.nll_loss(logs, goal, reduction="none", ignore_index=IGNORED))
        at_goal = goal.clamp(min=0)[:, None]
        piece.copy_(logs.exp_().scatter_add_(1, at_goal, logs.new_full((), -1.0).expand_as(at_goal)))
    return torch.cat(losses)
