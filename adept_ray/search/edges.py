"""Chosen values at an end of their range, and the command that searches further."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adept_ray.config.errors import UserError
from adept_ray.config.search_space import Range, SearchSpace
from adept_ray.config.specs import TrainingSpec
from adept_ray.config.validation import validate_spec
from adept_ray.search.trials import Setting

EDGE = 0.05  # of a range's width, on its own scale: a value as near to an end is at that end


@dataclass(frozen=True)
class DepthLimit:
    """How large k may be, whatever its range says."""

    layers: int
    """Layers of the backbone."""
    most: int
    """The largest k that the budget allows, too."""
    budget: str = ""
    """The flag that sets the budget."""
    richer_command: str = ""
    """The command with twice that budget: it affords twice as many layers."""

    def explain_end(self) -> str:
        """What ends the largest range of k, to follow the words "of its range"."""
        if self.most < self.layers:
            return f"where {self.budget} ends it"
        return f"and the backbone has no more than {self.layers} layers to copy"


@dataclass(frozen=True)
class Edge:
    """A chosen value at an end of its range: a better one may lie beyond it."""

    parameter: str
    value: float
    end: str
    """``low`` or ``high``."""
    command: str
    """The command that searches further; empty where that can't be."""
    held: str = ""
    """What ends a range of k that can't just be made wider; see :meth:`DepthLimit.explain_end`."""

    def describe_place(self) -> str:
        """The words that say where the value lies."""
        reason = f", {self.held}" if self.held else ""
        return f"{self.parameter} = {self.value:g} lies at the {self.end} end of its range{reason}"


def find_edges(
    setting: Setting, space: SearchSpace, limit: DepthLimit, command: str, ranges: Sequence[str] = ()
) -> tuple[Edge, ...]:
    """Chosen values at an end of their range, with the `command` that widens it.

    Where the backbone or the budget ends the range of k, a wider one alone doesn't go further, and the edge
    says so. A smallest k of 1 is no edge: below it is the untouched backbone. `ranges` are those that the
    command line gave already.
    """
    edges = []
    for name, searched in space.parameters.items():
        kinds = ("int", "float", "log", "choice") if name == "k" else ("int", "float", "log")
        value = setting.get(name)
        if searched.kind not in kinds or not isinstance(value, int | float):
            continue
        low, high = min(searched.values), max(searched.values)
        end = find_end(searched, value, low, high)
        if name == "k" and low == high == limit.most:  # all that the budget left of the range
            end = "high"
        if not end or (name == "k" and end == "low" and low <= 1):
            continue
        start, reason, most = command, "", limit.most if name == "k" else None
        if name == "k" and end == "high" and high >= limit.most:
            start, reason, most = limit.richer_command, limit.explain_end(), limit.layers
        wider = widen_range(searched, end, low, high, most)
        can_widen = wider != (low, high) and all(is_allowed(name, value) for value in wider)
        if can_widen or reason:
            further = f"{start} --range {format_ranges(ranges, name, wider)}" if can_widen else ""
            edges.append(Edge(name, value, end, further, reason))
    return tuple(edges)


def format_ranges(ranges: Sequence[str], name: str, ends: tuple[float, float]) -> str:
    """The words after ``--range``: the given `ranges`, with these ends for that name."""
    others = [text for text in ranges if not text.startswith(f"{name}=")]
    texts = [str(each) if isinstance(each, int) else f"{each:.6g}" for each in ends]
    return " ".join([*others, f"{name}={':'.join(texts)}"])


def find_end(searched: Range, value: float, low: float, high: float) -> str | None:
    """The end of a range at which a value lies."""
    if low == high:
        return None
    scale = math.log if searched.kind == "log" else float
    place = (scale(value) - scale(low)) / (scale(high) - scale(low))
    return "low" if place <= EDGE else "high" if place >= 1 - EDGE else None


def widen_range(searched: Range, end: str, low: float, high: float, most: int | None) -> tuple[float, float]:
    """The range with that end moved: a log one by a factor of four, others by half their width or more."""
    if searched.kind == "log":
        return (low / 4, high) if end == "low" else (low, high * 4)
    if isinstance(low, int) and isinstance(high, int):
        return (max(min(low, 1), low // 2), high) if end == "low" else (low, min(2 * high, most or 2 * high))
    step = (high - low) / 2
    return (low - step, high) if end == "low" else (low, high + step)


def is_allowed(name: str, value: float) -> bool:
    """Whether a training takes that value."""
    try:
        validate_spec(TrainingSpec, {name: value}, where="")
    except UserError:
        return False
    return True
