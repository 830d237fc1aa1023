"""Stage 1, what every Ray Train worker runs: importance of layers and units, losses of the backbone."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from adept_ray.data.benchmark_tasks import answer_items
from adept_ray.data.blocks import Blocks, make_micro_batches, make_shared_batches
from adept_ray.data.loading import borrow, borrow_sharded, load_tokenizer
from adept_ray.method.activations import measure_separation, pool_activations
from adept_ray.method.anatomy import layers_of
from adept_ray.method.importance import limit_layers, limit_sequences, unit_importance
from adept_ray.method.loss import ComputePolicy, set_compute_policy
from adept_ray.method.proof import check_copies
from adept_ray.method.race import RaceRules, Ranking, rank_layers
from adept_ray.method.ranks import rank, sum_over_ranks, world_size
from adept_ray.method.reception import measure_layer_reception
from adept_ray.method.scores import SIDES
from adept_ray.training.callbacks import Progress, ignore_progress
from adept_ray.training.scoring import measure_document_nats
from adept_ray.training.work import ImportanceRecord, LayerRow, ProbeResult, ProbeWork

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_probe(
    work: ProbeWork,
    blocks: Mapping[str, Blocks],
    device: torch.device,
    progress: Progress = ignore_progress,
) -> ProbeResult:
    """Measure `work` on this rank's share of `blocks`; every rank returns the same result."""
    model = (borrow_sharded if work.fit.sharded else borrow)(work.backbone, device)
    if work.fit.recompute:
        set_compute_policy(model, ComputePolicy(recomputed=tuple(layers_of(model))))
    result: ProbeResult = {"nats": {}, "correct": {}}
    if work.importance:
        check_copies(model)
        result["importance"] = measure_importance(model, work, blocks["probe"], device, progress)
    for number, name in enumerate(work.held_out, 1):
        result["nats"][name] = measure_document_nats(model, blocks[name], work.micro_batch).tolist()
        if not work.importance:
            progress(number, len(work.held_out))
    if work.items:
        tokenizer = load_tokenizer(work.backbone)
        for name, items in work.items.items():
            result["correct"][name] = answer_items(model, tokenizer, items, work.micro_batch).tolist()
    if work.reception:
        every = range(len(blocks["reception"]))
        text = make_shared_batches(blocks["reception"], every, work.micro_batch, device)
        result["reception"] = list(measure_layer_reception(model, text))
    if work.separation:
        general, domain = (pool_all_blocks(model, blocks[side], work.micro_batch, device) for side in SIDES)
        result["separation"] = measure_separation(general.numpy(), domain.numpy())
    return result


def pool_all_blocks(model: nn.Module, blocks: Blocks, micro_batch: int, device: torch.device) -> torch.Tensor:
    """Mean output of every layer on every block; ranks share the work and get it all."""
    mine = range(rank(), len(blocks), world_size())
    found = pool_activations(model, make_micro_batches(blocks, mine, micro_batch, device))
    every = torch.zeros(len(blocks), *found.shape[1:])
    every[list(mine)] = found
    return sum_over_ranks(every, device)


def measure_importance(
    model: PreTrainedModel, work: ProbeWork, blocks: Blocks, device: torch.device, progress: Progress
) -> ImportanceRecord:
    """Rank the layers and measure their units; the content of importance.json but for where it came from."""
    started = time.perf_counter()
    every, count = range(len(blocks)), len(layers_of(model))
    (probe,) = make_micro_batches(blocks, every, len(blocks), device)
    at_once = limit_sequences(model, blocks.tokens.shape[1])
    rules = RaceRules(work.raced, work.confidence, min(at_once, work.micro_batch))
    ranking = rank_layers(model, probe, work.k_max or count, rules, progress)
    batches = make_shared_batches(blocks, every, work.micro_batch, device)
    units = unit_importance(model, batches, range(count), limit_layers(model))
    return {
        "probe": "raced" if work.raced else "exhaustive",
        "base_loss": ranking.importance.base_loss,
        "layers": list_layer_rows(ranking),
        "order": list(ranking.importance.order),
        "confidence": work.confidence,
        "settled": list(ranking.settled),
        "ties": [list(group) for group in ranking.ties],
        "units": units,
        "seconds": round(time.perf_counter() - started, 1),
    }


def list_layer_rows(ranking: Ranking) -> list[LayerRow]:
    """What importance.json says of each layer."""
    layers = ranking.importance
    rows = zip(layers.mean, layers.standard_error, ranking.sequences, ranking.places, strict=True)
    return [
        {
            "layer": layer,
            "mean": mean,
            "standard_error": error if math.isfinite(error) else None,
            "sequences": sequences,
            "places": list(places),
        }
        for layer, (mean, error, sequences, places) in enumerate(rows)
    ]
