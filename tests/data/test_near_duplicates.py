"""Documents that are nearly the same: which of them are left out, and what that takes."""

import hashlib
import importlib.util

import numpy as np
import pytest
from common import store_corpus

from adept_ray.config.errors import UserError
from adept_ray.data.contamination import split_words
from adept_ray.data.near_duplicates import check_near_duplicates, find_near_duplicates, list_shingles

WORDS = [f"w{number}" for number in range(400)]
FAMILIES = [" ".join(np.random.default_rng(number).permutation(WORDS)[:100]) for number in range(20)]
NEAR = [text.rpartition(" ")[0] for text in FAMILIES[:10]]  # 95 of 96 runs are common
FAR = [" ".join(text.split()[:60]) for text in FAMILIES[10:]]  # 56 of 96 runs are


def digest_text(text):
    """What names a document."""
    return hashlib.sha256(text.encode()).digest()


@pytest.fixture
def find(tmp_path):
    """Finds the texts that are left out of a corpus of these texts."""

    def make(name, texts):
        return store_corpus(tmp_path, name, texts)

    def find(texts, similarity, others=(), name="texts"):
        apart_from = [make("others", others)] if others else []
        found = find_near_duplicates(make(name, texts), apart_from, similarity, tmp_path / "cache")
        assert (np.sort(found) == found).all()
        named = {digest_text(text): text for text in texts}
        return {named[digest] for digest in found.tolist()}

    return find


def similarity_of(first, second):
    """The exact one."""
    one, other = (set(list_shingles(split_words(text))) for text in (first, second))
    return len(one & other) / len(one | other)


def test_one_of_two_similar_documents_is_left_out(find):
    """Whichever digest comes first is kept; what is less similar, and what has no words, stays."""
    left_out = find([*FAMILIES, *NEAR, *FAR, "…", "!"], 0.8)
    pairs = list(zip(FAMILIES, NEAR, strict=False))
    assert left_out == {max(pair, key=digest_text) for pair in pairs}
    assert all(similarity_of(*pair) > 0.9 for pair in pairs)
    assert all(similarity_of(*pair) < 0.7 for pair in zip(FAMILIES[10:], FAR, strict=True))


def test_neither_order_nor_repetition_matters(find):
    """The same documents in another order, and some twice, leave out the same."""
    texts = [*FAMILIES, *NEAR]
    assert find(texts, 0.8) == find([*reversed(texts), *texts[:7]], 0.8, name="other")


def test_a_document_near_to_the_other_corpus_is_left_out(find):
    """The other corpus keeps all of its own, whatever the digests."""
    assert find(NEAR, 0.8, others=FAMILIES) == set(NEAR)


def test_what_was_found_is_kept(find, monkeypatch):
    """A second search reads it; another similarity is another search."""
    found = find([*FAMILIES, *FAR], 0.4)
    assert len(found) == 10
    monkeypatch.setattr("adept_ray.data.near_duplicates.sketch_documents", None)
    assert find([*FAMILIES, *FAR], 0.4) == found
    with pytest.raises(TypeError):
        find([*FAMILIES, *FAR], 0.6)


def test_the_package_is_asked_for_only_where_it_is_needed(monkeypatch):
    """A sentence with the command that installs it, before anything is read."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_near_duplicates(None)
    with pytest.raises(UserError, match=r"--near-duplicates 0.8 needs .* pip install 'datasketch>=2'"):
        check_near_duplicates(0.8)
