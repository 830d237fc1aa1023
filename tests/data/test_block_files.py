"""Blocks in files: what is read of them is what was packed, and no more is copied than is needed."""

import errno
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import one_document_each
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.config.errors import UserError
from adept_ray.data import block_files
from adept_ray.data.block_files import Shard, choose_size_type, choose_token_type
from adept_ray.data.blocks import Blocks, BlockSet, join_blocks, make_shared_batches, read_tokens_ahead
from adept_ray.data.cutting import pack_records

SEQ_LEN = 11  # so that the last byte of starts isn't full


def draw(number, seed=0, vocabulary=300, largest=9):
    """Made-up blocks, the largest count of bytes among them."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocabulary, (number, SEQ_LEN)).astype(np.int32)
    sizes = random.integers(0, largest + 1, (number, SEQ_LEN - 1)).astype(np.int32)
    tokens[0, 0], sizes[0, 0] = vocabulary - 1, largest
    return Blocks(tokens, sizes, random.random((number, SEQ_LEN)) < 0.2)


def store(folder, parts, place="", vocabulary=300):
    """A set of one split with a shard for each of `parts`."""
    shards = []
    for number, part in enumerate(parts):
        records = pack_records([part], choose_token_type(vocabulary), SEQ_LEN)
        kinds = (records.dtype[column].base.str for column in ("tokens", "bytes"))
        shards.append(Shard(f"train/{number}.blocks", len(part), *kinds))
        (folder / "train").mkdir(parents=True, exist_ok=True)
        records.tofile(folder / shards[-1].name)
    counts = {"train": {"blocks": sum(map(len, parts))}}
    return BlockSet(place or str(folder), "f", counts, {"train": 1.0}, {"train": shards})


def open_all(made):
    return made.open_split("train", 0, SEQ_LEN, "x")


def assert_same(found, wanted):
    """The same values in the same types."""
    for column in ("tokens", "bytes", "starts"):
        ours, theirs = (np.asarray(getattr(blocks, column)) for blocks in (found, wanted))
        assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same blocks in three files and in memory."""
    parts = [draw(size, size, largest=largest) for size, largest in ((5, 9), (1, 70_000), (7, 300))]
    stored = open_all(store(tmp_path_factory.mktemp("set"), parts))
    held = Blocks(*(np.concatenate([getattr(p, c) for p in parts]) for c in ("tokens", "bytes", "starts")))
    return stored, held


@given(st.data())
def test_what_is_taken_from_files_is_what_is_taken_from_memory(both, data):
    """Pieces of pieces, rows in any order, repeated or counted from the end: every bit and every type."""
    stored, held = both
    for _ in range(data.draw(st.integers(0, 2))):
        of = data.draw(st.integers(1, 3))
        number, tokens = data.draw(st.integers(0, of - 1)), data.draw(st.integers(1, 14 * SEQ_LEN))
        stored, held = (each.take_piece(number, of).take_first(tokens) for each in (stored, held))
    assert len(stored) == len(held) and stored.tokens.shape == held.tokens.shape
    assert_same(stored.read(), held)
    if len(held):
        ids = data.draw(st.lists(st.integers(-len(held), len(held) - 1), max_size=6))
        assert_same(*(Blocks(each.tokens[ids], each.bytes[ids], each.starts[ids]) for each in (stored, held)))
        assert stored.documents.tolist() == held.documents.tolist()
        assert stored.document_bytes.tolist() == held.document_bytes.tolist()


@given(st.lists(st.integers(0, 18), min_size=1, max_size=5), st.integers(0, 19), st.integers(0, 19))
def test_joined_blocks_are_those_of_both(both, ids, begin, end):
    """One in files, one in memory: rows of either and pieces over both, as if they had been put together."""
    stored, held = both
    more = draw(6, 9)
    joined = join_blocks([stored, more])
    whole = np.concatenate([held.tokens, more.tokens])
    assert len(joined) == len(whole) == 19 and np.array_equal(np.asarray(joined.tokens), whole)
    assert np.array_equal(joined.tokens[ids], whole[ids])
    assert np.array_equal(np.asarray(joined.tokens[begin:end]), whole[begin:end])
    assert np.array_equal(np.asarray(joined.starts), np.concatenate([held.starts, more.starts]))
    with pytest.raises(IndexError):
        joined.tokens[[19]]


