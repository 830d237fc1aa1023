"""Corpora to blocks: every document in one split, whole, in an order that only content and seed decide."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from common import (
    documents,
    local_backbone,
    of_one_document,
    save_tiny_backbone,
    store_corpus,
    tiny_tokenizer,
)
from hypothesis import given
from hypothesis import strategies as st
from ray.util import placement_group, remove_placement_group
from tokenizers.processors import TemplateProcessing
from transformers.convert_slow_tokenizer import bytes_to_unicode

from adept_ray.config.errors import UserError
from adept_ray.data import corpora, packing, reading
from adept_ray.data.blocks import BlockOrder, make_micro_batches
from adept_ray.data.corpora import resolve_corpus
from adept_ray.data.cutting import count_token_bytes, cut_blocks
from adept_ray.data.held_out import decode_documents, read_split
from adept_ray.data.near_duplicates import find_near_duplicates
from adept_ray.data.packing import DOMAIN_SPLITS, GENERAL_SPLITS, PackingPlan, build_blocks
from adept_ray.data.shards import read_in_order

SEQ_LEN = 32
EOS = "<|eos|>"
WIDE = ["naïve 😀🚀 end", "漢字とかな", "Ω≈ç√∫ \u200b\u2028 x", "\tTabs and\n\nlines\t", "🏳️‍🌈" * 9]
GENERAL = documents(120) + [f"{text} ({i})" for i, text in enumerate(WIDE * 4)]
SHARED = GENERAL[20:60]
DOMAIN = documents(120, domain="medical") + SHARED
TOKENIZER = tiny_tokenizer()
RAW = {letter: byte for byte, letter in bytes_to_unicode().items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory, s3):
    """A folder with a backbone, while a local Ray runs, whose processes know of the S3 server."""
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
    )
    folder = tmp_path_factory.mktemp("corpus")
    save_tiny_backbone(folder / "backbone", layers=1)
    yield folder
    ray.shutdown()


def resolved(place, name, texts):
    """The corpus of these texts, from a folder of two .jsonl files."""
    folder = place / name
    folder.mkdir(exist_ok=True)
    for part in range(2):
        lines = [json.dumps({"text": text}) for text in texts[part::2]]
        (folder / f"{part}.jsonl").write_text("\n".join(lines))
    return resolve_corpus(str(folder), "text", place / "cache")


def in_files(place, name, groups):
    """The same as a corpus of several files."""
    return store_corpus(place, name, *groups)


def build(place, files, splits=GENERAL_SPLITS, seed=0, cache="cache", shared="", say=print, **plan):
    plan = PackingPlan(files, splits, local_backbone(place / "backbone"), SEQ_LEN, seed, **plan)
    return build_blocks(plan, place / cache, shared, say)


def in_buckets(files, monkeypatch, buckets):
    """Have `files` packed in that many groups."""
    size = sum(shard.bytes for shard in files.shards)
    monkeypatch.setattr(packing, "BUCKET_BYTES", int(size / (buckets - 0.5)))


@pytest.fixture(scope="module")
def general(place):
    """Blocks of the general corpus in one bucket."""
    return build(place, resolved(place, "general", GENERAL))


@pytest.fixture(scope="module")
def domain(place, general):
    """Blocks of a domain corpus in three buckets that repeats itself and part of the general corpus."""
    files = resolved(place, "domain", DOMAIN + DOMAIN[::3])
    with pytest.MonkeyPatch.context() as patch:
        in_buckets(files, patch, 3)
        return build(place, files, DOMAIN_SPLITS, apart_from=(resolved(place, "general", GENERAL),))


def load(made, split):
    """All blocks of a split, in memory."""
    return made.open_split(split, 0, SEQ_LEN, "x").read()


def streams(made, split):
    """The text of a split, one stream a bucket."""
    ends = np.cumsum([shard.blocks for shard in made.shards[split]])
    return [TOKENIZER.decode(part.ravel()) for part in np.split(load(made, split).tokens, ends[:-1])]


def found(made, corpus_texts):
    """Split → the documents of `corpus_texts` in it; one cut off at a stream's end counts as well."""
    known = {text.strip() for text in corpus_texts}
    result = {}
    for split in made.splits:
        result[split] = []
        for stream in streams(made, split):
            *whole, rest = stream.split(EOS)
            assert set(whole) <= known
            result[split] += whole
            rest = rest.rstrip("\ufffd")  # the cut may go through a character
            meant = [text for text in known if rest and text.startswith(rest)]
            assert meant or not rest
            result[split] += meant if len(meant) == 1 else []  # else cut too short to be told
    return result


