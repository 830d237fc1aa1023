"""Stage 1, what every Ray Train worker runs: importance of layers and units, losses of the backbone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from adept_ray.backbones import load_model
from adept_ray.corpus import Blocks, micro_batches
from adept_ray.importance import layer_importance, unit_importance
from adept_ray.ranks import rank, world_size
from adept_ray.scoring import block_nats

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ProbeJob:
    """What to measure of which backbone; the blocks come apart from it."""

    source: str
    """Folder or hub id of the backbone."""
    revision: str | None
    micro_batch: int
    importance: bool = True
    """Measure layer and unit importance on the blocks named ``probe``."""
    held_out: tuple[str, ...] = ()
    """Names of the blocks on which to record the untouched backbone's losses."""


def probe(
    job: ProbeJob,
    blocks: Mapping[str, Blocks],
    device: torch.device,
    progress: Progress = lambda done, of: None,
) -> dict[str, Any]:
    """Measure `job` on this rank's share of `blocks`; every rank returns the same result.

    Keys: ``importance`` (the content of importance.json: nats per token, see
    :mod:`adept_ray.importance`) and ``nats`` (block name → summed loss of each block), as asked for.
    """
    model = load_model(job.source, job.revision).to(device)
    result: dict[str, Any] = {"nats": {}}
    if job.importance:
        started = time.perf_counter()
        mine = range(rank(), len(blocks["probe"]), world_size())
        batches = list(micro_batches(blocks["probe"], mine, job.micro_batch, device))
        # A bypass costs less the later its layer, so progress is counted in layers still run.
        count = model.config.num_hidden_layers
        work = [layers_run(done, count) for done in range(count + 1)]
        batch = iter(range(len(batches)))
        current = [0]

        def tell(done: int, of: int) -> None:
            if done == 1:
                current[0] = next(batch)
            progress(current[0] * work[of] + work[done], len(batches) * work[of])

        layers = layer_importance(model, batches, tell)
        units = unit_importance(model, batches, range(count))
        result["importance"] = {
            "base_loss": layers.base_loss,
            "layers": [
                {"layer": i, "mean": mean, "standard_error": error}
                for i, (mean, error) in enumerate(zip(layers.mean, layers.standard_error, strict=True))
            ],
            "order": list(layers.order),
            "units": units,
            "seconds": round(time.perf_counter() - started, 1),
        }
    for name in job.held_out:
        result["nats"][name] = block_nats(model, blocks[name], job.micro_batch).tolist()
    return result


def layers_run(bypassed: int, layers: int) -> int:
    """Layer passes needed for the whole model and the first `bypassed` bypasses."""
    return layers + sum(layers - 1 - layer for layer in range(bypassed))
