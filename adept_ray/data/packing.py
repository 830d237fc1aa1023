"""Corpora to packed token blocks: tasks of Ray Data split, tokenize, pack and write them once.

Everything about a document follows from its content and the seed: a digest drops duplicates, and a
seeded hash of the digest decides its split and its place. So the blocks depend neither on the order
of the files nor on how many machines built them. Blocks are cut from documents joined by EOS.

A task packs a bucket, the documents whose digests lie in one range. It reads them from the corpus's files and
writes their blocks into the cache itself, so neither documents nor digests go through the command. What it
has written is on record, and whoever begins again after a kill packs the other buckets alone. Workers don't
stream: they read a block from its file by its position (see :class:`BlockOrder`), so that any number of
workers trains on the same global batches and a resumed run goes on at the exact block.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import name_fault_place
from adept_ray.config.validation import fingerprint
from adept_ray.data.block_files import Shard, choose_token_type
from adept_ray.data.blocks import BlockSet
from adept_ray.data.cutting import cut_blocks, pack_records
from adept_ray.data.loading import Backbone, load_tokenizer
from adept_ray.data.near_duplicates import NEAR_VERSION, find_near_duplicates
from adept_ray.data.ray_tasks import map_rows
from adept_ray.data.shards import DIGEST, DigestRange, TextShard, measure_longest, read_digests, read_distinct
from adept_ray.data.splits import choose_splits, is_among, key_documents
from adept_ray.storage.files import (
    delete_folder,
    has_all_files,
    measure_files,
    open_filesystem,
    read_json,
    store_bytes,
    store_json,
    upload_file,
)
from adept_ray.storage.records import CorpusRecord

if TYPE_CHECKING:
    from ray import ObjectRef
    from tokenizers import Tokenizer

    from adept_ray.data.corpora import CorpusFiles

Update = Callable[[int, int], None]
"""Hears how much is done, and of how much."""

FORMAT = 4  # raise when the same inputs would give other blocks, or other files
GENERAL_SPLITS = {"probe": 0.2, "validation": 0.2, "train": 0.2, "test": 0.4}  # train: for replay
DOMAIN_SPLITS = {"train": 0.9, "validation": 0.05, "test": 0.05}
BUCKET_BYTES = 128 * 2**20  # documents are packed in groups of about this much text
MANIFEST = "blocks.json"
PARTS = "parts"  # folder of the records of buckets, until there is a manifest


@dataclass(frozen=True)
class PackingPlan:
    """What makes a set of blocks: the same plan gives the same blocks everywhere."""

    corpus: CorpusFiles
    splits: Mapping[str, float]
    """Split → its share of the documents."""
    backbone: Backbone
    """Whose tokenizer cuts the text."""
    seq_len: int
    """Length of a block, in tokens."""
    seed: int
    """Decides which document falls into which split, and in which order they come."""
    apart_from: tuple[CorpusFiles, ...] = ()
    """Corpora whose documents are left out, so that no two corpora of a run ever share one."""
    near_duplicates: float | None = None
    """Similarity from which on a document is left out for another one; None: only equal ones are."""

    @property
    def apart(self) -> str | list[str] | None:
        """Names the corpora whose documents are left out; their order is all one."""
        names = sorted(corpus.fingerprint for corpus in self.apart_from)
        return names if len(names) > 1 else "".join(names) or None


class PlainTokenizer(NamedTuple):
    """What workers read in no time, without importing transformers."""

    text: str
    """The tokenizer as JSON."""
    eos: int
    """Its id of the end of a text."""
    ids: int
    """One more than its largest id."""


@dataclass(frozen=True)
class PackingJob:
    """All that a task is told, but the number of its bucket."""

    place: str
    """Where its files go."""
    shards: tuple[TextShard, ...]
    """The documents of the corpus."""
    apart: tuple[TextShard, ...]
    """Those of the corpora that it is kept apart from."""
    near: np.ndarray
    """Digests, ascending, of documents that are nearly the same as others."""
    buckets: int
    splits: Mapping[str, float]
    tokenizer: PlainTokenizer
    seq_len: int
    seed: int


class PackedShard(TypedDict):
    """What a task says of the blocks that it has packed; there is a file only where there are some."""

    split: str
    bucket: int
    blocks: int
    documents: int
    """Documents that begin in them."""
    bytes: int
    """UTF-8 bytes of their predicted tokens."""
    token_type: str
    """As :class:`Shard` has it."""
    size_type: str


class PackedBucket(TypedDict):
    """What a task says of its bucket."""

    shards: list[PackedShard]
    """A split each."""
    counts: CorpusRecord
    """What of its documents is taken."""


class Manifest(TypedDict):
    """What a set of blocks says of itself."""

    corpus: str
    seq_len: int
    seed: int
    splits: dict[str, dict[str, int]]
    """Split → number of blocks, documents and bytes."""
    shards: dict[str, list[dict[str, Any]]]
    """Split → its files in their order, as :class:`Shard` has them."""
    counts: CorpusRecord
    """What is taken of the corpus."""


def build_blocks(
    plan: PackingPlan,
    cache: Path,
    shared: str = "",
    say: Callable[[str], None] = lambda text: None,
    update: Update = lambda done, of: None,
) -> BlockSet:
    """Token blocks of a corpus, split by document; read from the cache when they were built before.

    They are kept behind a URI, `shared`, or else in the folder `cache`, which all nodes of a cluster must
    reach. `say` hears of a set that isn't whole, `update` of the buckets that are done. Needs a running Ray.
    Raises :class:`UserError` for a tokenizer that can't be used, and for a folder that a node doesn't reach.
    """
    tokenizer = _read_plain_tokenizer(plan.backbone)
    name = fingerprint(
        FORMAT,
        plan.corpus.fingerprint,
        plan.apart,
        fingerprint(*tokenizer),
        plan.seq_len,
        dict(plan.splits),
        plan.seed,
        *([plan.near_duplicates, NEAR_VERSION] if plan.near_duplicates else []),
    )
    place = f"{shared or cache.absolute()}/blocks/{name}"
    made = _find_blocks(plan, place, say)
    if made is None:
        staging = f"{shared}/staging/{name}-{uuid.uuid4().hex[:8]}" if shared else ""
        try:
            _write_blocks(plan, list_near(plan, cache), tokenizer, (place, staging), update)
        finally:
            if staging:
                delete_folder(staging)
        made = _find_blocks(plan, place, say)
        if made is None:
            raise UserError(
                f"token blocks in {place} aren't whole though they were just built: give a --cache that all "
                "nodes reach, a shared folder or a URI"
            )
    return made


def _find_blocks(plan: PackingPlan, place: str, say: Callable[[str], None]) -> BlockSet | None:
    """The blocks that were built there; None if there are none, or not all, which `say` hears."""
    manifest: Manifest | None = read_json(f"{place}/{MANIFEST}", say)
    if manifest is None:
        return None
    shards = {split: [Shard(**each) for each in listed] for split, listed in manifest["shards"].items()}
    sizes = {shard.name: shard.count_bytes(plan.seq_len) for listed in shards.values() for shard in listed}
    if not has_all_files(*open_filesystem(place), sizes):
        say(f"token blocks in {place} aren't whole and are built again")
        return None
    name = place.rpartition("/")[2]
    return BlockSet(place, name, manifest["splits"], dict(plan.splits), shards, manifest["counts"])


def list_near(plan: PackingPlan, cache: Path) -> np.ndarray:
    """Digests, ascending, of documents that aren't packed because they are nearly the same as others."""
    if plan.near_duplicates is None:
        return np.empty(0, DIGEST)
    return find_near_duplicates(plan.corpus, plan.apart_from, plan.near_duplicates, cache)


