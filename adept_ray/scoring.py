"""Held-out text and tasks: what is measured, its change against the untouched backbone, the score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from adept_ray.config import ScoreWeights
from adept_ray.corpus import Blocks, shared_batches
from adept_ray.loss import next_token_nats
from adept_ray.ranks import rank, summed, world_size
from adept_ray.sharding import without_gradients

SIDES = ("general", "domain")


@dataclass(frozen=True)
class Change:
    """A held-out split before and after training."""

    before: float
    """Bits per byte, or accuracy, of the untouched backbone."""
    after: float
    """The same of the trained model."""
    delta: float
    """Relative reduction of bits per byte, percent, or gain in accuracy, points; positive is better."""
    standard_error: float
    """Of `delta`, over blocks or items, paired: how much another sample would move it."""
    measure: Literal["bpb", "accuracy"] = "bpb"


def block_nats(model: nn.Module, blocks: Blocks, micro_batch: int) -> np.ndarray:
    """Summed next-token loss of every block, nats, float64 [N]; ranks share the work and get it all."""
    device = next(model.parameters()).device
    mine = range(rank(), len(blocks), world_size())
    nats = torch.zeros(len(blocks), dtype=torch.float64)
    with without_gradients(model):
        losses = [
            next_token_nats(model, batch)[0].double().cpu()
            for batch in shared_batches(blocks, range(len(blocks)), micro_batch, device)
        ]
    if losses:
        nats[list(mine)] = torch.cat(losses)[: len(mine)]
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


def points(before: np.ndarray, after: np.ndarray) -> Change:
    """Compare the answers to the same items, 1 for a right one, before and after training; arrays are [N].

    The standard error is that of a mean of paired differences; nan with a single item.
    """
    moved = 100 * (after - before)
    error = float(moved.std(ddof=1)) / math.sqrt(len(moved)) if len(moved) > 1 else math.nan
    return Change(float(before.mean()), float(after.mean()), float(moved.mean()), error, "accuracy")


def tasks_of(side: str) -> str:
    """Name of the answers to a side's tasks; its losses go by the name of the side itself."""
    return f"{side} tasks"


def judged(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    blocks: Mapping[str, Blocks],
    by_tasks: bool,
    weights: ScoreWeights,
) -> dict[str, Any]:
    """Metrics of a trained model: what was measured on each side, its change, and the combined score.

    `before` and `after` hold, [N] each, a side's loss of each block, nats, and (under :func:`tasks_of`) maybe
    its answers, which count in place of the losses where `by_tasks` says so. Keys for each side: ``SIDE_bpb``
    and maybe ``SIDE_accuracy``, each with a ``…_before``; ``SIDE_delta`` and ``SIDE_delta_se`` of the
    one that counts. Also ``score`` and ``score_se``.
    """
    metrics: dict[str, Any] = {}
    counted = []
    for side in SIDES:
        changes = [change(np.array(before[side]), np.array(after[side]), blocks[side].bytes)]
        if (tasks := tasks_of(side)) in after:
            changes.append(points(np.array(before[tasks]), np.array(after[tasks])))
        for each in changes:
            metrics |= {f"{side}_{each.measure}_before": each.before, f"{side}_{each.measure}": each.after}
        counted.append(changes[-1] if by_tasks else changes[0])
        metrics |= {f"{side}_delta": counted[-1].delta, f"{side}_delta_se": counted[-1].standard_error}
    score, error = combined(counted[0], counted[1], weights)
    return {**metrics, "score": score, "score_se": error}


def combined(general: Change, domain: Change, weights: ScoreWeights) -> tuple[float, float]:
    """Score w_g·Δ_general + w_d·Δ_domain (0 for the untouched backbone) and its standard error."""
    score = weights.general * general.delta + weights.domain * domain.delta
    error = math.hypot(weights.general * general.standard_error, weights.domain * domain.standard_error)
    return score, error
