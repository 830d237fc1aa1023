"""The one loss of the project: next-token cross-entropy in nats, per sequence, padding left out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

Batch = Mapping[str, torch.Tensor]


def next_token_nats(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed next-token loss and number of predicted tokens of each sequence.

    `batch` holds ``input_ids`` [B, T] and optionally ``attention_mask`` [B, T]. A prediction counts
    only if both the token it is made from and the token it predicts are real, so padding on either
    side changes nothing. Returns ``(nats [B], tokens [B])``; `nats` carries a graph if grad is enabled.
    """
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    losses = losses.view(ids.shape[0], -1)
    counted = torch.ones_like(losses) if mask is None else (mask[:, 1:] * mask[:, :-1]).to(losses.dtype)
    return (losses * counted).sum(dim=1), counted.sum(dim=1)