def everything(made):
    """All tokens and bytes of all splits, in order."""
    loaded = [load(made, split) for split in made.splits]
    return [(blocks.tokens.tolist(), blocks.bytes.tolist(), blocks.starts.tolist()) for blocks in loaded]


def pack_plainly(texts, splits, buckets, left_out=()):
    """What :func:`everything` should be, document by document, from nothing but the texts (seed 0)."""
    digests = {hashlib.sha256(text.strip().encode()).digest(): text.strip() for text in texts}
    digests = {d: text for d, text in digests.items() if text not in {each.strip() for each in left_out}}
    keys = {d: hashlib.sha256(b"0:" + d).digest() for d in digests}
    total, packed = sum(splits.values()), []
    for number, split in enumerate(splits):
        begin = sum(list(splits.values())[:number]) / total
        rows = []
        for bucket in range(buckets):
            stream = []
            for digest in sorted(digests, key=keys.get):
                draw = int.from_bytes(keys[digest][:8], "big") / 2**64
                if int.from_bytes(digest[:4], "big") * buckets >> 32 != bucket or not (
                    begin <= draw < begin + splits[split] / total
                ):
                    continue
                ids = TOKENIZER(digests[digest], add_special_tokens=False).input_ids
                sizes = [lead_bytes([token]) for token in ids]
                stream += zip(
                    [*ids, TOKENIZER.eos_token_id], [*sizes, 0], [True] + len(ids) * [False], strict=True
                )
            rows += [stream[at : at + SEQ_LEN] for at in range(0, len(stream) - SEQ_LEN + 1, SEQ_LEN)]
        tokens, sizes, starts = ([[place[part] for place in row] for row in rows] for part in range(3))
        packed.append((tokens, [row[1:] for row in sizes], starts))
    return packed


def test_blocks_are_those_of_plain_packing(general, domain):
    """Every token, byte count and start, in its place, whatever the files and however they are read."""
    assert everything(general) == pack_plainly(GENERAL, GENERAL_SPLITS, 1)
    assert everything(domain) == pack_plainly(DOMAIN + DOMAIN[::3], DOMAIN_SPLITS, 3, GENERAL)


def test_blocks_hold_the_documents_joined_by_eos(place, general):
    """Decoded, a split is whole documents with EOS between, and only what fills no block is left out."""
    texts = found(general, GENERAL)
    for split, held in texts.items():
        assert len(held) == len(set(held))
        assert len(held) - general.splits[split]["documents"] in (-1, 0)  # the one cut off, see found
    lengths = [len(TOKENIZER(text.strip()).input_ids) + 1 for text in GENERAL]
    kept = sum(len(blocks) * SEQ_LEN for blocks in (load(general, s) for s in general.splits))
    assert 0 <= sum(lengths) - kept < SEQ_LEN * len(general.splits)
    assert any(text.startswith("naïve 😀🚀 end (") for held in texts.values() for text in held)


def test_every_block_is_full(general, domain):
    """A block has exactly seq_len tokens, and as many blocks are loaded as the manifest says."""
    for made in (general, domain):
        for split, counts in made.splits.items():
            blocks = load(made, split)
            assert (
                blocks.tokens.shape == (counts["blocks"], SEQ_LEN) and len(blocks.bytes) == counts["blocks"]
            )
            assert len(blocks.take_first(3 * SEQ_LEN - 5)) == 3


def test_no_document_in_two_splits(general, domain):
    """Splits of a corpus share no document, nor does one of domain with one of general; none comes twice."""
    of_general, of_domain = found(general, GENERAL), found(domain, DOMAIN)
    for texts in (of_general, of_domain):
        held = [text for split in texts.values() for text in split]
        assert len(held) == len(set(held))
    apart = {text for held in of_domain.values() for text in held}
    assert not apart & set(GENERAL)
    assert len(apart) >= len(set(DOMAIN) - set(SHARED)) - 3 * len(domain.splits)  # a leftover per stream


