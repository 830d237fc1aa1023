"""Documents that are nearly the same as another one, found by MinHash and left out on request.

The similarity of two documents is the share of their runs of five words that both have (Jaccard similarity),
as in Lee et al., Deduplicating training data makes language models better (arXiv 2107.06499). datasketch
estimates it, and finds by locality-sensitive hashing which documents have to be compared.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adept_ray.config.errors import UserError
from adept_ray.config.validation import fingerprint
from adept_ray.data.assets import replace_file
from adept_ray.data.contamination import split_words
from adept_ray.data.shards import DIGEST, read_with_digests

if TYPE_CHECKING:
    from datasketch import LeanMinHash

    from adept_ray.data.corpora import CorpusFiles

NEAR_VERSION = 2  # raise when other documents would be left out
SHINGLE = 5  # words
PERMUTATIONS = 128  # the standard error of a similarity of 0.8 is then 0.035

MISSED_COUNT = (0.1, 0.9)  # to compare two documents too many costs little, and one too few is never found


def check_near_duplicates(similarity: float | None) -> None:
    """Raise :class:`UserError` where near-duplicates are to be left out and datasketch isn't installed."""
    if similarity is not None and importlib.util.find_spec("datasketch") is None:
        raise UserError(
            f"--near-duplicates {similarity:g} needs the package datasketch: pip install 'datasketch>=2'"
        )


def find_near_duplicates(
    corpus: CorpusFiles, apart_from: Sequence[CorpusFiles], similarity: float, cache: Path
) -> np.ndarray:
    """Digests, ascending, of the documents of a corpus that are to be left out; found once.

    Each of those is, by estimate, at least so similar to a document of `apart_from`, or to one of the corpus
    that is kept. Documents come in the order of their digests, so which one is kept depends neither on files
    nor on their order. Takes up to 15 kB of this process's memory for each document of both.
    """
    apart = sorted(other.fingerprint for other in apart_from)
    made_from = NEAR_VERSION, corpus.fingerprint, apart, similarity
    path = cache / "near-duplicates" / f"{fingerprint(*made_from)}.npy"
    if not path.exists():
        others, own = sketch_documents(apart_from), sketch_documents([corpus])
        found = np.array(choose_left_out(others, own, similarity), DIGEST)
        with replace_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, found)
    return np.load(path)


def sketch_documents(corpora: Sequence[CorpusFiles]) -> dict[bytes, LeanMinHash]:
    """Digest of each document of corpora that has words → its MinHash."""
    from datasketch import LeanMinHash, MinHash

    digests: list[bytes] = []

    def shingle_documents() -> Iterator[list[bytes]]:
        for digest, text in read_with_digests(chain.from_iterable(corpus.shards for corpus in corpora)):
            if words := split_words(text):
                digests.append(digest)
                yield list_shingles(words)

    sketches = [LeanMinHash(each) for each in MinHash.generator(shingle_documents(), num_perm=PERMUTATIONS)]
    return dict(zip(digests, sketches, strict=True))


def list_shingles(words: list[str]) -> list[bytes]:
    """The different runs of SHINGLE words, or all words where they are fewer."""
    size = min(SHINGLE, len(words))
    return list(
        dict.fromkeys(" ".join(words[at : at + size]).encode() for at in range(len(words) - size + 1))
    )


def choose_left_out(
    others: Mapping[bytes, LeanMinHash], sketches: Mapping[bytes, LeanMinHash], similarity: float
) -> list[bytes]:
    """The digests in `sketches`, ascending, of documents near to one of `others` or to one that is kept."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS, weights=MISSED_COUNT)
    for digest, sketch in others.items():
        index.insert(digest, sketch)
    every, left_out = {**sketches, **others}, []
    for digest, sketch in sorted(sketches.items(), key=itemgetter(0)):
        if any(sketch.jaccard(every[known]) >= similarity for known in index.query(sketch)):
            left_out.append(digest)
        else:
            index.insert(digest, sketch)
    return left_out
