"""LoRA, and TaSL on top of it: rivals of the paper (pure torch and peft).

TaSL, *Task Skill Localization and Consolidation* (arXiv 2408.05200; first as arXiv 2408.09857), is a method
for a sequence of tasks. Here there are two: general text, which the untouched backbone stands for, and the
domain. Its steps, by the paper's headings:

- *Skill units*: the LoRA pair (A, B) of one projection.
- *Skill localization*: while training, the sensitivity |w·∂L/∂w| of every weight is smoothed over steps,
  and so is its distance from that mean. Their product, averaged over a unit, is the unit's importance to
  the domain: :func:`smooth_sensitivity`. The importance to general text is the plain mean sensitivity on the
  general probe, since no training on general text could be watched.
- *Skill consolidation*: a unit that is among the most important to general text alone goes back to what it
  was. One to the domain alone stays as trained, one to both becomes a weighted average, and one to
  neither the plain average: :func:`consolidate_skills`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from adept_ray.method.sharding import gather_whole

if TYPE_CHECKING:
    from peft.tuners.lora import LoraModel

SMOOTHING = 0.85  # of sensitivity and uncertainty, from step to step (AdaLoRA's default, arXiv 2303.10512)
TOP = 0.2  # share of the units that count as important
KEPT = 0.5  # weight of the backbone's unit where it matters to both; the paper leaves it to be tuned
ZEROED = ".lora_B."  # in the names of the matrices that are zero at first
SENSITIVITY, UNCERTAINTY = "sensitivity", "uncertainty"


def add_lora(model: nn.Module, rank: int, seed: int) -> LoraModel:
    """Put LoRA (arXiv 2106.09685) beside every projection of every layer, in place, and freeze all the rest.

    A is drawn with `seed`, B is zero, alpha is twice the rank. Returns peft's model, which can merge it.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LoraModel(model, config, "default")


def skill_of(parameter: str) -> str:
    """The skill unit of a LoRA matrix: the projection that it stands beside."""
    return parameter.partition(".lora_")[0]


def smooth_sensitivity(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Smooth the sensitivity and its uncertainty of every weight; call it between a step and ``zero_grad``.

    They are kept in the optimizer's state, and so in every checkpoint.
    """
    for parameter in parameters.values():
        assert parameter.grad is not None
        now = (parameter.detach() * parameter.grad).abs()
        state = optimizer.state[parameter]
        if SENSITIVITY not in state:
            state[SENSITIVITY], state[UNCERTAINTY] = torch.zeros_like(now), torch.zeros_like(now)
        state[SENSITIVITY].lerp_(now, 1 - SMOOTHING)
        state[UNCERTAINTY].lerp_((now - state[SENSITIVITY]).abs(), 1 - SMOOTHING)


def measure_domain_importance(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """Importance of every skill unit to the text trained on: mean of sensitivity times uncertainty."""
    states = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
    return average_by_skill({name: (s[SENSITIVITY] * s[UNCERTAINTY]) for name, s in states.items()})


def average_by_skill(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Mean over all scalars of each skill unit's matrices."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, value in values.items():
        found.setdefault(skill_of(name), []).append(value)
    sums = {
        skill: [gather_whole(part.sum(dtype=torch.float64)) for part in parts]
        for skill, parts in found.items()
    }
    return {skill: float(sum(each)) / sum(p.numel() for p in found[skill]) for skill, each in sums.items()}


def consolidate_skills(
    parameters: Mapping[str, nn.Parameter],
    before: Mapping[str, torch.Tensor],
    domain: Mapping[str, float],
    general: Mapping[str, float],
) -> dict[str, float]:
    """Average trained skill units with those from `before`, weighted by their importance; in place.

    Returns skill unit → the weight of the trained side, 0, ½, 1 - KEPT or 1.
    """
    to_domain, to_general = pick_most_important(domain), pick_most_important(general)
    weights = {}
    for skill in domain:
        if skill in to_domain:
            weights[skill] = 1 - KEPT if skill in to_general else 1.0
        else:
            weights[skill] = 0.0 if skill in to_general else 0.5
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.lerp(before[name], parameter, weights[skill_of(name)]))
    return weights


def pick_most_important(importance: Mapping[str, float]) -> set[str]:
    """The most important skill units: a share TOP of them, at least one."""
    count = max(1, round(TOP * len(importance)))
    return set(sorted(importance, key=lambda skill: (-importance[skill], skill))[:count])
