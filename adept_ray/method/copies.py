"""Where the copies of an expanded model lie, and the file that lists them."""

from __future__ import annotations

from collections.abc import Sequence

RECORD = "adept.json"  # in an exported model's folder


def added_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Ids that the copies of `layers` (ascending) get in the expanded model: each right behind its source."""
    return tuple(source + 1 + copies for copies, source in enumerate(sorted(layers)))