def test_splits_have_their_shares(general, domain):
    """Documents fall to the splits in the shares asked for, as far as chance allows."""
    for made, total in ((general, len(GENERAL)), (domain, len(DOMAIN) - len(SHARED))):
        for split, share in made.shares.items():
            spread = (total * share * (1 - share)) ** 0.5
            assert abs(made.splits[split]["documents"] - total * share) < 4 * spread + 3


@pytest.mark.parametrize("side", ["general", "domain"])
def test_a_split_is_read_again_as_it_was_packed(place, general, domain, side):
    """From the corpus: the documents of its blocks, and none that is left out; and they can be decoded."""
    known = resolved(place, "general", GENERAL)
    plans = {
        "general": PackingPlan(known, GENERAL_SPLITS, None, SEQ_LEN, 0),
        "domain": PackingPlan(
            resolved(place, "domain", DOMAIN + DOMAIN[::3]), DOMAIN_SPLITS, None, SEQ_LEN, 0, (known,)
        ),
    }
    made, texts = {"general": (general, GENERAL), "domain": (domain, DOMAIN)}[side]
    for split, packed in found(made, texts).items():
        read = {text.strip() for part in read_split(plans[side], split, place) for text in part}
        assert set(packed) <= read
        cut_off = len(streams(made, split))  # the end of each
        assert 0 <= len(read) - len(packed) <= cut_off
        decoded = decode_documents(load(made, split), TOKENIZER)
        assert len(decoded) == made.splits[split]["documents"]
        assert len(set(decoded) - read) <= cut_off


def test_near_duplicates_are_left_out_on_request(place):
    """Of two documents that differ in a word one is packed, and their split is read again like that."""
    texts = [f"{text} {text.lower()}" for text in GENERAL[:30]]
    files = in_files(place, "near", [[*texts, *(f"{text} So." for text in texts)]])
    near = find_near_duplicates(files, (), 0.8, place / "cache")
    assert len(near) >= len(texts)
    made = build(place, files, near_duplicates=0.8)
    assert made.fingerprint != build(place, files).fingerprint
    packed = sum(counts["documents"] for counts in made.splits.values())
    plan = PackingPlan(files, GENERAL_SPLITS, None, SEQ_LEN, 0, near_duplicates=0.8)
    read = [part for split in GENERAL_SPLITS for part in read_split(plan, split, place / "cache")]
    kept = 2 * len(texts) - len(near)
    assert sum(map(len, read)) == kept
    assert 0 <= kept - packed <= len(GENERAL_SPLITS)  # of each split the end is cut off


def test_the_same_file_as_both_leaves_nothing_to_learn(place, general):
    """A corpus given as general and as domain is refused, for all of it is already general."""
    files = resolved(place, "general", GENERAL)
    made = build(place, files, DOMAIN_SPLITS, apart_from=(files,))
    assert {counts["documents"] for counts in made.splits.values()} == {0}
    with pytest.raises(UserError, match="too small"):
        made.open_split("train", SEQ_LEN, SEQ_LEN, "general")


def test_order_files_and_repetitions_do_not_matter(place, domain, monkeypatch):
    """The same texts in another order, in other files and row groups, some twice, give the same blocks."""
    texts = [f"  {text}\n" for text in reversed(DOMAIN)]
    files = in_files(place, "scattered", [texts[:7] + texts[50:], texts[:50], texts[90:110]])
    in_buckets(files, monkeypatch, 3)
    made = build(place, files, DOMAIN_SPLITS, apart_from=(in_files(place, "g", [GENERAL[::-1]]),))
    assert made.fingerprint != domain.fingerprint
    assert everything(made) == everything(domain)


@pytest.fixture
def large(place, monkeypatch):
    """A folder that is read as a large one: in groups of 2 kB, by tasks."""
    monkeypatch.setattr(reading, "FEW_BYTES", 0)
    monkeypatch.setattr(corpora, "FEW_BYTES", 0)
    monkeypatch.setattr(reading, "GROUP_BYTES", 2000)
    folder = place / "large"
    folder.mkdir(exist_ok=True)
    for number in range(4):
        texts = [f"{number} {text}" for text in GENERAL]
        pq.write_table(pa.table({"text": texts}), folder / f"{number}.parquet", row_group_size=20)
    return folder


