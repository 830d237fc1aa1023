"""The one loss of the project: next-token cross-entropy in nats, per sequence, padding left out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

Batch = Mapping[str, torch.Tensor]
IGNORED = -100
# Logits become losses piece by piece. One large temporary would be fresh memory for every batch, and on a CPU
# getting that takes as long as the loss itself; a piece fits its cache.
CPU_PIECE, GPU_PIECE = 8 * 2**20, 256 * 2**20  # bytes of float32


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
    rows, wanted = logits.flatten(0, 1), targets.flatten()
    piece_bytes = CPU_PIECE if logits.device.type == "cpu" else GPU_PIECE
    at_once = max(1, piece_bytes // (4 * rows.shape[1]))
    losses = torch.cat(
        [
            F.cross_entropy(piece.float(), goal, reduction="none", ignore_index=IGNORED)
            for piece, goal in zip(rows.split(at_once), wanted.split(at_once), strict=True)
        ]
    )
    return losses.view_as(ids).sum(dim=1), (targets != IGNORED).sum(dim=1).to(losses.dtype)
