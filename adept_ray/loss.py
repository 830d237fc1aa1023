"""The one loss of the project: next-token cross-entropy in nats, per sequence, padding left out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

Batch = Mapping[str, torch.Tensor]
IGNORED = -100


def next_token_nats(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed next-token loss and number of predicted tokens of each sequence.

    `batch` holds ``input_ids`` [B, T] and optionally ``attention_mask`` [B, T]. A prediction counts
    only if both the token it is made from and the token it predicts are real, so padding on either
    side changes nothing. Returns ``(nats [B], tokens [B])``; `nats` carries a graph if grad is enabled.
    """
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    # The targets are shifted, not the logits: a slice of those, the largest tensor, would be copied.
    targets = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
    if mask is not None:
        real = F.pad(mask[:, 1:] * mask[:, :-1], (0, 1), value=0)
        targets = targets.masked_fill(real == 0, IGNORED)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view_as(ids).sum(dim=1), (targets != IGNORED).sum(dim=1).to(losses.dtype)
