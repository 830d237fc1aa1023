"""Held-out text and tasks: what is measured, its change against the untouched backbone, the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from adept_ray.config.specs import ScoreWeights
from adept_ray.data.benchmark_tasks import answer_items
from adept_ray.data.blocks import Blocks, make_shared_batches
from adept_ray.data.loading import load_tokenizer
from adept_ray.method.loss import token_nats
from adept_ray.method.ranks import rank, sum_over_ranks, world_size
from adept_ray.method.scores import (
    SIDES,
    Metrics,
    combine_changes,
    compare_answers,
    compare_losses,
    tasks_key,
)
from adept_ray.method.sharding import disable_gradients
from adept_ray.training.work import TrainWork

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Measured = Sequence[float] | np.ndarray


def measure_document_nats(model: nn.Module, blocks: Blocks, micro_batch: int) -> np.ndarray:
    """Summed next-token loss of every document, nats, float64 [D]; ranks share the work and get it all."""
    device = next(model.parameters()).device
    mine = range(rank(), len(blocks), world_size())
    documents = torch.from_numpy(blocks.documents)
    nats = torch.zeros(int(documents.max()) + 1, dtype=torch.float64)
    done = 0
    with disable_gradients(model):
        for batch in make_shared_batches(blocks, range(len(blocks)), micro_batch, device):
            losses = token_nats(model, batch)[0][:, :-1].double().cpu()
            here = list(mine[done : done + len(losses)])  # none for a block that doesn't count
            nats.index_add_(0, documents[here].flatten(), losses[: len(here)].flatten())
            done += len(here)
    return sum_over_ranks(nats, device).numpy()


def score_model(
    before: Mapping[str, Measured],
    after: Mapping[str, Measured],
    blocks: Mapping[str, Blocks],
    by_tasks: bool,
    weights: ScoreWeights,
) -> Metrics:
    """Metrics of a trained model: what was measured on each side, its change, and the combined score.

    `before` and `after` hold, [N] each, a side's loss of each document, nats, and (under :func:`tasks_key`)
    maybe its answers, which count in place of the losses where `by_tasks` says so. Keys for each side:
    ``SIDE_bpb`` and maybe ``SIDE_accuracy``, each with a ``…_before``; ``SIDE_delta`` and ``SIDE_delta_se``
    of the one that counts. Also ``score`` and ``score_se``, and ``pulls``: side → those of its change.
    """
    metrics: Metrics = {}
    counted = []
    for side in SIDES:
        changes = [compare_losses(np.array(before[side]), np.array(after[side]), blocks[side].document_bytes)]
        if (tasks := tasks_key(side)) in after:
            changes.append(compare_answers(np.array(before[tasks]), np.array(after[tasks])))
        for each in changes:
            metrics |= {f"{side}_{each.measure}_before": each.before, f"{side}_{each.measure}": each.after}
        counted.append(changes[-1] if by_tasks else changes[0])
        metrics |= {f"{side}_delta": counted[-1].delta, f"{side}_delta_se": counted[-1].standard_error}
    score, error = combine_changes(counted[0], counted[1], weights)
    pulls = {side: list(each.pulls) for side, each in zip(SIDES, counted, strict=True)}
    return {**metrics, "score": score, "score_se": error, "pulls": pulls}


def measure_held_out(
    model: PreTrainedModel, work: TrainWork, blocks: Mapping[str, Blocks]
) -> dict[str, np.ndarray]:
    """The loss of each held-out document of both sides, and the answers to the items of a side's tasks."""
    found = {side: measure_document_nats(model, blocks[side], work.micro_batch) for side in SIDES}
    if work.items:
        tokenizer = load_tokenizer(work.backbone)
        for side, items in work.items.items():
            found[tasks_key(side)] = answer_items(model, tokenizer, items, work.micro_batch)
    return found