def test_tasks_read_what_the_command_would(large, place, monkeypatch):
    """A sample of whole groups, the same as without Ray; a larger one begins with it and reads the rest."""
    few, more = (resolve_corpus(str(large), "text", place / "tasks", size) for size in (5000, 20_000))
    assert 5000 <= sum(shard.bytes for shard in few.shards) < 5000 + 8000
    assert few.shards == more.shards[: len(few.shards)] and len(few.shards) < len(more.shards)
    assert "of its 4 files" in few.omitted and few.fingerprint != more.fingerprint
    whole = resolve_corpus(str(large), "text", place / "tasks", 10**9)
    assert whole.omitted == "" and sum(shard.documents for shard in whole.shards) == 4 * len(GENERAL)
    monkeypatch.setattr(reading, "_is_read_here", lambda job: True)
    here = resolve_corpus(str(large), "text", place / "here", 20_000)
    assert list(read_in_order(here.shards)) == list(read_in_order(more.shards))


def test_what_was_read_before_a_kill_is_not_read_again(large, place):
    """Only the group without a record, and then a faulty one is a sentence that names the row."""
    made = resolve_corpus(str(large), "text", place / "killed", 20_000)
    before = {shard.place: Path(shard.place).stat().st_mtime_ns for shard in made.shards}
    lost = Path(made.shards[1].place)
    lost.with_name(f"{lost.name[:6]}.json").unlink()
    made.index.unlink()
    again = resolve_corpus(str(large), "text", place / "killed", 20_000)
    after = {shard.place: Path(shard.place).stat().st_mtime_ns for shard in again.shards}
    assert again.shards == made.shards
    assert [shard for shard in before if before[shard] != after[shard]] == [str(lost)]
    (large / "bad.jsonl").write_text('{"body": "x"}')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1: no column 'text'; there are: body"):
        resolve_corpus(str(large), "text", place / "killed", 10**9)
    (large / "bad.jsonl").unlink()


def test_a_node_without_a_free_cpu_reads_what_it_alone_sees(large, place, monkeypatch):
    """Workers may hold all of its CPUs, or Ray may count none: the text is read there nevertheless."""
    here = ray.get_runtime_context().get_node_id()
    monkeypatch.setattr(reading, "_choose_node", lambda source: here)
    crew = placement_group([{"CPU": 3}])
    ray.get(crew.ready())
    try:
        made = resolve_corpus(str(large), "text", place / "pinned", 5000)
    finally:
        remove_placement_group(crew)
    assert list(read_in_order(made.shards))