def count_buckets(shards: Iterable[TextShard]) -> int:
    """In how many groups the documents of a corpus are packed, or gone through."""
    return 1 + sum(shard.bytes for shard in shards) // BUCKET_BYTES


def _write_blocks(
    plan: PackingPlan, near: np.ndarray, tokenizer: PlainTokenizer, places: tuple[str, str], update: Update
) -> None:
    """Let Ray Data read, pack and write to the first of `places`, a folder or URI; the manifest comes last.

    Each file is written whole, and another process that builds the same set writes the same files. Documents
    in files of this machine travel to the nodes by way of the second place, if that is a URI.
    """
    place, staging = places
    shards = plan.corpus.shards
    buckets = count_buckets(shards)
    job = PackingJob(
        place,
        _bring_shards(shards, staging),
        _bring_shards([shard for corpus in plan.apart_from for shard in corpus.shards], staging),
        near,
        buckets,
        dict(plan.splits),
        tokenizer,
        plan.seq_len,
        plan.seed,
    )
    packed = _find_packed(job)
    rest = [{"bucket": bucket} for bucket in range(buckets) if bucket not in packed]
    update(len(packed), buckets)
    with name_fault_place(place):
        for row in map_rows(_pack_row, rest, job):
            packed[row["bucket"]] = row["packed"]
            update(len(packed), buckets)
        store_json(f"{place}/{MANIFEST}", _describe_set(plan, [packed[bucket] for bucket in range(buckets)]))
    with suppress(OSError):  # another process that builds the same set writes or deletes there, too
        delete_folder(f"{place}/{PARTS}")


def _find_packed(job: PackingJob) -> dict[int, PackedBucket]:
    """Bucket → its record, of those whose files are there whole."""
    there, packed = measure_files(*open_filesystem(job.place)), {}
    for bucket in range(job.buckets):
        name = f"{PARTS}/{bucket:06d}.json"
        part: PackedBucket | None = read_json(f"{job.place}/{name}") if name in there else None
        shards = [_name_blocks(each) for each in part["shards"] if each["blocks"]] if part else []
        if part and all(there.get(shard.name) == shard.count_bytes(job.seq_len) for shard in shards):
            packed[bucket] = part
    return packed


def _name_blocks(packed: PackedShard) -> Shard:
    """The file of packed blocks, which is there if there are some."""
    name = name_shard(packed["split"], packed["bucket"])
    return Shard(name, packed["blocks"], packed["token_type"], packed["size_type"])


