"""Corpora to packed token blocks: Ray Data reads, splits, tokenizes, packs and writes Parquet once.

Everything about a document follows from its content and the seed: a digest drops duplicates, and a
seeded hash of the digest decides its split and its place. So the blocks depend neither on the order
of the files nor on how many machines built them. Blocks are cut from documents joined by EOS.

Workers don't stream: a run's blocks are read once, put into the object store and addressed by
position (see :class:`BlockOrder`), so that any number of workers trains on the same global batches
and a resumed run goes on at the exact block.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from adept_ray.config.validation import fingerprint
from adept_ray.data.blocks import BlockSet
from adept_ray.data.loading import Backbone, load_tokenizer
from adept_ray.data.near_duplicates import find_near_duplicates
from adept_ray.data.splits import DIGEST, choose_splits, digest_corpus, digest_text, key_documents
from adept_ray.storage.files import (
    delete_folder,
    fetch_folder,
    has_all_files,
    list_sizes,
    open_filesystem,
    publish_folder,
    read_json,
    upload_file,
    write_json,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from ray import ObjectRef
    from tokenizers import Tokenizer

    from adept_ray.data.corpora import CorpusFiles

FORMAT = 2  # raise when the same inputs would give other blocks
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
    apart_from: CorpusFiles | None = None
    """A corpus whose documents are left out, so that general and domain splits never share one."""
    near_duplicates: float | None = None
    """Similarity from which on a document is left out for another one; None: only equal ones are."""


class PlainTokenizer(NamedTuple):
    """What workers read in no time, without importing transformers."""

    text: str
    """The tokenizer as JSON."""
    eos: int
    """Its id of the end of a text."""


class Manifest(TypedDict):
    """What a set of blocks says of itself."""

    corpus: str
    seq_len: int
    seed: int
    splits: dict[str, dict[str, int]]
    """Split → number of blocks, documents and bytes."""
    files: dict[str, int]
    """File → its size, bytes."""


def build_blocks(
    plan: PackingPlan, cache: Path, shared: str = "", say: Callable[[str], None] = lambda text: None
) -> BlockSet:
    """Token blocks of a corpus, split by document; read from the cache when they were built before.

    With a URI, `shared`, that is the cache and the folder `cache` holds copies. `say` hears of a set that
    isn't whole. Needs a running Ray. Raises :class:`UserError` for a tokenizer that can't be used.
    """
    tokenizer = _read_plain_tokenizer(plan.backbone)
    name = fingerprint(
        FORMAT,
        plan.corpus.fingerprint,
        plan.apart_from.fingerprint if plan.apart_from else None,
        fingerprint(*tokenizer),
        plan.seq_len,
        dict(plan.splits),
        plan.seed,
        *([plan.near_duplicates] if plan.near_duplicates else []),
    )
    folder = cache / "blocks" / name
    place = f"{shared}/blocks/{name}" if shared else ""
    manifest = _read_manifest(str(folder), say)
    if manifest is None and place and (there := _read_manifest(place, say)):
        fetch_folder(place, folder, [*there["files"], MANIFEST])
        manifest = _read_manifest(str(folder), say)
    if manifest is None:
        _write_blocks(plan, list_left_out(plan, cache), tokenizer, folder, shared)
        if place:
            publish_folder(folder, place, MANIFEST)
        manifest = _read_manifest(str(folder), say)
    assert manifest is not None
    return BlockSet(folder, name, manifest["splits"], dict(plan.splits))


def _read_manifest(place: str, say: Callable[[str], None]) -> Manifest | None:
    """The manifest of a set of blocks; None if there is none, or the set isn't whole, which `say` hears."""
    manifest = read_json(f"{place}/{MANIFEST}", say)
    if manifest and not has_all_files(*open_filesystem(place), manifest.get("files", {})):
        say(f"token blocks in {place} aren't whole and are built again")
        return None
    return manifest


def list_left_out(plan: PackingPlan, cache: Path) -> np.ndarray:
    """Digests, ascending, of documents that aren't packed though the corpus may have them."""
    left_out = digest_corpus(plan.apart_from) if plan.apart_from else np.array([], dtype=DIGEST)
    if plan.near_duplicates is None:
        return left_out
    near = find_near_duplicates(plan.corpus, plan.apart_from, plan.near_duplicates, cache)
    return np.union1d(left_out, near)


