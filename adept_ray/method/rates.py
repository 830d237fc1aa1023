"""Unit importance → scale → one optimizer group per unit (stage 2 of ADEPT; pure torch).

The paper's "Dynamic Learning Rate Adaptation". Rate of a unit = base rate × schedule(step) × scale, and
scale = 2·(1 − Ĩ), where Ĩ is the unit's importance brought into [0, 1] among the units of all added layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from adept_ray.config.choices import Normalization, Sign
from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import is_norm, sublayer_of, trainable_parameters, unit_of

UNINFORMED = 0.5  # Ĩ where importance says nothing: the scale is then 1


def unit_scales(
    importance: Mapping[str, float], normalization: Normalization = "rank", sign: Sign = "protect"
) -> dict[str, float]:
    """Scale (0…2) of every parameter, from parameter name → importance of its unit.

    ``rank`` (default): the unit's average rank among all units, so the mean scale over units is
    exactly 1. ``minmax``: linear between the least and the most important unit (the authors' code);
    ``minmax_by_kind``: the same, norms and matrices apart. ``none``: every scale is 1. Equal
    importances get equal scales. `sign` "reverse" gives the most important unit the largest scale, a
    control: scale 2·Ĩ. Raises :class:`UserError` for an importance that isn't finite.
    """
    units = {unit_of(name): value for name, value in importance.items()}
    for unit, value in units.items():
        if not math.isfinite(value):
            raise UserError(f"the importance of {unit} is {value}: the probe must give finite numbers")
    normalized = _normalize_importance(units, normalization)
    slowed = {unit: value if sign == "protect" else 1 - value for unit, value in normalized.items()}
    return {name: 2 * (1 - slowed[unit_of(name)]) for name in importance}


def average_scales(scales: Mapping[str, float]) -> dict[str, float]:
    """Mean scale of the units of each kind (``q_proj`` … ``down_proj``, all norms as ``norm``).

    `scales` goes by parameter name, as :func:`unit_scales` returns it.
    """
    kinds: dict[str, list[float]] = {}
    for unit, scale in {unit_of(name): scale for name, scale in scales.items()}.items():
        kinds.setdefault("norm" if is_norm(unit) else unit.rpartition(".")[2], []).append(scale)
    return {kind: sum(each) / len(each) for kind, each in kinds.items()}


def average_by_sublayer(importance: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Importances at granularity ``block``, the config's word for a part of a layer that shares one rate.

    The parts are a layer's attention, its mlp, and all its norms together. As for a unit, the importance of a
    part is the mean over all scalars: each unit's counts by its `sizes` (parameter name → number of scalars).
    Parameter names stay, so rates and groups follow as they do without.
    """
    sums: dict[str, list[float]] = {}
    for name, value in importance.items():
        total = sums.setdefault(sublayer_of(name), [0.0, 0])
        total[0] += value * sizes[name]
        total[1] += sizes[name]
    return {name: sums[sublayer_of(name)][0] / sums[sublayer_of(name)][1] for name in importance}


def unit_rates(
    importance: Mapping[str, float], base_lr: float, normalization: Normalization = "rank"
) -> dict[str, float]:
    """Learning rate of every parameter: `base_lr` times its scale (see :func:`unit_scales`)."""
    return {name: base_lr * scale for name, scale in unit_scales(importance, normalization).items()}


def _normalize_importance(units: Mapping[str, float], normalization: Normalization) -> dict[str, float]:
    if normalization == "none":
        return dict.fromkeys(units, UNINFORMED)
    if normalization == "rank":
        return _rank_values(units)
    if normalization == "minmax":
        return _scale_between_ends(units)
    if normalization == "minmax_by_kind":
        norms = {unit: value for unit, value in units.items() if is_norm(unit)}
        return _scale_between_ends(norms) | _scale_between_ends(
            {u: v for u, v in units.items() if u not in norms}
        )
    raise UserError(f"unknown normalization '{normalization}': use rank, minmax, minmax_by_kind or none")


def _rank_values(units: Mapping[str, float]) -> dict[str, float]:
    """Average rank of each value over [0, 1]; ties share theirs, so the mean is 1/2 whatever the ties."""
    ordered = sorted(units.values())
    if len(ordered) < 2:
        return dict.fromkeys(units, UNINFORMED)
    first = {value: i for i, value in reversed(list(enumerate(ordered)))}
    last = {value: i for i, value in enumerate(ordered)}
    return {unit: (first[v] + last[v]) / 2 / (len(ordered) - 1) for unit, v in units.items()}


def _scale_between_ends(units: Mapping[str, float]) -> dict[str, float]:
    if not units:
        return {}
    low, high = min(units.values()), max(units.values())
    if low == high:
        return dict.fromkeys(units, UNINFORMED)
    return {unit: (value - low) / (high - low) for unit, value in units.items()}


def parameter_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """One optimizer group per unit of what `model` trains, each with its ``unit`` name.

    Norms and biases get no weight decay. Where that parts a bias from its matrix, the unit has a second
    group of the same name and rate. Every trainable parameter is in exactly one group.
    """
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameter in trainable_parameters(model).items():
        unit, decay = unit_of(name), weight_decay if parameter.ndim > 1 else 0.0
        group = {"unit": unit, "params": [], "lr": 0.0, "weight_decay": decay}
        groups.setdefault((unit, decay), group)["params"].append(parameter)
    return list(groups.values())


def set_rates(
    optimizer: torch.optim.Optimizer, base_lr: float, schedule: float, scales: Mapping[str, float]
) -> None:
    """Set every group's rate to base rate × schedule × scale; call it before each step.

    `scales` goes by parameter name, as :func:`unit_scales` returns it. The rate is always computed
    from scratch, so schedule, re-measuring and resuming can't disagree. Raises :class:`UserError`
    for a group whose unit has no scale.
    """
    by_unit = {unit_of(name): scale for name, scale in scales.items()}
    for group in optimizer.param_groups:
        if group["unit"] not in by_unit:
            raise UserError(f"no scale for unit {group['unit']}: measure its importance first")
        group["lr"] = base_lr * schedule * by_unit[group["unit"]]


def cosine_factor(step: int, steps: int, warmup: float, final: float) -> float:
    """Factor of the rate at `step` (0-based) of `steps`: linear warm-up, then a cosine down to `final`."""
    rising = int(warmup * steps)  # below `steps`: the full rate is always reached
    if step < rising:
        return (step + 1) / (rising + 1)
    through = (step - rising) / max(1, steps - rising)
    return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, through))) / 2


def wsd_factor(step: int, steps: int, rising: int, decay_start: int, final: float) -> float:
    """Factor of the rate at `step` (0-based) of `steps`: linear warm-up, a plateau, then a short decay.

    The rate rises over the first `rising` steps. From `decay_start` on it falls towards `final` as 1 − √x
    does between 0 and 1, which arXiv 2405.18392 found to end lower than a straight line. What comes before
    `decay_start` doesn't depend on `steps`, so trainings of all lengths have it in common.
    """
    rise = min(1.0, (step + 1) / (rising + 1))
    if step < decay_start:
        return rise
    through = (step - decay_start + 1) / (steps - decay_start + 1)  # a decay of one step falls half-way, too
    return min(rise, final + (1 - final) * (1 - math.sqrt(through)))