def test_buckets_packed_before_a_kill_are_not_packed_again(place, monkeypatch):
    """One without a record is, and one whose blocks are gone; all blocks are those of an undisturbed run."""
    files = in_files(place, "killed", [[f"killed {text}" for text in GENERAL]])
    in_buckets(files, monkeypatch, 3)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "delete_folder", lambda folder: None)
        made = build(place, files)
    folder, whole = Path(made.place), everything(made)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.blocks")}
    (folder / packing.MANIFEST).unlink()
    (folder / packing.PARTS / "000001.json").unlink()
    next(path for path in before if path.stem == "000002").unlink()
    again = build(place, files)
    changed = {path.stem for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert again == made and everything(again) == whole and changed == {"000001", "000002"}
    assert not (folder / packing.PARTS).exists()


def test_what_is_taken_of_a_corpus_is_counted(place):
    """Blank documents nowhere; repeated, nearly equal ones and those of the other corpus once each."""
    texts = [f"{text} {text.lower()}" for text in documents(20)]
    known = in_files(place, "counted general", [texts[:5]])
    parts = [[*texts, f"  {texts[9]}\n", ""], [texts[9], texts[3], f"{texts[7]} So é."]]
    files = in_files(place, "counted", parts)
    made = build(place, files, DOMAIN_SPLITS, apart_from=(known,))
    longest = max(len(text.strip().encode()) for part in parts for text in part)
    counts = {"documents": 24, "repeated": 3, "in_earlier": 5, "near": 0, "longest": longest}
    assert made.counts == counts
    near = build(place, files, DOMAIN_SPLITS, apart_from=(known,), near_duplicates=0.9)
    assert near.counts == counts | {"near": 1}


def test_another_seed_gives_another_split(place, general):
    """The seed decides which documents are held out."""
    other = build(place, resolved(place, "general", GENERAL), seed=1)
    first, second = found(general, GENERAL), found(other, GENERAL)
    assert all(set(first[split]) != set(second[split]) for split in GENERAL_SPLITS)


def test_a_second_call_reads(place, general, monkeypatch):
    """Blocks that were built are not built again."""
    monkeypatch.setattr(packing, "_write_blocks", None)
    assert build(place, resolved(place, "general", GENERAL)) == general


def test_a_half_written_folder_is_built_again(place, general):
    """Without its manifest, the last file written, a folder is never read but filled with the same blocks."""
    before, folder = everything(general), Path(general.place)
    (folder / packing.MANIFEST).unlink()
    (folder / general.shards["probe"][0].name).write_bytes(b"half a file")
    again = build(place, resolved(place, "general", GENERAL))
    assert again == general and everything(again) == before
    assert list(folder.rglob(".*")) == []  # nothing half-written stays behind


@pytest.mark.parametrize("harm", ["cut off", "missing"])
def test_a_set_that_is_not_whole_is_built_again(place, general, harm):
    """A file that is missing or shorter than the manifest says is noticed, and the line names the folder."""
    before, said = everything(general), []
    victim = Path(general.place) / general.shards["test"][0].name
    victim.write_bytes(victim.read_bytes()[:-1]) if harm == "cut off" else victim.unlink()
    again = build(place, resolved(place, "general", GENERAL), say=said.append)
    assert again == general and everything(again) == before
    assert said == [f"token blocks in {general.place} aren't whole and are built again"]


def test_blocks_are_shared_by_way_of_a_bucket(place, general, s3, monkeypatch):
    """Another machine reads what one has built, and copies no more than that; half a set is built again."""
    s3.create_bucket(Bucket="shared")
    files, said = resolved(place, "general", GENERAL), []
    shared = {"shared": "s3://shared/cache", "say": said.append}

    def be_machine(name):
        monkeypatch.setenv("ADEPT_RAY_CACHE", str(place / name))

    be_machine("machine1")
    built = build(place, files, **shared)
    assert everything(built) == everything(general)
    names = [entry["Key"] for entry in s3.list_objects_v2(Bucket="shared")["Contents"]]
    assert not any("staging" in name and not name.endswith("/") for name in names)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write_blocks", None)
        be_machine("machine2")
        again = build(place, files, **shared)
        assert load(again, "probe").tokens.tolist() == everything(general)[0][0]
        assert {file.parent.name for file in (place / "machine2").rglob("*.blocks")} == {"probe"}
        assert everything(again) == everything(general)
    victim = next(name for name in names if name.endswith(".blocks"))
    s3.put_object(Bucket="shared", Key=victim, Body=b"half")
    assert said == []
    be_machine("machine3")
    assert everything(build(place, files, **shared)) == everything(general)
    assert len(said) == 1 and said[0].startswith("token blocks in s3://shared/cache/blocks/")
    monkeypatch.setattr(packing, "_write_blocks", None)
    be_machine("machine4")
    assert everything(build(place, files, **shared)) == everything(general)


def test_a_corpus_too_small_says_what_it_needs(general):
    """The message names corpus and split, its share, what there is and what would do."""
    have = general.splits["validation"]["blocks"] * SEQ_LEN
    with pytest.raises(UserError) as problem:
        general.open_split("validation", have + 1, SEQ_LEN, "notes")
    text = str(problem.value)
    assert "'notes'" in text and "validation split (20% of the documents)" in text
    holds, needed, enough = map(
        int, re.search(r"holds (\d+) tokens .* and (\d+) are .* (\d+) tokens of", text).groups()
    )
    assert (holds, needed) == (have, have + 1)
    assert enough * 0.2 == pytest.approx(needed, abs=1)


def lead_bytes(tokens):
    """UTF-8 bytes of the characters that begin in these tokens, read off the tokens' own bytes."""
    raw = bytes(RAW[c] for t in TOKENIZER.convert_ids_to_tokens(tokens) if t != EOS for c in t)
    return sum(1 + (b >= 0xC0) + (b >= 0xE0) + (b >= 0xF0) for b in raw if not 0x80 <= b < 0xC0)


def test_bytes_are_those_of_predicted_tokens(general):
    """All tokens of a block but the first count the UTF-8 bytes of the text that they stand for."""
    for split in general.splits:
        blocks = load(general, split)
        sizes = [[lead_bytes([token]) for token in row[1:]] for row in blocks.tokens.tolist()]
        assert blocks.bytes.tolist() == sizes
        assert general.splits[split]["bytes"] == blocks.bytes.sum() == blocks.document_bytes.sum()


def test_a_documents_pieces_are_put_together(general):
    """Numbered in the text's order, a document has its own tokens and no other, however blocks cut it."""
    blocks = load(general, "validation")
    texts = TOKENIZER.decode(blocks.tokens.ravel()).split(EOS)
    assert len(texts) > 5 and max(map(len, texts)) > 4 * SEQ_LEN  # one goes over several blocks
    held = [[] for _ in range(blocks.documents.max() + 1)]
    for number, token in zip(blocks.documents.ravel(), blocks.tokens[:, 1:].ravel(), strict=True):
        held[number].append(token)
    begun = [TOKENIZER.encode(text + EOS) for text in texts]
    begun = [document for document in begun if len(document) > 1]
    assert len(held) == len(begun)
    for pieces, document in zip(held, begun, strict=True):
        firsts = len(document) - len(pieces)  # tokens at the beginning of a block, which aren't predicted
        assert 0 <= firsts <= 1 + len(document) // SEQ_LEN
        rest = iter(document)
        assert all(token in rest for token in pieces)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_bytes_of_a_document_sum_up(text):
    """Whatever the characters and wherever tokens part them, every byte of the text is counted once."""
    encoding = TOKENIZER.backend_tokenizer.encode(text)
    sizes = count_token_bytes(text, [end for _, end in encoding.offsets])
    assert sizes.sum() == len(text.encode()) and (sizes >= 0).all()
    assert sizes.tolist() == [lead_bytes([token]) for token in encoding.ids]


def test_nothing_but_eos_joins_documents():
    """A tokenizer that puts a BOS before every text doesn't put one before every document."""
    tokenizer = tiny_tokenizer()
    eos, backend = tokenizer.eos_token_id, tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single=f"{EOS} $A", special_tokens=[(EOS, eos)])
    assert tokenizer("one").input_ids[0] == eos
    (blocks,) = cut_blocks(["one", "two two", "three three three"], backend, eos, 4)
    flat = blocks.tokens.ravel().tolist()
    assert tokenizer.decode(flat).startswith(f"one{EOS}two two{EOS}three")