def test_batches_from_files_are_those_from_memory(both):
    """Token ids and the digest by which a batch is known again: both bit for bit."""
    device = torch.device("cpu")
    ours, theirs = (list(make_shared_batches(each, [3, 12, 0, 5, 3], 2, device)) for each in both)
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert one["input_ids"].dtype == torch.int64
        assert all(torch.equal(one[name], other[name]) for name in ("input_ids", "digest"))


def test_what_comes_next_is_read_ahead_and_no_more(both, monkeypatch):
    """The kernel hears of the very bytes that are read afterwards; blocks in memory are passed over."""
    asked, read = [], []
    monkeypatch.setattr(os, "posix_fadvise", lambda *given: asked.append(given[:3]))
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, into, at: read.append((file, at, len(into[0]))) or preadv(file, into, at)
    )
    stored, _ = both
    joined, ids = join_blocks([draw(6, 9), stored.take_piece(0, 2)]), [11, 2, 6, 7]
    read_tokens_ahead(joined, ids)
    assert len(asked) == 3 and read == []
    assert len(joined.tokens[ids]) == 4
    assert asked == read


def test_pieces_are_consecutive_and_the_rest_is_in_none(both):
    """Three pieces of thirteen blocks are the first twelve, four each."""
    for blocks in both:
        found = [np.asarray(blocks.take_piece(number, 3).tokens) for number in range(3)]
        assert [len(piece) for piece in found] == [4, 4, 4]
        assert np.array_equal(np.concatenate(found), np.asarray(blocks.tokens)[:12])


def test_a_rank_without_a_block_gets_one_that_does_not_count(both, monkeypatch):
    """After its others, in the same form, so that every rank takes part in as many passes."""
    monkeypatch.setattr("adept_ray.method.ranks.split_over_ranks", lambda ids, size: [[3, 4], []])
    real, extra = make_shared_batches(both[0], [3, 4, 5], 2, torch.device("cpu"))
    assert "counts" not in real and extra["counts"].tolist() == [False]
    assert extra["counts"].dtype == torch.bool
    assert extra["input_ids"].tolist() == both[1].tokens[[3]].tolist()


def test_a_split_that_is_too_small_says_how_much_text_it_takes(tmp_path):
    """A split of a tenth of the documents takes ten times its own tokens; as many as it has are enough."""
    made = replace(store(tmp_path, [draw(4)]), shares={"train": 0.1})
    assert len(made.open_split("train", 4 * SEQ_LEN, SEQ_LEN, "x")) == 4
    words = r"'x' is too small: its train split \(10% .* holds 44 tokens in blocks of 11 and 45 .* about 451 "
    with pytest.raises(UserError, match=words):
        made.open_split("train", 4 * SEQ_LEN + 1, SEQ_LEN, "x")


WELL = {"documents": 9, "repeated": 1, "in_earlier": 2, "near": 2, "longest": 80}


@pytest.mark.parametrize(
    ("split", "changes", "said"),
    [
        ("validation", {}, "about 181 tokens of text, or lower --validation-tokens"),
        ("train", {}, "or lower --seq-len"),
        ("validation", {"in_earlier": 5}, "that isn't in the corpora before this one"),
        ("validation", {"near": 5}, "raise --near-duplicates"),
        ("validation", {"documents": 40, "repeated": 30}, "most of its documents only repeat others"),
    ],
)
def test_why_a_split_is_too_small_decides_what_helps(tmp_path, split, changes, said):
    """Too little text, text that others have, and repetitions are told apart."""
    made = replace(
        store(tmp_path, [draw(1)]),
        shares={split: 0.1},
        splits={split: {"blocks": 1}},
        counts=WELL | changes,
    )
    with pytest.raises(UserError, match=said):
        made.open_split(split, 18, SEQ_LEN, "x")


def test_enough_text_in_too_few_documents_needs_more_documents_rather_than_more_text(tmp_path):
    """A book as one document is in one split, whatever its length; the rule of .txt files is said."""
    splits = {"train": {"blocks": 100}, "test": {"blocks": 0}}
    made = replace(store(tmp_path, [draw(1)]), shares={"train": 0.9, "test": 0.1}, splits=splits, counts=WELL)
    with pytest.raises(UserError, match=r"in more and shorter documents.* blank lines separate documents"):
        made.open_split("test", SEQ_LEN, SEQ_LEN, "book")


