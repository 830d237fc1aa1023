"""Where the copies of an expanded model lie, and the file that lists them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

RECORD = "adept.json"  # in an exported model's folder


def list_ids(layers: Iterable[int]) -> list[int]:
    """Ids of layers as plain numbers, whether they are Python's, numpy's or a tensor's; ascending."""
    return sorted(operator.index(layer) for layer in layers)


def added_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Ids that the copies of `layers` (ascending) get in the expanded model: each right behind its source."""
    return tuple(source + 1 + copies for copies, source in enumerate(list_ids(layers)))