def test_an_eos_within_a_text_begins_no_document():
    """Chat markup holds what ends a document elsewhere: its turns aren't independent of each other."""
    texts = [f"one{EOS}two{EOS}three", f"four{EOS}five", "six"]
    (blocks,) = cut_blocks(texts, TOKENIZER.backend_tokenizer, TOKENIZER.eos_token_id, 2)
    flat, starts = blocks.tokens.ravel().tolist(), blocks.starts.ravel().tolist()
    assert flat.count(TOKENIZER.eos_token_id) > sum(starts) == 3
    begun = [TOKENIZER.decode(flat[at:]) for at, start in enumerate(starts) if start]
    assert [text.split(EOS)[0] for text in begun] == ["one", "four", "six"]


@pytest.mark.parametrize("left", [0, 1])
def test_a_bucket_may_be_given_nothing(place, s3, left):
    """All documents excluded, or all but one: splits without a block, the usual sentence, no staging left."""
    s3.create_bucket(Bucket=f"empty-{left}")
    files = resolved(place, "nothing", DOMAIN[:20])
    known = in_files(place, f"known-{left}", [DOMAIN[left:20]])
    shared = f"s3://empty-{left}/cache"
    made = build(place, files, DOMAIN_SPLITS, shared=shared, apart_from=(known,))
    assert sum(split["blocks"] == 0 for split in made.splits.values()) >= 2
    with pytest.raises(UserError, match=r"corpus 'nothing' is too small: its .* split .* holds 0 tokens"):
        for split in made.splits:
            made.open_split(split, SEQ_LEN, SEQ_LEN, "nothing")
    names = [entry["Key"] for entry in s3.list_objects_v2(Bucket=f"empty-{left}")["Contents"]]
    assert names and not any("staging/" in name.removesuffix("staging/") for name in names)
    other = build(place, files, DOMAIN_SPLITS, shared=shared, apart_from=(known,))
    assert other.splits == made.splits and other.fingerprint == made.fingerprint


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_every_block_once_per_epoch(blocks, size, seed):
    """Batches run through every block before one comes again, in another order in the next epoch."""
    order = BlockOrder((blocks,), seed)
    steps = -(-3 * blocks // size)
    seen = [block for step in range(steps) for block in order.list_batch(step, size)]
    epochs = [seen[i * blocks : (i + 1) * blocks] for i in range(3)]
    assert all(sorted(epoch) == list(range(blocks)) for epoch in epochs)
    if blocks > 20:
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        assert epochs[0] != [
            b for step in range(blocks) for b in BlockOrder((blocks,), seed + 1).list_batch(step, 1)
        ]


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.integers(1, 6), st.integers(0, 3))
def test_replayed_blocks_keep_their_share(blocks, replayed, share, size, seed):
    """After any number of places each side has its share to within one block, and goes through its epochs."""
    order = BlockOrder((blocks, replayed), seed, (1 - share, share))
    seen = [block for step in range(60 // size) for block in order.list_batch(step, size)]
    counts = np.cumsum([block >= blocks for block in seen])
    assert all(abs(count - share * (place + 1)) < 1 + 1e-6 for place, count in enumerate(counts))
    own = [block for block in seen if block < blocks]
    other = [block - blocks for block in seen if block >= blocks]
    alone = [
        BlockOrder((n,), seed).list_batch(0, len(part)) for n, part in ((blocks, own), (replayed, other))
    ]
    assert [own, other] == alone


def test_the_same_documents_are_held_out_with_and_without_text_to_replay():
    """The first blocks of probe, validation and test lie where they lay before there was a train split."""
    edges = np.cumsum([0, *GENERAL_SPLITS.values()])
    starts = dict(zip(GENERAL_SPLITS, edges, strict=False))
    assert (starts["probe"], starts["validation"], starts["test"]) == pytest.approx((0.0, 0.2, 0.6))


@given(st.permutations(range(12)))
def test_a_batch_depends_on_step_and_seed_alone(steps):
    """Asked in any order, by any object, a step has its own batch: this is what resuming relies on."""
    straight = [BlockOrder((10,), 3).list_batch(step, 4) for step in range(12)]
    order = BlockOrder((10,), 3)
    assert {step: order.list_batch(step, 4) for step in steps} == dict(enumerate(straight))


@given(st.lists(st.integers(0, 8), max_size=20), st.integers(1, 25))
def test_micro_batches_cover_the_ids_in_order(ids, size):
    """However a batch is cut, its blocks come once each, in order, at most `size` at a time."""
    tokens = np.arange(36, dtype=np.int32).reshape(9, 4)
    batches = list(make_micro_batches(of_one_document(tokens), ids, size, torch.device("cpu")))
    assert [len(batch["input_ids"]) <= size for batch in batches] == [True] * -(-len(ids) // size)
    rows = [row for batch in batches for row in batch["input_ids"].tolist()]
    assert rows == tokens[ids].tolist() and all(batch["input_ids"].dtype == torch.int64 for batch in batches)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_replay_is_shared_out_as_ray_data_mixes(place, share):
    """At every place as many blocks of each side have come as from ``Dataset.mix``, one more or less."""
    blocks = 40
    order = BlockOrder((blocks, blocks), 0, (1 - share, share))
    ours = [block >= blocks for block in order.list_batch(0, 40)]
    sides = [
        ray.data.from_items([{"general": side} for _ in range(40)], override_num_blocks=40)
        for side in (False, True)
    ]
    mixed = sides[0].mix(sides[1], weights=[1 - share, share])
    theirs = [row["general"] for row in mixed.take(40)]
    assert len(ours) == len(theirs) == 40
    gaps = np.cumsum(ours) - np.cumsum(theirs)
    assert np.abs(gaps).max() <= 1
