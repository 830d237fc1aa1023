"""Splits: a document's own content and the seed decide, in the shares asked for."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.data.splits import (
    choose_splits,
    is_among,
    key_documents,
)

DIGESTS = [hashlib.sha256(str(number).encode()).digest() for number in range(4000)]


def test_splits_have_their_shares_and_go_by_key_alone():
    """Also where the shares don't add up to 1; the same document falls into the same split in any company."""
    keys = key_documents(DIGESTS, 0)
    for splits in ({"train": 0.8, "test": 0.2}, {"train": 4.0, "test": 1.0}):
        chosen = choose_splits(keys, splits)
        assert abs((chosen == 1).mean() - 0.2) < 0.03 and set(chosen) == {0, 1}
        assert np.array_equal(choose_splits(keys[::-1], splits), chosen[::-1])
    edges = [number.to_bytes(8, "big") + bytes(24) for number in (0, 2**63 - 2**20, 2**63, 2**64 - 1)]
    assert choose_splits(edges, {"a": 0.5, "b": 0.5}).tolist()[:3] == [0, 0, 1]


def test_a_key_is_the_hash_of_seed_and_digest():
    """So splits of older folders come out as they were, and another seed draws others."""
    assert key_documents([b"x"], 7) == [hashlib.sha256(b"7:x").digest()]
    assert key_documents(DIGESTS[:3], 0) != key_documents(DIGESTS[:3], 1)


@given(st.lists(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_membership_is_that_of_a_set(asked, known):
    """Whatever is smaller or larger than all that is known, and where nothing is."""
    held = np.array(sorted(DIGESTS[number] for number in known), "S32")
    found = is_among([DIGESTS[number] for number in asked], held)
    assert found.tolist() == [number in known for number in asked] and found.dtype == bool
