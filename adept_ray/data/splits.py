"""Which document falls into which split: its content and a seed decide, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adept_ray.data.corpora import CorpusFiles

DIGEST = "S32"  # how NumPy holds digests
READ_ROWS = 1000  # documents that are held at a time


def digest_text(text: str) -> bytes:
    """Names a document by its content, white space around it apart."""
    return hashlib.sha256(text.strip().encode()).digest()


def read_texts(corpus: CorpusFiles) -> Iterator[list[str]]:
    """The documents of a corpus that aren't blank, READ_ROWS at a time."""
    import pyarrow.parquet as pq

    for file in corpus.files:
        for batch in pq.ParquetFile(file).iter_batches(READ_ROWS, columns=["text"]):
            yield [text for text in batch["text"].to_pylist() if text and text.strip()]


def digest_corpora(corpora: Iterable[CorpusFiles]) -> np.ndarray:
    """Digests of all documents of corpora, ascending, taken here: hashing is faster than starting processes.

    They take 32 bytes each.
    """
    parts = (part for corpus in corpora for part in read_texts(corpus))
    found = {digest_text(text) for part in parts for text in part}
    return np.array(sorted(found), dtype=DIGEST)


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
