"""The methods that ADEPT is compared with, each as settings of one and the same training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import yaml

from adept_ray.config.errors import UserError, suggest_names
from adept_ray.config.specs import CompareRun, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.method.fit import PLAIN, Fit

COPIES_RATE, FULL_RATE, FEW_RATE = 3e-3, 3e-4, 1e-3


@dataclass(frozen=True)
class Method:
    """A method: what it is, and how it differs from ADEPT's training."""

    about: str
    rate: float
    """Base rate where the search for the best one begins."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Fields of :class:`TrainingSpec`."""


METHODS: dict[str, Method] = {
    "vanilla": Method("the untouched backbone", COPIES_RATE, {"k": 0}),
    "general-only": Method(
        "ADEPT trained on general text: what any plain text would do", COPIES_RATE, {"text": "general"}
    ),
    "full": Method("all parameters", FULL_RATE, {"tunes": "all", "k": 0}),
    "replay": Method("all parameters, general text mixed in", FULL_RATE, {"tunes": "all", "k": 0}),
    "llama-pro": Method(
        "evenly spaced copies, one rate (arXiv 2401.02415)",
        COPIES_RATE,
        {"placement": "uniform", "normalization": "none"},
    ),
    "lora": Method("LoRA on every projection (arXiv 2106.09685)", FEW_RATE, {"tunes": "lora", "k": 0}),
    "tasl": Method(
        "LoRA, skill units consolidated at the end (arXiv 2408.05200)",
        FEW_RATE,
        {"tunes": "tasl", "k": 0},
    ),
    "adept": Method("copies of the least important layers, unit-wise rates", COPIES_RATE),
    "adept-no-expansion": Method("stage 2 on the chosen layers themselves", FEW_RATE, {"tunes": "originals"}),
    "adept-one-rate": Method("stage 1 only: guided copies, one rate", COPIES_RATE, {"normalization": "none"}),
    "adept-uniform": Method(
        "stage 2 only: evenly spaced copies, unit-wise rates", COPIES_RATE, {"placement": "uniform"}
    ),
}


@dataclass(frozen=True)
class Entrant:
    """A method, or a variant of one, as it takes part in a comparison."""

    label: str
    about: str
    rate: float
    training: TrainingSpec
    fit: Fit = PLAIN
    """How it is made to fit into the workers' memories, on whatever layers."""


def list_entrants(run: CompareRun) -> list[Entrant]:
    """The methods that `run` names (all of them if none), each once, with the run's sizes.

    Raises :class:`UserError` for an unknown method or setting and for a label given twice.
    """
    base = TrainingSpec(
        k=run.k,
        recompute_every=run.recompute_every,
        tokens=run.tokens,
        tokens_per_step=run.tokens_per_step,
        lora_rank=run.lora_rank,
        reports=1,
        dial=run.dial,
    )
    labels = run.methods or tuple(METHODS)
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"--methods: '{twice[0]}' is given twice: name each method once")
    return [make_entrant(label, base, run.replay) for label in labels]


def make_entrant(label: str, base: TrainingSpec, replay: float) -> Entrant:
    """The entrant of a label ``NAME`` or ``NAME:key=value:…``; raises as :func:`list_entrants` does."""
    name, *changes = label.split(":")
    if name not in METHODS:
        raise UserError(f"--methods {label}: unknown method '{name}': {suggest_names(name, METHODS)}")
    method = METHODS[name]
    settings = dict(method.settings) | ({"replay": replay} if name == "replay" else {})
    training = apply_changes(
        apply_changes(base, settings), dict(parse_settings(label, changes)), where=f"--methods {label}"
    )
    about = method.about if not changes else f"{method.about}; {', '.join(changes)}"
    return Entrant(label, about, method.rate, training)


FIXED = ("tokens", "tokens_per_step", "reports", "base_lr", "dial")  # the same for all, or searched for each


def parse_settings(label: str, changes: Iterable[str]) -> Iterable[tuple[str, object]]:
    """Settings of a variant, from ``key=value`` texts."""
    for change in changes:
        key, separator, value = change.partition("=")
        if not separator or key in FIXED:
            why = f"{key} is not for a method to choose" if separator else "a variant is NAME:key=value"
            raise UserError(f"--methods {label}: '{change}' can't be used: {why}")
        try:
            yield key, yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--methods {label}: '{value}' can't be read as a value of {key}") from None
