"""Which layers are copied: the paper's choice, and rivals of it (pure torch)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from adept_ray.config.choices import Placement
from adept_ray.config.errors import UserError
from adept_ray.config.specs import TrainingSpec
from adept_ray.method.expansion import check_depth, select_layers
from adept_ray.method.importance import LayerImportance

CRITICAL = 4  # one in so many layers, the most important ones, is critical


def place_layers(
    importance: LayerImportance, k: int, placement: Placement = "guided", offset: int = 0, seed: int = 0
) -> tuple[int, ...]:
    """Ids of the k layers to copy, ascending.

    - ``guided``: the k least important, S_k (the paper's).
    - ``stratified``: the least important layer of each of k equal bands of depth (ours).
    - ``receptive``: the layer of each of those bands whose copy would take up the domain most readily (see
      :mod:`adept_ray.method.reception`). The most important quarter of all layers is left out where a band
      has others (ours).
    - ``uniform``: the last layer of each of k equal bands, as LLaMA-Pro (arXiv 2401.02415, section 3.1).
    - ``deepest``: the last k layers.
    - ``random``: k layers drawn with `seed`.

    `offset` moves ``uniform`` that many layers towards the input and keeps ``deepest`` as far from the
    output; ``stratified``, ``receptive``, ``guided`` and ``random`` choose among the layers from `offset` on.
    Raises :class:`UserError` when that leaves fewer than k layers, or a needed measurement is missing.
    """
    layers = len(importance.mean)
    check_depth(k, layers)
    left = layers - offset
    if k and (left < k or (placement == "uniform" and offset > find_band_end(0, k, layers))):
        banded = placement in ("stratified", "receptive", "uniform")
        left_over = "a band without a layer" if banded else f"{max(left, 0)} layers to choose from"
        raise UserError(
            f"placement {placement} of {k} copies with offset {offset} leaves {left_over}: the model has "
            f"{layers} layers, so give fewer copies or a smaller offset"
        )
    allowed = range(offset, layers)
    if placement == "guided" and not offset:
        return select_layers(importance, k)
    if placement == "guided":
        chosen = [layer for layer in importance.order if layer in allowed][:k]
    elif placement in ("stratified", "receptive"):
        bands = [range(offset + band * left // k, offset + (band + 1) * left // k) for band in range(k)]
        best = pick_least_important if placement == "stratified" else pick_most_receptive
        chosen = [best(importance, band) for band in bands]
    elif placement == "uniform":
        chosen = [find_band_end(band, k, layers) - offset for band in range(k)]
    elif placement == "deepest":
        chosen = list(range(left - k, left))
    else:
        chosen = random.Random(f"placement {seed}").sample(allowed, k)
    return tuple(sorted(chosen))


def pick_least_important(importance: LayerImportance, band: Sequence[int]) -> int:
    """The least important layer of a band."""
    return next(layer for layer in importance.order if layer in band)


def pick_most_receptive(importance: LayerImportance, band: Sequence[int]) -> int:
    """The layer of a band whose copy would take up the domain most readily, none of the critical ones."""
    if not importance.reception:
        raise UserError("placement receptive needs each layer's reception, measured on domain text")
    critical = importance.order[len(importance.order) - len(importance.order) // CRITICAL :]
    allowed = [layer for layer in band if layer not in critical] or band
    return max(allowed, key=lambda layer: (importance.reception[layer], -layer))


def find_band_end(band: int, k: int, layers: int) -> int:
    """Last layer of a band (0-based) of k equal ones; ends that fall between two layers go to the upper."""
    return int((band + 1) * layers / k - 0.5)


def resolve_layers(importance: LayerImportance, training: TrainingSpec, seed: int) -> tuple[int, ...]:
    """The layers that `training` copies (or tunes): those it names, or those of :func:`place_layers`.

    Raises :class:`UserError` for a named layer that the model doesn't have, and as :func:`place_layers` does.
    """
    if training.layers:
        last = len(importance.mean) - 1
        if strange := [layer for layer in training.layers if not 0 <= layer <= last]:
            raise UserError(f"layers: the model has no layer {strange[0]}, give some of 0 to {last}")
        return tuple(sorted(training.layers))
    return place_layers(importance, training.k, training.placement, training.offset, seed)


def count_ranks_needed(training: TrainingSpec, layers: int) -> int:
    """How many of the least important layers have to be in the right order to place those of `training`."""
    if training.layers:
        return 1
    if training.placement in ("stratified", "receptive"):
        return layers  # a band's layers may be anywhere in the order, critical ones are at its end
    return min(layers, max(1, training.k + training.offset))


def check_placement(training: TrainingSpec, layers: int) -> None:
    """Raise :class:`UserError` unless `training` can be placed in a model of so many layers."""
    unknown = LayerImportance((0.0,) * layers, (0.0,) * layers, 0.0, reception=(0.0,) * layers)
    resolve_layers(unknown, training, seed=0)
