"""How many documents a corpus has, and how many of them are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adept_ray.data.packing import PackingPlan, list_left_out
from adept_ray.data.splits import DIGEST, digest_corpora, digest_text, is_among, read_texts
from adept_ray.storage.records import CorpusRecord


def count_documents(plan: PackingPlan, cache: Path) -> CorpusRecord:
    """What a plan takes of its corpus; reads all of it, in some 100 bytes of memory a document."""
    found: set[bytes] = set()
    count = longest = 0
    for texts in read_texts(plan.corpus):
        found.update(map(digest_text, texts))
        count += len(texts)
        longest = max(longest, *(len(text.strip().encode()) for text in texts), 0)
    different = np.array(sorted(found), DIGEST)
    also = is_among(different, digest_corpora(plan.apart_from))
    left_out = is_among(different, list_left_out(plan, cache))
    return {
        "documents": count,
        "repeated": count - len(different),
        "in_earlier": int(also.sum()),
        "near": int(left_out.sum() - also.sum()),
        "longest": longest,
    }