def _write_blocks(
    plan: PackingPlan, left_out: np.ndarray, tokenizer: PlainTokenizer, folder: Path, shared: str
) -> None:
    """Build into a temporary folder and move it into place, so that a half-written one is never read.

    On a cluster only a folder or URI that all nodes reach will do: with a `shared` cache documents and
    blocks travel by way of that.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    scratch.chmod(0o755)  # a cache may be shared
    staging = f"{shared}/staging/{scratch.name}" if shared else ""
    try:
        _pack_corpus(plan, left_out, tokenizer, f"{staging}/blocks" if staging else str(scratch), staging)
        if staging:
            with suppress(FileNotFoundError):  # without documents no blocks, and no folder
                fetch_folder(f"{staging}/blocks", scratch)
        counts = {split: _settle_split(scratch, split) for split in plan.splits}
        about = {"corpus": plan.corpus.name, "seq_len": plan.seq_len, "seed": plan.seed, "splits": counts}
        write_json(scratch / MANIFEST, {**about, "files": list_sizes(scratch)})
        if _read_manifest(str(folder), lambda text: None) is None:  # else another process was first
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if staging:
            delete_folder(staging)


def _pack_corpus(
    plan: PackingPlan, left_out: np.ndarray, tokenizer: PlainTokenizer, target: str, staging: str
) -> None:
    """Let Ray Data read, pack and write Parquet to `target`, a folder or URI, one sub-folder a split."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.shuffle_strategy = ray.data.context.ShuffleStrategy.SORT_SHUFFLE_PULL_BASED  # no resident actors
    buckets = 1 + _count_text_bytes(plan.corpus) // BUCKET_BYTES
    pack = functools.partial(
        _pack_bucket,
        splits=dict(plan.splits),
        tokenizer=ray.put(tokenizer),
        seq_len=plan.seq_len,
        seed=plan.seed,
        excluded=ray.put(left_out),
    )
    rows = (
        ray.data.from_items(_list_pieces(plan.corpus, staging))
        .map_batches(functools.partial(_read_pieces, buckets=buckets), batch_size=1, batch_format="pandas")
        .groupby("bucket")
        .map_groups(pack, batch_format="pandas")
    )
    rows.write_parquet(target, partition_cols=["split"])


def _settle_split(folder: Path, split: str) -> dict[str, int]:
    """Give a split's folder its plain name and count what is in it."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    target = folder / split
    if (folder / f"split={split}").exists():
        os.replace(folder / f"split={split}", target)
    else:
        target.mkdir()
        schema = pa.schema([(name, pa.list_(pa.int32())) for name in ("bytes", "starts")])
        pq.write_table(schema.empty_table(), target / "empty.parquet")
    table = pq.read_table(target, columns=["bytes", "starts"])
    documents, size = (pc.sum(pc.list_flatten(table[name])).as_py() or 0 for name in ("starts", "bytes"))
    return {"blocks": table.num_rows, "documents": documents, "bytes": size}


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
    splits: Mapping[str, float],
    tokenizer: ObjectRef[PlainTokenizer],
    seq_len: int,
    seed: int,
    excluded: ObjectRef[np.ndarray],
) -> pa.Table:
    """Deduplicate, split, tokenize and pack one bucket of documents into rows of one block each.

    `excluded` are digests of documents to leave out.
    """
    import pyarrow as pa
    import ray

    text, eos = ray.get(tokenizer)
    documents = documents.drop_duplicates("digest")
    documents = documents[~np.isin(documents["digest"].to_numpy().astype(DIGEST), ray.get(excluded))]
    documents = documents.assign(key=key_documents(documents["digest"], seed)).sort_values("key")
    chosen = choose_splits(documents["key"], splits)
    parts = []
    for number, split in enumerate(splits):
        texts = documents["text"].to_numpy()[chosen == number]
        rows = _pack_texts(texts, _parse_tokenizer(text), eos, seq_len)
        bucket = int(documents["bucket"].iloc[0]) if len(documents) else 0
        for name, value in (("bucket", bucket), ("split", split)):
            rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
        parts.append(rows)
    return pa.concat_tables(parts)


def _pack_texts(
    texts: Sequence[str], tokenizer: Tokenizer, eos: int, seq_len: int, batch: int = 1000
) -> pa.Table:
    """Join documents by EOS, cut the stream into blocks, and drop the rest at its end."""
    import pyarrow as pa

    tokens, sizes, starts = [], [], []
    for at in range(0, len(texts), batch):
        chunk = list(texts[at : at + batch])
        # EOS alone joins documents: no BOS where the tokenizer's template would put one
        encodings = tokenizer.encode_batch(chunk, add_special_tokens=False)
        for text, encoding in zip(chunk, encodings, strict=True):
            tokens.append(np.array([*encoding.ids, eos], dtype=np.int32))
            sizes.append(np.append(count_token_bytes(text, encoding.offsets), 0))
            starts.append(np.arange(len(encoding.ids) + 1) == 0)
    count = sum(map(len, tokens)) // seq_len

    def cut(pieces: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([*pieces, np.array([], np.int32)])[: count * seq_len].reshape(count, seq_len)

    def build_rows(table: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(table.astype(np.int32).ravel(), table.shape[1])

    columns = {
        "row": np.arange(count),
        "tokens": build_rows(cut(tokens)),
        "bytes": build_rows(cut(sizes)[:, 1:]),
        "starts": build_rows(cut(starts)),
    }
    return pa.table(columns)


def count_token_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """UTF-8 bytes that each token stands for, from its (start, end) in characters.

    A character that is split over several tokens counts once, with the first of them. Text that a tokenizer
    skips between two tokens counts with the second.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    upto = np.concatenate([[0], np.cumsum(1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF))])
    ends = np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
    return np.diff(upto[ends], prepend=0)


def _read_plain_tokenizer(backbone: Backbone) -> PlainTokenizer:
    """The backbone's tokenizer in plain form."""
    tokenizer = load_tokenizer(backbone)
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()  # some are saved with a limit, which would cut documents
    backend.no_padding()
    return PlainTokenizer(backend.to_str(), tokenizer.eos_token_id)


@functools.lru_cache(maxsize=1)
def _parse_tokenizer(text: str) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)
