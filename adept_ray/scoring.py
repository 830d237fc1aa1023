"""Held-out loss, bits per byte, change against the untouched backbone, and the combined score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from adept_ray.config import ScoreWeights
from adept_ray.corpus import Blocks, micro_batches
from adept_ray.loss import next_token_nats
from adept_ray.ranks import rank, summed, world_size


@dataclass(frozen=True)
class Change:
    """A held-out split before and after training."""

    before_bpb: float
    """Bits per byte of the untouched backbone."""
    bpb: float
    """Bits per byte of the trained model."""
    delta: float
    """Relative reduction of bits per byte, percent; positive is better."""
    standard_error: float
    """Of `delta`, over blocks, paired: how much another sample of text would move it."""


def block_nats(model: nn.Module, blocks: Blocks, micro_batch: int) -> np.ndarray:
    """Summed next-token loss of every block, nats, float64 [N]; ranks share the work and get it all."""
    device = next(model.parameters()).device
    mine = range(rank(), len(blocks), world_size())
    nats = torch.zeros(len(blocks), dtype=torch.float64)
    with torch.inference_mode():
        losses = [
            next_token_nats(model, b)[0].double().cpu()
            for b in micro_batches(blocks, mine, micro_batch, device)
        ]
    if losses:
        nats[list(mine)] = torch.cat(losses)
    return summed(nats, device).numpy()


def bits_per_byte(nats: np.ndarray, size: np.ndarray) -> float:
    """Bits per UTF-8 byte of text from summed losses [N] and bytes [N]."""
    return float(nats.sum() / math.log(2) / size.sum())


def change(before: np.ndarray, after: np.ndarray, size: np.ndarray) -> Change:
    """Compare the losses of the same blocks before and after training; all arrays are [N].

    The standard error is that of the ratio of two sums over paired blocks (Cochran 1977, 6.4); nan
    with a single block.
    """
    kept = float(after.sum() / before.sum())
    spread = float(((after - kept * before) ** 2).sum())
    count = len(before)
    error = math.sqrt(spread * count / (count - 1)) / float(before.sum()) if count > 1 else math.nan
    return Change(bits_per_byte(before, size), bits_per_byte(after, size), 100 * (1 - kept), 100 * error)


def combined(general: Change, domain: Change, weights: ScoreWeights) -> tuple[float, float]:
    """Score w_g·Δ_general + w_d·Δ_domain (percent; 0 for the untouched backbone) and its standard error."""
    score = weights.general * general.delta + weights.domain * domain.delta
    error = math.hypot(weights.general * general.standard_error, weights.domain * domain.standard_error)
    return score, error
