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
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adept_ray.config.validation import fingerprint
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
    from tokenizers import Tokenizer

    from adept_ray.data.corpora import CorpusFiles

from adept_ray.data.blocks import BlockSet

FORMAT = 2  # raise when the same inputs would give other blocks
GENERAL_SPLITS = {"probe": 0.2, "validation": 0.2, "train": 0.2, "test": 0.4}  # train: for replay
DOMAIN_SPLITS = {"train": 0.9, "validation": 0.05, "test": 0.05}
BUCKET_BYTES = 256 * 2**20  # documents are packed in groups of about this much text
READ_ROWS = 10_000  # documents that a reading task holds at a time
MANIFEST = "blocks.json"


def build_blocks(
    corpus: CorpusFiles,
    splits: Mapping[str, float],
    tokenizer_source: str,
    tokenizer_revision: str | None,
    seq_len: int,
    seed: int,
    cache: Path,
    apart_from: CorpusFiles | None = None,
    shared: str = "",
    say: Callable[[str], None] = lambda text: None,
    trusted: bool = False,
) -> BlockSet:
    """Token blocks of `corpus`, split by document; read from the cache when they were built before.

    Documents that are also in `apart_from` are left out, so that general and domain splits never
    share one. With a URI, `shared`, that is the cache and the folder `cache` holds copies; `say` hears of a
    set that isn't whole. Python code that comes with the tokenizer is run if it is `trusted`. Needs a running
    Ray. Raises :class:`UserError` for a tokenizer that can't be used.
    """
    tokenizer = _plain_tokenizer(tokenizer_source, tokenizer_revision, trusted)
    name = fingerprint(
        FORMAT,
        corpus.fingerprint,
        apart_from.fingerprint if apart_from else None,
        fingerprint(*tokenizer),
        seq_len,
        dict(splits),
        seed,
    )
    folder = cache / "blocks" / name
    place = f"{shared}/blocks/{name}" if shared else ""
    manifest = _manifest(str(folder), say)
    if manifest is None and place and (there := _manifest(place, say)):
        fetch_folder(place, folder, [*there["files"], MANIFEST])
        manifest = _manifest(str(folder), say)
    if manifest is None:
        _write(folder, shared, corpus, apart_from, splits, tokenizer, seq_len, seed)
        if place:
            publish_folder(folder, place, MANIFEST)
        manifest = _manifest(str(folder), say)
    return BlockSet(folder, name, manifest["splits"], dict(splits))


def _manifest(place: str, say: Callable[[str], None]) -> Any:
    """What a set of blocks says of itself; None where there is none, or not all of one, which `say` hears."""
    manifest = read_json(f"{place}/{MANIFEST}", say)
    if manifest and not has_all_files(*open_filesystem(place), manifest.get("files", {})):
        say(f"token blocks in {place} aren't whole and are built again")
        return None
    return manifest


def _write(
    folder: Path,
    shared: str,
    corpus: CorpusFiles,
    apart_from: CorpusFiles | None,
    splits: Mapping[str, float],
    tokenizer: tuple[str, int],
    seq_len: int,
    seed: int,
) -> None:
    """Build into a temporary folder and move it into place, so that a half-written one is never read.

    On a cluster only a folder or URI that all nodes reach will do: with a `shared` cache documents and
    blocks travel by way of that.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.shuffle_strategy = ray.data.context.ShuffleStrategy.SORT_SHUFFLE_PULL_BASED  # no resident actors
    folder.parent.mkdir(parents=True, exist_ok=True)
    excluded = ray.put(_digests(apart_from) if apart_from else np.array([], dtype="S32"))
    buckets = 1 + _text_bytes(corpus) // BUCKET_BYTES
    pack = functools.partial(
        _pack_bucket,
        splits=dict(splits),
        tokenizer=ray.put(tokenizer),
        seq_len=seq_len,
        seed=seed,
        excluded=excluded,
    )
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    scratch.chmod(0o755)  # a cache may be shared
    staging = f"{shared}/staging/{scratch.name}" if shared else ""
    try:
        rows = (
            ray.data.from_items(_pieces(corpus, staging))
            .map_batches(functools.partial(_read, buckets=buckets), batch_size=1, batch_format="pandas")
            .groupby("bucket")
            .map_groups(pack, batch_format="pandas")
        )
        rows.write_parquet(f"{staging}/blocks" if staging else str(scratch), partition_cols=["split"])
        if staging:
            with suppress(FileNotFoundError):  # of no document there is no block, and of no block no folder
                fetch_folder(f"{staging}/blocks", scratch)
        counts = {split: _settle(scratch, split) for split in splits}
        about = {"corpus": corpus.name, "seq_len": seq_len, "seed": seed, "splits": counts}
        write_json(scratch / MANIFEST, {**about, "files": list_sizes(scratch)})
        if _manifest(str(folder), lambda text: None) is None:  # else another process was first
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if staging:
            delete_folder(staging)


def _settle(folder: Path, split: str) -> dict[str, int]:
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


def _pieces(corpus: CorpusFiles, staging: str) -> list[dict[str, Any]]:
    """Row groups of the corpus, a task each; Ray's own Parquet reader starts processes for their footers.

    With a URI, `staging`, the files are copied there first, where every node can read them.
    """
    import pyarrow.parquet as pq

    pieces = []
    for number, file in enumerate(corpus.files):
        place = f"{staging}/corpus/{number}.parquet" if staging else str(file)
        if staging:
            upload_file(file, place)
        groups = range(pq.ParquetFile(file).num_row_groups)
        pieces += [{"file": place, "group": group} for group in groups]
    return pieces


def _read(pieces: pd.DataFrame, buckets: int) -> Iterator[pd.DataFrame]:
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
    digests = [_digest(text) for text in texts]
    return texts.to_frame("text").assign(
        digest=digests, bucket=[int.from_bytes(digest[:4], "big") % buckets for digest in digests]
    )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.strip().encode()).digest()


def _text_bytes(corpus: CorpusFiles) -> int:
    """UTF-8 bytes of all documents; unlike the files' sizes the same in whatever order they come."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    batches = (b for file in corpus.files for b in pq.ParquetFile(file).iter_batches(columns=["text"]))
    return sum(pc.sum(pc.binary_length(batch["text"])).as_py() or 0 for batch in batches)


