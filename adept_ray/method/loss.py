"""The one loss of the project: next-token cross-entropy in nats, padding left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from adept_ray.method.forwards import replace_forward
from adept_ray.method.head import IGNORED, find_plain_head, measure_losses, replace_logits
from adept_ray.method.prefix import FrozenPrefix

Batch = Mapping[str, torch.Tensor]
POLICY_ATTRIBUTE = "adept_computing"
MAX_COMPILED_CODES = 64  # of one class of layers; beyond that torch runs a layer as it is


@dataclass(frozen=True)
class ComputePolicy:
    """How the passes of a model are made, where that isn't the plain way (see :func:`set_compute_policy`)."""

    autocast: torch.dtype | None = None
    """Type to compute in, where some trained weights have another type."""
    recomputed: Sequence[nn.Module] = ()
    """Layers whose activations are computed again for the gradient and not kept (gradient checkpointing)."""
    compiled: Sequence[nn.Module] = ()
    """Layers that run by torch.compile where a gradient is needed."""
    prefix: FrozenPrefix | None = None
    """Frozen layers that aren't run on batches of which it is kept what they hand on."""


def set_compute_policy(model: nn.Module, how: ComputePolicy) -> None:
    """Let all losses of `model` be computed that way."""
    setattr(model, POLICY_ATTRIBUTE, how)


def get_compute_policy(model: nn.Module) -> ComputePolicy:
    """How `model` computes: its policy, or the plain one."""
    return getattr(model, POLICY_ATTRIBUTE, ComputePolicy())


@contextmanager
def apply_compute_policy(model: nn.Module) -> Iterator[None]:
    """Within this, `model` runs by its policy (see :func:`set_compute_policy`)."""
    how = get_compute_policy(model)
    device = next(model.parameters()).device.type
    recomputed, compiled = (how.recomputed, how.compiled) if torch.is_grad_enabled() else ((), ())
    if compiled:  # every time: what is set there holds for one thread
        torch._dynamo.config.recompile_limit = max(MAX_COMPILED_CODES, torch._dynamo.config.recompile_limit)
    with ExitStack() as stack:
        for layer in compiled:
            kind: Any = type(layer)  # mypy takes modules for unhashable
            stack.enter_context(replace_forward(layer, partial(compile_forward(kind), layer)))
        for layer in recomputed:
            # There is no dropout outside of training mode, so no random numbers have to be drawn again.
            again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(replace_forward(layer, again))
        if how.autocast:
            stack.enter_context(torch.autocast(device, how.autocast))
        yield


@contextmanager
def skip_prefix(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Within this, frozen layers of `model` aren't run if what they make of `batch` is kept.

    That is so by a policy with a prefix, for a batch without padding that has a ``digest``.
    """
    how = get_compute_policy(model)
    if how.prefix is None or "digest" not in batch or "attention_mask" in batch:
        yield
        return
    digest = bytes(batch["digest"].tolist())
    with how.prefix.skip_or_keep(digest, how.autocast, bool(how.compiled)):
        yield


@cache
def compile_forward(kind: type[nn.Module]) -> Callable[..., object]:
    """The forward pass of layers of that class, by torch.compile; the layer is its first argument.

    All layers of a class, of all models that this process trains, share what was compiled. There is a code
    for each way in which they differ (frozen or not, kind of attention, …). And there is one for batches of
    one sequence, one for those of the first size and, from the second other size on, one for any size.
    """
    return torch.compile(kind.forward)


def next_token_nats(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed next-token loss and number of predicted tokens of each sequence.

    `batch` is as in :func:`token_nats`. Returns ``(nats [B], tokens [B])``; `nats` carries a graph if grad
    is enabled.
    """
    nats, counted = token_nats(model, batch)
    return nats.sum(dim=1), counted.sum(dim=1).to(nats.dtype)


def token_nats(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Next-token loss at every place, and whether it counts; 0 where it doesn't, as at the last place.

    `batch` holds ``input_ids`` [B, T] and optionally ``attention_mask`` [B, T]. A prediction counts
    only if both the token it is made from and the token it predicts are real, so padding on either
    side changes nothing; and, where ``counts`` [B] is given, only in a sequence that does. A ``digest``
    (uint8, on the CPU) names a batch that may come again: see :func:`skip_prefix`.
    Returns ``(nats [B, T], counted bool [B, T])``; `nats` carries a graph if grad is enabled.
    """
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    # The targets are shifted, not the logits: a slice of those, the largest tensor, would be copied.
    targets = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
    if mask is not None:
        real = F.pad(mask[:, 1:] * mask[:, :-1], (0, 1), value=0)
        targets = targets.masked_fill(real == 0, IGNORED)
    if "counts" in batch:
        targets = targets.masked_fill(~batch["counts"][:, None], IGNORED)
    with (
        apply_compute_policy(model),
        skip_prefix(model, batch),
        put_out_losses(model, targets) as replaced,
    ):
        found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = found if replaced else measure_losses(found.flatten(0, 1), targets.flatten())
    return losses.view_as(ids), targets != IGNORED


@contextmanager
def put_out_losses(model: nn.Module, targets: torch.Tensor) -> Iterator[bool]:
    """Within this, `model` puts out losses [B, T] in place of logits where it can; yields whether it does.

    It can't where logits are more than its head's output.
    """
    head = find_plain_head(model)
    if head is None:
        yield False
        return
    with replace_logits(head, targets):
        yield True
