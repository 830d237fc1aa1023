"""Which document falls into which split: its content and a seed decide, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from adept_ray.data.shards import DIGEST


def key_documents(digests: Iterable[bytes], seed: int) -> list[bytes]:
    """A seeded hash of each digest: it decides a document's split and its place there."""
    return [hashlib.sha256(f"{seed}:".encode() + digest).digest() for digest in digests]


def choose_splits(keys: Sequence[bytes], splits: Mapping[str, float]) -> np.ndarray:
    """The number in `splits` (split → its share of the documents) of each document's split, int64 [N]."""
    draws = np.array([int.from_bytes(key[:8], "big") / 2**64 for key in keys])
    edges = np.cumsum(list(splits.values()))
    return np.searchsorted(edges, draws * edges[-1], side="right")


def is_among(digests: Sequence[bytes] | np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each of `digests` is in `known`, which are ascending: bool [N]."""
    own = np.array(digests, DIGEST)
    if not len(known):
        return np.zeros(len(own), bool)
    return known[np.minimum(np.searchsorted(known, own), len(known) - 1)] == own