@pytest.mark.parametrize(("vocabulary", "kind"), [(2**16, "<u2"), (2**16 + 1, "<u4"), (2**31, "<u4")])
def test_ids_take_as_few_bytes_as_the_vocabulary_allows(tmp_path, vocabulary, kind):
    """And the largest one comes back."""
    made = store(tmp_path, [draw(2, vocabulary=vocabulary)], vocabulary=vocabulary)
    assert made.shards["train"][0].tokens == kind
    assert open_all(made).read().tokens.max() == vocabulary - 1


@pytest.mark.parametrize(
    ("largest", "kind"), [(255, "|u1"), (256, "<u2"), (2**16, "<u4"), (2**31 - 1, "<u4")]
)
def test_bytes_take_as_few_bytes_as_they_need(tmp_path, largest, kind):
    """A tokenizer may skip any length of text, which counts with one token: that file takes more."""
    assert choose_size_type(largest) == kind
    made = store(tmp_path, [draw(2, largest=largest), draw(2, largest=3)])
    assert [shard.bytes for shard in made.shards["train"]] == [kind, "|u1"]
    assert open_all(made).read().bytes.max() == largest


def test_what_travels_to_workers_is_small(tmp_path):
    """However many blocks a split has; another process reads the same by it."""
    stored = open_all(store(tmp_path, [draw(2000)]))
    sent = pickle.dumps(stored)
    assert len(sent) < 2000 < (tmp_path / "train" / "0.blocks").stat().st_size
    assert_same(pickle.loads(sent).read(), stored.read())


@pytest.mark.parametrize("harm", ["cut off", "gone"])
def test_a_file_that_is_no_longer_whole_is_a_sentence(tmp_path, harm):
    """It names the file, and rows that can't be read are never made up."""
    stored = open_all(store(tmp_path, [draw(4)]))
    assert len(stored.tokens[[3]]) == 1  # by which the file stays open
    file = tmp_path / "train" / "0.blocks"
    file.unlink() if harm == "gone" else file.write_bytes(file.read_bytes()[:-SEQ_LEN])
    for read in (lambda: stored.starts[[3]], lambda: np.asarray(stored.starts)):
        with pytest.raises(UserError, match=r"0\.blocks isn't whole any more: give the command again"):
            read()


@pytest.fixture
def far(tmp_path, monkeypatch):
    """Blocks behind a URI in two files, the names of the files that are copied, and this machine's cache."""
    monkeypatch.setenv("ADEPT_RAY_CACHE", str(tmp_path / "own"))
    copied, copy = [], block_files.copy_file

    def note(place, file):
        copied.append(place.rpartition("/")[2])
        copy(place, file)

    monkeypatch.setattr(block_files, "copy_file", note)
    folder = tmp_path / "blocks" / "f"
    stored = open_all(store(folder, [draw(3), draw(4, 1)], f"file://{folder}"))
    return stored, copied


def test_a_machine_copies_what_it_needs_once(far, tmp_path):
    """Files without a block that is asked for stay where they are, and it is said how much is copied."""
    stored, copied = far
    said = []
    stored.take_first(2 * SEQ_LEN).fetch(said.append)
    assert copied == ["0.blocks"] and len(said) == 1 and "GB" in said[0]
    stored.fetch(said.append)
    stored.fetch(said.append)
    assert copied == ["0.blocks", "1.blocks"] and len(said) == 2
    there = tmp_path / "own" / "blocks" / "f"
    assert {path.name for path in there.rglob("*")} == {".lock", "train", "0.blocks", "1.blocks"}
    (there / "train" / "1.blocks").write_bytes(b"half")
    assert stored.read().tokens.tolist() == np.concatenate([draw(3).tokens, draw(4, 1).tokens]).tolist()
    assert copied[2:] == ["1.blocks"]


def test_a_full_disk_is_a_sentence(far, monkeypatch):
    """It says how much there is to copy, where to, and what to do."""

    def fail(place, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(block_files, "copy_file", fail)
    with pytest.raises(
        UserError, match=r"no space left for 0\.00 GB of token blocks in .*own.*ADEPT_RAY_CACHE"
    ):
        far[0].fetch()


def test_a_folder_that_a_node_does_not_reach_is_a_sentence(tmp_path):
    """Before anything waits for anything."""
    stored = open_all(store(tmp_path / "here", [draw(3)]))
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"can't be seen from every node .* give a --cache that all nodes reach"
    ):
        stored.fetch()


def test_blocks_in_memory_have_nothing_to_fetch():
    held = one_document_each(np.ones((2, 4)))
    held.fetch(lambda text: pytest.fail(text))
    assert held.is_in_memory and held.read().tokens is held.tokens
