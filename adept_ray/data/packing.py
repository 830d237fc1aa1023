"""Corpora to packed token blocks: Ray Data reads, splits, tokenizes, packs and writes them once.

Everything about a document follows from its content and the seed: a digest drops duplicates, and a
seeded hash of the digest decides its split and its place. So the blocks depend neither on the order
of the files nor on how many machines built them. Blocks are cut from documents joined by EOS.

Each task writes the blocks of its documents into the cache itself, so none goes through the command. Workers
don't stream: they read a block from its file by its position (see :class:`BlockOrder`), so that any number
of workers trains on the same global batches and a resumed run goes on at the exact block.
"""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

import numpy as np

from adept_ray.config.errors import UserError
from adept_ray.config.validation import fingerprint
from adept_ray.data.block_files import Shard, choose_token_type
from adept_ray.data.blocks import BlockSet
from adept_ray.data.cutting import cut_blocks, pack_records
from adept_ray.data.loading import Backbone, load_tokenizer
from adept_ray.data.near_duplicates import NEAR_VERSION, find_near_duplicates
from adept_ray.data.splits import choose_splits, digest_corpora, digest_text, is_among, key_documents
from adept_ray.storage.files import (
    delete_folder,
    has_all_files,
    open_filesystem,
    read_json,
    store_bytes,
    store_json,
    upload_file,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from ray import ObjectRef
    from tokenizers import Tokenizer

    from adept_ray.data.corpora import CorpusFiles

FORMAT = 3  # raise when the same inputs would give other blocks, or other files
GENERAL_SPLITS = {"probe": 0.2, "validation": 0.2, "train": 0.2, "test": 0.4}  # train: for replay
DOMAIN_SPLITS = {"train": 0.9, "validation": 0.05, "test": 0.05}
BUCKET_BYTES = 256 * 2**20  # documents are packed in groups of about this much text
READ_ROWS = 10_000  # documents that a reading process holds at a time
MANIFEST = "blocks.json"


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
class PackingRules:
    """How a bucket of documents becomes blocks."""

    tokenizer: ObjectRef[PlainTokenizer]
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


class Manifest(TypedDict):
    """What a set of blocks says of itself."""

    corpus: str
    seq_len: int
    seed: int
    splits: dict[str, dict[str, int]]
    """Split → number of blocks, documents and bytes."""
    shards: dict[str, list[dict[str, Any]]]
    """Split → its files in their order, as :class:`Shard` has them."""


def build_blocks(
    plan: PackingPlan, cache: Path, shared: str = "", say: Callable[[str], None] = lambda text: None
) -> BlockSet:
    """Token blocks of a corpus, split by document; read from the cache when they were built before.

    They are kept behind a URI, `shared`, or else in the folder `cache`, which all nodes of a cluster must
    reach. `say` hears of a set that isn't whole. Needs a running Ray. Raises :class:`UserError` for a
    tokenizer that can't be used, and for a folder that some node doesn't reach.
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
            _write_blocks(plan, list_left_out(plan, cache), tokenizer, place, staging)
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
    return BlockSet(place, name, manifest["splits"], dict(plan.splits), shards)


def list_left_out(plan: PackingPlan, cache: Path) -> np.ndarray:
    """Digests, ascending, of documents that aren't packed though the corpus may have them."""
    left_out = digest_corpora(plan.apart_from)
    if plan.near_duplicates is None:
        return left_out
    near = find_near_duplicates(plan.corpus, plan.apart_from, plan.near_duplicates, cache)
    return np.union1d(left_out, near)


def _write_blocks(
    plan: PackingPlan, left_out: np.ndarray, tokenizer: PlainTokenizer, place: str, staging: str
) -> None:
    """Let Ray Data read, pack and write to `place`, a folder or URI; the manifest comes last.

    Each file is written whole, and another process that builds the same set writes the same files. Documents
    travel to the nodes by way of `staging`, if that is a URI.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.shuffle_strategy = ray.data.context.ShuffleStrategy.SORT_SHUFFLE_PULL_BASED  # no resident actors
    buckets = 1 + _count_text_bytes(plan.corpus) // BUCKET_BYTES
    pack = functools.partial(
        _pack_bucket,
        place=place,
        splits=dict(plan.splits),
        how=PackingRules(ray.put(tokenizer), plan.seq_len, plan.seed),
        excluded=ray.put(left_out),
    )
    rows = (
        ray.data.from_items(_list_pieces(plan.corpus, staging))
        .map_batches(functools.partial(_read_pieces, buckets=buckets), batch_size=1, batch_format="pandas")
        .groupby("bucket")
        .map_groups(pack, batch_format="pandas")
        .take_all()
    )
    written = sorted(cast("list[PackedShard]", rows), key=lambda shard: shard["bucket"])
    store_json(f"{place}/{MANIFEST}", _describe_set(plan, written))


def _describe_set(plan: PackingPlan, written: Sequence[PackedShard]) -> Manifest:
    """The manifest of the blocks that were packed, in the order of their buckets."""
    splits: dict[str, dict[str, int]] = {}
    shards: dict[str, list[Shard]] = {}
    for split in plan.splits:
        own = [each for each in written if each["split"] == split]
        splits[split] = {
            "blocks": sum(each["blocks"] for each in own),
            "documents": sum(each["documents"] for each in own),
            "bytes": sum(each["bytes"] for each in own),
        }
        shards[split] = [
            Shard(name_shard(split, each["bucket"]), each["blocks"], each["token_type"], each["size_type"])
            for each in own
            if each["blocks"]
        ]
    return {
        "corpus": plan.corpus.name,
        "seq_len": plan.seq_len,
        "seed": plan.seed,
        "splits": splits,
        "shards": {split: [asdict(shard) for shard in listed] for split, listed in shards.items()},
    }


def _list_pieces(corpus: CorpusFiles, staging: str) -> list[dict[str, str | int]]:
    """Row groups of the corpus, a piece each; Ray's own Parquet reader starts processes for their footers.

    With a URI, `staging`, the files are copied there first, where every node can read them.
    """
    import pyarrow.parquet as pq

    pieces: list[dict[str, str | int]] = []
    for number, file in enumerate(corpus.files):
        place = f"{staging}/corpus/{number}.parquet" if staging else str(file)
        if staging:
            upload_file(file, place)
        groups = range(pq.ParquetFile(file).num_row_groups)
        pieces += [{"file": place, "group": group} for group in groups]
    return pieces


def _read_pieces(pieces: pd.DataFrame, buckets: int) -> Iterator[pd.DataFrame]:
    """Read row groups, a part at a time, into documents with their digests and buckets."""
    import pyarrow.parquet as pq

    for piece in pieces.itertuples():
        filesystem, path = open_filesystem(piece.file)
        with filesystem.open_input_file(path) as file:
            for part in pq.ParquetFile(file).iter_batches(READ_ROWS, [piece.group], ["text"]):
                yield _add_digest(part.to_pandas(), buckets)


def _add_digest(batch: pd.DataFrame, buckets: int) -> pd.DataFrame:
    """Add each document's content digest and the bucket that all its duplicates share; drop empty ones."""
    texts = batch["text"].fillna("").str.strip()
    texts = texts[texts != ""]
    digests = [digest_text(text) for text in texts]
    return texts.to_frame("text").assign(
        digest=digests, bucket=[int.from_bytes(digest[:4], "big") % buckets for digest in digests]
    )


def _count_text_bytes(corpus: CorpusFiles) -> int:
    """UTF-8 bytes of all documents; unlike the files' sizes the same in whatever order they come."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    batches = (b for file in corpus.files for b in pq.ParquetFile(file).iter_batches(columns=["text"]))
    return sum(pc.sum(pc.binary_length(batch["text"])).as_py() or 0 for batch in batches)


def _pack_bucket(
    documents: pd.DataFrame,
    place: str,
    splits: Mapping[str, float],
    how: PackingRules,
    excluded: ObjectRef[np.ndarray],
) -> pa.Table:
    """Deduplicate, split, tokenize and pack one bucket of documents, and write a file a split to `place`.

    `excluded` are digests of documents to leave out. Returns a row a split.
    """
    import pyarrow as pa
    import ray

    bucket = int(documents["bucket"].iloc[0])
    tokenizer, seed = ray.get(how.tokenizer), how.seed
    documents = documents.drop_duplicates("digest")
    documents = documents[~is_among(documents["digest"].to_list(), ray.get(excluded))]
    documents = documents.assign(key=key_documents(documents["digest"], seed)).sort_values("key")
    chosen = choose_splits(documents["key"], splits)
    written = []
    for number, split in enumerate(splits):
        texts = documents["text"].to_numpy()[chosen == number]
        blocks = cut_blocks(texts, _parse_tokenizer(tokenizer.text), tokenizer.eos, how.seq_len)
        records = pack_records(blocks, choose_token_type(tokenizer.ids), how.seq_len)
        if len(records):
            store_bytes(f"{place}/{name_shard(split, bucket)}", records.view(np.uint8).data)
        written.append(describe_records(records, split, bucket))
    return pa.Table.from_pylist(written)


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
