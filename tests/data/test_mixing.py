"""Several corpora in one text: their order, their shares, and what is held out of each."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from common import one_document_each
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.data.blocks import BlockOrder, join_blocks
from adept_ray.data.corpora import CorpusFiles
from adept_ray.data.loading import Backbone
from adept_ray.data.mixing import MixedBlocks, MixedCorpus, share_out
from adept_ray.data.packing import DOMAIN_SPLITS, PackingPlan
from adept_ray.run.sources import Sources

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=7)
SEQ_LEN = 8


def share(weights):
    """Weights as shares that add up to 1."""
    return tuple(weight / sum(weights) for weight in weights)


def permuted(place, blocks, seed):
    """The block at a place of permutations joined end to end."""
    return int(np.random.default_rng([seed, place // blocks]).permutation(blocks)[place % blocks])


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 3))
def test_one_text_and_one_that_is_mixed_in_come_as_they_always_did(blocks, replayed, replay, seed):
    """Bit for bit: the second has its floor of the places so far, the first has the others."""
    expected = []
    for place in range(80):
        before, after = int(place * replay + 1e-9), int((place + 1) * replay + 1e-9)
        mixed_in = blocks + permuted(before, replayed, seed)
        expected.append(mixed_in if after > before else permuted(place - before, blocks, seed))
    assert BlockOrder((blocks, replayed), seed, (1.0 - replay, replay)).list_batch(0, 80) == expected
    alone = [permuted(place, blocks, seed) for place in range(80)]
    assert BlockOrder((blocks,), seed).list_batch(0, 80) == alone


@given(WEIGHTS, st.integers(1, 7))
def test_every_part_keeps_its_share_after_any_number_of_places(weights, size):
    """It lags by less than a block, and leads by less than one for each split that it is shared out by."""
    shares, blocks = share(weights), 50
    order = BlockOrder((blocks,) * len(shares), 0, shares)
    ids = [block for step in range(300 // size) for block in order.list_batch(step, size)]
    counts = np.cumsum([[block // blocks == part for part in range(len(shares))] for block in ids], axis=0)
    upto = np.cumsum(shares)  # share of a part and those before it
    for part, own in enumerate(shares):
        gaps = counts[:, part] - own * np.arange(1, len(ids) + 1)
        most = sum(own / upto[later - 1] for later in range(part + 1, len(shares)))
        assert gaps.min() > -1 - 1e-6 and gaps.max() < most + 1e-6
    for places in (1, len(ids) // 2, len(ids)):
        assert order.count_blocks(places) == counts[places - 1].tolist()


@given(WEIGHTS, st.integers(0, 3))
def test_a_part_is_gone_through_again_and_again(weights, seed):
    """Its own blocks come in its own order, every one once before one comes again, beside whatever others."""
    shares, sizes = share(weights), tuple(range(3, 3 + len(weights)))
    ids = np.array(BlockOrder(sizes, seed, shares).list_batch(0, 200))
    starts = np.cumsum([0, *sizes])
    for part, blocks in enumerate(sizes):
        own = ids[(ids >= starts[part]) & (ids < starts[part + 1])] - starts[part]
        assert own.tolist() == BlockOrder((blocks,), seed).list_batch(0, len(own))


@given(st.integers(0, 500), WEIGHTS)
def test_things_are_shared_out_whole(count, weights):
    """All of them, to each part its share rounded up or down; a part alone gets all."""
    shares = share(weights)
    found = share_out(count, shares)
    assert sum(found) == count
    assert all(abs(have - count * own) < 1 + 1e-9 for have, own in zip(found, shares, strict=True))


def test_the_largest_remainders_are_rounded_up():
    """Of equal ones the first."""
    assert share_out(10, (0.12, 0.5, 0.38)) == [1, 5, 4]
    assert share_out(10, (0.15, 0.5, 0.35)) == [2, 5, 3]


def held(first, blocks):
    """A set whose splits are so many blocks of one document each, of tokens from `first` on."""
    text = one_document_each(np.arange(first, first + blocks * SEQ_LEN).reshape(blocks, SEQ_LEN))

    def open_split(split="test", tokens=0, seq_len=SEQ_LEN, corpus=""):
        assert split in ("train", "test", "probe") and seq_len == SEQ_LEN and tokens <= text.tokens.size
        return text

    return SimpleNamespace(fingerprint=str(first), open_split=open_split)


def test_what_is_held_out_takes_from_each_corpus_its_share():
    """Whole blocks and whole documents, those of a corpus together; one alone gives what it always gave."""
    first, second = held(0, 20), held(1000, 20)
    mixed = MixedBlocks((first, second), ("a", "b"), (0.75, 0.25))
    found = mixed.load("test", 8 * SEQ_LEN, SEQ_LEN)
    wanted = [first.open_split().take_first(6 * SEQ_LEN), second.open_split().take_first(2 * SEQ_LEN)]
    assert np.array_equal(found.tokens, join_blocks(wanted).tokens)
    assert len(found.document_bytes) == 8
    alone = MixedBlocks((first,), ("a",))
    assert np.array_equal(alone.load("test", 30, SEQ_LEN).tokens, first.open_split().take_first(30).tokens)
    assert alone.fingerprint == first.fingerprint
    trained = mixed.load_training(16 * SEQ_LEN, SEQ_LEN)
    assert [len(each) for each in trained] == [12, 4]


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=4), st.integers(1, 20))
def test_the_first_sequences_of_a_probe_have_the_shares(weights, count):
    """A raced probe may end anywhere, and what is measured again is its beginning; no block is lost."""
    shares = share(weights)
    sets = tuple(held(1000 * part, 20) for part in range(len(shares)))
    mixed = MixedBlocks(sets, tuple("abcd")[: len(shares)], shares)
    found = mixed.load_spread("probe", count * SEQ_LEN, SEQ_LEN).tokens
    whole = mixed.load("probe", count * SEQ_LEN, SEQ_LEN).tokens
    assert np.array_equal(found[found[:, 0].argsort()], whole[whole[:, 0].argsort()])
    for upto in range(1, count + 1):
        firsts = found[:upto, 0] // 1000
        for part, all_of_it in enumerate(share_out(count, shares)):
            assert abs((firsts == part).sum() - upto * all_of_it / count) <= 0.5 + len(shares) / 2


def test_blocks_are_spread_evenly_with_all_that_belongs_to_them():
    """One of four stands in the middle of the first two, and beginnings and bytes go along."""
    mixed = MixedBlocks((held(0, 9), held(1000, 9)), ("a", "b"), (0.25, 0.75))
    found, whole = (load("probe", 4 * SEQ_LEN, SEQ_LEN) for load in (mixed.load_spread, mixed.load))
    assert (found.tokens[:, 0] // 1000).tolist() == [1, 0, 1, 1]
    order = [1, 0, 2, 3]
    assert np.array_equal(found.starts, whole.starts[order])
    assert np.array_equal(found.bytes, whole.bytes[order])


def test_other_shares_are_another_text():
    """Losses of a mixture are kept under its shares: they are taken on other blocks."""
    names = {
        MixedBlocks((held(0, 2), held(100, 2)), ("a", "b"), shares).fingerprint
        for shares in ((0.5, 0.5), (0.75, 0.25))
    }
    assert len(names) == 2


def test_blocks_are_named_by_the_corpora_that_they_are_kept_apart_from():
    """One as ever by its name, several in whatever order, none by nothing."""
    a, b = (CorpusFiles(Path(), name, name, "") for name in "ab")
    plans = {
        apart: PackingPlan(a, DOMAIN_SPLITS, Backbone("m", "m"), SEQ_LEN, 0, apart).apart
        for apart in ((), (a,), (a, b), (b, a))
    }
    assert plans == {(): None, (a,): "a", (a, b): ["a", "b"], (b, a): ["a", "b"]}


@pytest.mark.parametrize("count", [1, 2])
def test_fingerprints_name_every_corpus(count):
    """A corpus alone is named as in every older folder; several are numbered."""
    parts = tuple(CorpusFiles(Path(), f"f{number}", f"c{number}", "") for number in range(count))
    mixed = MixedCorpus(parts, (1 / count,) * count)
    names = Sources(Backbone("m", "m", fingerprint="b"), None, mixed, None).fingerprints
    if count == 1:
        assert names == {"backbone": "b", "general corpus": "f0"} and mixed.name == "c0"
    else:
        assert names == {"backbone": "b", "general corpus 1": "f0", "general corpus 2": "f1"}
        assert mixed.name == "c0 (0.5), c1 (0.5)"
