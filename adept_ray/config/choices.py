"""The values that settings may have, where these are words, or words among other things."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

from adept_ray.config.errors import suggest_names
from adept_ray.config.validation import read_number

Normalization = Literal["rank", "minmax", "minmax_by_kind", "none"]
Granularity = Literal["tensor", "block"]
Sign = Literal["protect", "reverse"]
Placement = Literal["guided", "stratified", "receptive", "uniform", "deepest", "random"]
Schedule = Literal["cosine", "wsd"]
Tunes = Literal["copies", "originals", "all", "lora", "tasl"]
Text = Literal["domain", "general"]
Chat = Literal["plain", "template"]
ProbeKind = Literal["exhaustive", "raced"]
Measure = Literal["tasks", "bpb"]


def split_at_commas(names: str | Iterable[object]) -> list[str]:
    """Names given as one text with commas, or as several, or both."""
    several = [names] if isinstance(names, str) else names
    parts = (part.strip() for name in several for part in str(name).split(","))
    return [os.path.expanduser(part) for part in parts if part]


def read_dial(value: object) -> object:
    """A dial as it is given: a word, or a number as text. Raises ValueError for what is neither."""
    if value is False:  # what YAML makes of off
        return "off"
    if value in ("auto", "off"):
        return value
    number = read_number(str(value))
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"a dial must be a number from 0 to 1, auto or off, not {value!r}")
    return number


def check_tracker_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of trackers, each once. Raises ValueError for one that there is none of."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker '{name}': {suggest_names(name, TRACKERS)}")
    return tuple(dict.fromkeys(names))


TRACKERS = {"wandb": "wandb", "mlflow": "mlflow-skinny", "tensorboard": "tensorboard", "trackio": "trackio"}
"""Tracker, which is the name of its module and of our extra, → the package that brings it."""
Trackers = Annotated[tuple[str, ...], BeforeValidator(split_at_commas), AfterValidator(check_tracker_names)]
Tasks = Annotated[tuple[str, ...], BeforeValidator(split_at_commas)]
Dial = Annotated[float | Literal["auto", "off"], BeforeValidator(read_dial)]
"""How far trained models are turned from their backbone (see :mod:`adept_ray.method.dial`)."""
