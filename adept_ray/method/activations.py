"""Where a model keeps general and domain text apart: the densities of its activations, layer by layer.

The paper draws kernel densities of activations for both kinds of text; it doesn't say along which direction.
Here every block of text is the mean of a layer's output over its tokens, and the direction is that between
the means of both kinds (each feature in units of its spread within a kind), found on one half of the blocks
and applied to the other, so that neither many features nor a document in many blocks can feign a distance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from torch import nn

from adept_ray.method.loss import Batch

if TYPE_CHECKING:
    from transformers.modeling_outputs import CausalLMOutputWithPast

GRID = 512  # points on which two densities are compared
MARGIN = 0.5  # how far that grid goes beyond the values, as a share of their range
TINY = 1e-6
Places = Sequence[float] | np.ndarray


class LayerSeparation(TypedDict):
    """How far apart a layer keeps both kinds of text."""

    general: list[float]
    """Place of every general block (see :func:`project_blocks`)."""
    domain: list[float]
    """Place of every domain block."""
    overlap: float
    """Area under both densities at once (see :func:`measure_overlap`)."""


def pool_activations(model: nn.Module, batches: Iterable[Batch]) -> torch.Tensor:
    """Mean output of every layer over each block's tokens: float32 [blocks, layers, features], on the CPU.

    A block's first token is left out: its activations are a hundred times those of others in many models,
    whatever the text. Blocks have no padding.
    """
    rows = []
    with torch.inference_mode():
        for batch in batches:
            found: CausalLMOutputWithPast = model(**batch, output_hidden_states=True, use_cache=False)
            # The first is the embedding; the last one has passed the final norm, as what the head sees.
            assert found.hidden_states is not None
            layers = torch.stack([states[:, 1:].float().mean(1) for states in found.hidden_states[1:]], 1)
            rows.append(layers.cpu())
    return torch.cat(rows)


def project_blocks(general: np.ndarray, domain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of every block between the two kinds, in a layer: [N] and [M] from [N, d] and [M, d].

    0 is the middle; domain text lies to the right, in units of the spread within a kind. The first and the
    second half of the blocks take turns in giving the direction and being placed: neighbours may be of one
    document. Needs four blocks of each kind.
    """
    kinds = general, domain
    places = np.zeros(len(general)), np.zeros(len(domain))
    for first in (True, False):
        known, others = zip(*(split_halves(kind, first) for kind in kinds), strict=True)
        spread = np.sqrt((known[0].var(0) + known[1].var(0)) / 2) + TINY
        axis = (known[1].mean(0) - known[0].mean(0)) / spread**2
        along = [kind @ axis for kind in others]
        means = [float(each.mean()) for each in along]
        within = np.concatenate([each - mean for each, mean in zip(along, means, strict=True)]).std() + TINY
        for place, each in zip(places, along, strict=True):
            split_halves(place, first)[1][:] = (each - sum(means) / 2) / within
    return places


def split_halves(values: np.ndarray, first: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of `values` (views), the first one first or last."""
    middle = len(values) // 2
    return (values[:middle], values[middle:]) if first else (values[middle:], values[:middle])


def estimate_densities(general: Places, domain: Places) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A common grid and both kernel densities on it, each [GRID] (Gaussian kernels, Scott's bandwidth)."""
    from scipy.stats import gaussian_kde

    both = np.concatenate([general, domain])
    margin = MARGIN * (both.max() - both.min()) + TINY
    grid = np.linspace(both.min() - margin, both.max() + margin, GRID)
    return grid, gaussian_kde(general)(grid), gaussian_kde(domain)(grid)


def measure_overlap(general: Places, domain: Places) -> float:
    """Area under both densities at once: 1 where the kinds can't be told apart, 0 where they don't meet."""
    grid, p, q = estimate_densities(general, domain)
    return float(np.minimum(p, q).sum() * (grid[1] - grid[0]))


def measure_separation(general: np.ndarray, domain: np.ndarray) -> list[LayerSeparation]:
    """For each layer the places of all blocks and the overlap of their densities, from [N, layers, d]."""
    rows: list[LayerSeparation] = []
    for layer in range(general.shape[1]):
        places = project_blocks(general[:, layer].astype(np.float64), domain[:, layer].astype(np.float64))
        rows.append(
            {"general": places[0].tolist(), "domain": places[1].tolist(), "overlap": measure_overlap(*places)}
        )
    return rows