def _bring_shards(shards: Iterable[TextShard], staging: str) -> tuple[TextShard, ...]:
    """The same documents where every node reads them: with a URI, `staging`, those of this machine there."""
    brought = []
    for number, shard in enumerate(shards):
        if staging and "://" not in shard.place:
            name = f"{fingerprint(shard.place)}-{number}.parquet"
            upload_file(Path(shard.place), f"{staging}/{name}")
            shard = replace(shard, place=f"{staging}/{name}")
        brought.append(shard)
    return tuple(brought)


def _describe_set(plan: PackingPlan, packed: Sequence[PackedBucket]) -> Manifest:
    """The manifest of the blocks that were packed, in the order of their buckets."""
    splits: dict[str, dict[str, int]] = {}
    shards: dict[str, list[dict[str, Any]]] = {}
    written = [shard for bucket in packed for shard in bucket["shards"]]
    for split in plan.splits:
        own = [each for each in written if each["split"] == split]
        splits[split] = {
            "blocks": sum(each["blocks"] for each in own),
            "documents": sum(each["documents"] for each in own),
            "bytes": sum(each["bytes"] for each in own),
        }
        shards[split] = [asdict(_name_blocks(each)) for each in own if each["blocks"]]
    return {
        "corpus": plan.corpus.name,
        "seq_len": plan.seq_len,
        "seed": plan.seed,
        "splits": splits,
        "shards": shards,
        "counts": _add_counts([bucket["counts"] for bucket in packed]),
    }


def _add_counts(parts: Sequence[CorpusRecord]) -> CorpusRecord:
    """What is taken of a corpus, from the same of its buckets."""
    return {
        "documents": sum(part["documents"] for part in parts),
        "repeated": sum(part["repeated"] for part in parts),
        "in_earlier": sum(part["in_earlier"] for part in parts),
        "near": sum(part["near"] for part in parts),
        "longest": max(part["longest"] for part in parts),
    }


def _pack_row(row: dict[str, Any], job: ObjectRef[PackingJob]) -> dict[str, Any]:
    """Pack the bucket of a row."""
    import ray

    bucket = int(row["bucket"])
    return {"bucket": bucket, "packed": _pack_bucket(ray.get(job), bucket)}


def _pack_bucket(job: PackingJob, bucket: int) -> PackedBucket:
    """Deduplicate, split, tokenize and pack a bucket of documents; write a file a split and a record."""
    wanted = DigestRange(bucket, job.buckets)
    held, documents = read_distinct(job.shards, wanted)
    digests = np.array(held["digest"].to_pylist(), DIGEST)
    in_earlier = is_among(digests, read_digests(job.apart, wanted))
    near = is_among(digests, job.near) & ~in_earlier
    counts: CorpusRecord = {
        "documents": documents,
        "repeated": documents - len(digests),
        "in_earlier": int(in_earlier.sum()),
        "near": int(near.sum()),
        "longest": measure_longest(held["text"]),
    }
    taken = np.flatnonzero(~in_earlier & ~near)
    keys = key_documents(held["digest"].take(taken).to_pylist(), job.seed)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    chosen = choose_splits([keys[at] for at in order], job.splits)
    taken = taken[order]
    written = []
    for number, split in enumerate(job.splits):
        texts = held["text"].take(taken[chosen == number]).to_pylist()
        tokenizer = _parse_tokenizer(job.tokenizer.text)
        blocks = cut_blocks(texts, tokenizer, job.tokenizer.eos, job.seq_len)
        records = pack_records(blocks, choose_token_type(job.tokenizer.ids), job.seq_len)
        if len(records):
            store_bytes(f"{job.place}/{name_shard(split, bucket)}", records.view(np.uint8).data)
        written.append(describe_records(records, split, bucket))
    packed: PackedBucket = {"shards": written, "counts": counts}
    with suppress(FileNotFoundError):  # another process is done with this set, and tidies up
        store_json(f"{job.place}/{PARTS}/{bucket:06d}.json", packed)
    return packed


def describe_records(records: np.ndarray, split: str, bucket: int) -> PackedShard:
    """What is said of packed blocks."""
    return {
        "split": split,
        "bucket": bucket,
        "blocks": len(records),
        "documents": int(np.bitwise_count(records["starts"]).sum()),
        "bytes": int(records["bytes"].sum(dtype=np.int64)),
        "token_type": records.dtype["tokens"].base.str,
        "size_type": records.dtype["bytes"].base.str,
    }


def name_shard(split: str, bucket: int) -> str:
    """Name of the file of the blocks that a bucket gives a split."""
    return f"{split}/{bucket:06d}.blocks"


def _read_plain_tokenizer(backbone: Backbone) -> PlainTokenizer:
    """The backbone's tokenizer in plain form."""
    tokenizer = load_tokenizer(backbone)
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()  # some are saved with a limit, which would cut documents
    backend.no_padding()
    ids = 1 + max(tokenizer.eos_token_id, max(backend.get_vocab().values()))
    return PlainTokenizer(backend.to_str(), tokenizer.eos_token_id, ids)


@functools.lru_cache(maxsize=1)
def _parse_tokenizer(text: str) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)