def _digests(corpus: CorpusFiles) -> np.ndarray:
    """Content digests of all documents of a corpus, computed here: hashing is faster than starting tasks."""
    import pyarrow.parquet as pq

    found: set[bytes] = set()
    for file in corpus.files:
        for batch in pq.ParquetFile(file).iter_batches(columns=["text"]):
            found.update(_digest(text or "") for text in batch["text"].to_pylist())
    return np.array(sorted(found), dtype="S32")


def _pack_bucket(
    documents: pd.DataFrame,
    splits: Mapping[str, float],
    tokenizer: Any,
    seq_len: int,
    seed: int,
    excluded: Any,
) -> pa.Table:
    """Deduplicate, split, tokenize and pack one bucket of documents into rows of one block each."""
    import pyarrow as pa
    import ray

    text, eos = ray.get(tokenizer)
    documents = documents.drop_duplicates("digest")
    documents = documents[~np.isin(documents["digest"].to_numpy().astype("S32"), ray.get(excluded))]
    keys = [hashlib.sha256(f"{seed}:".encode() + digest).digest() for digest in documents["digest"]]
    documents = documents.assign(key=keys).sort_values("key")
    draws = np.array([int.from_bytes(key[:8], "big") / 2**64 for key in documents["key"]])
    edges = np.cumsum(list(splits.values()))
    chosen = np.searchsorted(edges, draws * edges[-1], side="right")
    parts = []
    for number, split in enumerate(splits):
        texts = documents["text"].to_numpy()[chosen == number]
        rows = _pack(texts, _tokenizer(text), eos, seq_len)
        bucket = int(documents["bucket"].iloc[0]) if len(documents) else 0
        for name, value in (("bucket", bucket), ("split", split)):
            rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
        parts.append(rows)
    return pa.concat_tables(parts)


def _pack(texts: Sequence[str], tokenizer: Tokenizer, eos: int, seq_len: int, batch: int = 1000) -> pa.Table:
    """Join documents by EOS and cut the stream into blocks; what is left over at the end is dropped."""
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

    def rows(table: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(table.astype(np.int32).ravel(), table.shape[1])

    columns = {
        "row": np.arange(count),
        "tokens": rows(cut(tokens)),
        "bytes": rows(cut(sizes)[:, 1:]),
        "starts": rows(cut(starts)),
    }
    return pa.table(columns)


def count_token_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """UTF-8 bytes that each token stands for, from its (start, end) in characters.

    A character split over several tokens is counted once, with the first of them; what a tokenizer
    skips between two tokens counts with the second.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    upto = np.concatenate([[0], np.cumsum(1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF))])
    ends = np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
    return np.diff(upto[ends], prepend=0)


def _plain_tokenizer(source: str, revision: str | None, trusted: bool) -> tuple[str, int]:
    """A tokenizer as JSON, and its EOS id: what workers read in no time, without importing transformers."""
    from adept_ray.data.loading import load_tokenizer

    tokenizer = load_tokenizer(source, revision, trusted)
    tokenizer.backend_tokenizer.no_truncation()  # some are saved with a limit, which would cut documents
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id


@functools.lru_cache(maxsize=1)
def _tokenizer(text: str) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)
