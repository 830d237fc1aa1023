"""The documents of a corpus in files, each in the order of their digests.

So the documents whose digests lie in a range are a few row groups of each file: whoever packs, or looks for
documents that come again, goes through a corpus a range at a time. It holds these documents and the row
groups of one file, however large the corpus is. It reads at least one row group of every file for a range,
so more than 32 GiB of text is read about size / 32 GiB times over: merging files would mend that. Digests
are computed once, when a document is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adept_ray.storage.files import measure_files, open_filesystem, read_json, store_bytes, store_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SHARD_BYTES = 64 * 2**20  # of text in a file: what a reading process holds
ROW_GROUP_BYTES = 256 * 2**10  # of text that is read at once
READ_ROWS = 1000  # documents that are held at a time where they come in any order
DIGEST = "S32"  # how NumPy holds digests
WORDS = 8  # of four bytes in a digest; the first one decides its range


@dataclass(frozen=True)
class TextShard:
    """A Parquet file of the columns ``digest``, ``number`` (its place in the order of reading), ``text``."""

    place: str
    """Path or URI."""
    documents: int
    bytes: int
    """Of text, as UTF-8."""
    stored: int = 0
    """Bytes of the file; 0 where an earlier version wrote it."""

    def is_among(self, files: Mapping[str, int]) -> bool:
        """Whether the files of its folder, name → size, have it whole."""
        size = files.get(self.place.rpartition("/")[2])
        return size is not None and self.stored in (0, size)


@dataclass(frozen=True)
class DigestRange:
    """One of so many equal ranges of digests."""

    number: int = 0
    of: int = 1

    @property
    def words(self) -> range:
        """The first four bytes of its digests, as numbers."""
        begin, end = (-(-(number << 32) // self.of) for number in (self.number, self.number + 1))
        return range(begin, end)


@dataclass(frozen=True)
class CorpusIndex:
    """What is known of a corpus once it has been read."""

    shards: tuple[TextShard, ...]
    omitted: str = ""
    """What of it isn't read, in words."""
    used: str = ""
    """How much of what there is was read, in words; empty where that is all."""
    versions: tuple[str, ...] = field(default=())
    """Of the places elsewhere that it was read from."""

    @property
    def text_bytes(self) -> int:
        """Bytes of UTF-8 of all its documents."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def documents(self) -> int:
        """All that aren't blank, repeated ones too."""
        return sum(shard.documents for shard in self.shards)


def store_index(index: CorpusIndex, path: Path) -> None:
    """Write down what a corpus consists of, once all of it is there."""
    store_json(str(path), asdict(index))


def load_index(path: Path) -> CorpusIndex | None:
    """What a corpus consists of; None where it hasn't been read, or not all its files are there."""
    found: dict[str, Any] | None = read_json(str(path))
    if found is None:
        return None
    shards = tuple(TextShard(**each) for each in found.pop("shards"))
    if not are_there(shards):
        return None
    return CorpusIndex(shards, **found | {"versions": tuple(found["versions"])})


def are_there(shards: Iterable[TextShard]) -> bool:
    """Whether all these files are where they were written, in their sizes; a folder is listed once."""
    measured: dict[str, dict[str, int]] = {}
    for shard in shards:
        folder = shard.place.rpartition("/")[0]
        if folder not in measured:
            measured[folder] = measure_files(*open_filesystem(folder))
        if not shard.is_among(measured[folder]):
            return False
    return True


def write_shards(
    texts: Iterable[str], name: Callable[[int], str], limit: float = np.inf
) -> tuple[list[TextShard], bool]:
    """Write the documents that aren't blank, without white space around them, in files of SHARD_BYTES each.

    `name` gives each its path or URI. Returns them, and whether there were `limit` bytes of text, after which
    no more is read.
    """
    shards: list[TextShard] = []
    held: list[bytes] = []
    size = total = 0
    for text in texts:
        if not (raw := text.strip().encode()):
            continue
        held.append(raw)
        size, total = size + len(raw), total + len(raw)
        if size >= SHARD_BYTES or total >= limit:
            shards.append(_write_shard(held, size, name(len(shards))))
            held, size = [], 0
        if total >= limit:
            break
    if held:
        shards.append(_write_shard(held, size, name(len(shards))))
    return shards, total >= limit


def _write_shard(texts: Sequence[bytes], size: int, place: str) -> TextShard:
    import pyarrow as pa
    import pyarrow.parquet as pq

    digests = [hashlib.sha256(text).digest() for text in texts]
    order = sorted(range(len(texts)), key=digests.__getitem__)
    table = pa.table(
        {
            "digest": pa.array([digests[at] for at in order], pa.binary(hashlib.sha256().digest_size)),
            "number": pa.array(order, pa.int64()),
            "text": pa.array([texts[at] for at in order], pa.string()),
        }
    )
    rows = max(1, len(texts) * ROW_GROUP_BYTES // size)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=rows,
        compression="zstd",
        use_dictionary=False,
        write_statistics=["digest"],
    )
    written = memoryview(sink.getvalue())
    store_bytes(place, written)
    return TextShard(place, len(texts), size, written.nbytes)


def read_range(shards: Iterable[TextShard], wanted: DigestRange, columns: Sequence[str]) -> pa.Table:
    """The documents of a range, file after file, each by digest; `columns` are ``digest`` and others."""
    import pyarrow as pa

    schema = pa.schema([("digest", pa.binary(32)), ("number", pa.int64()), ("text", pa.string())])
    empty = schema.empty_table().select(columns)
    return pa.concat_tables([empty, *(_read_part(shard, wanted, columns) for shard in shards)])


def read_distinct(shards: Iterable[TextShard], wanted: DigestRange) -> tuple[pa.Table, int]:
    """The different documents of a range, ``digest`` and ``text``; and how many there are with repeated ones.

    Of a document that is repeated the first is held alone, however often it comes.
    """
    import pyarrow as pa

    seen: set[bytes] = set()
    count, parts = 0, [read_range((), wanted, ["digest", "text"])]
    for shard in shards:
        part = _read_part(shard, wanted, ["digest", "text"])
        new = []
        for at, digest in enumerate(part["digest"].to_pylist()):
            if digest not in seen:
                seen.add(digest)
                new.append(at)
        count += len(part)
        parts.append(part if len(new) == len(part) else part.take(np.array(new, np.int64)))
    return pa.concat_tables(parts), count


def _read_part(shard: TextShard, wanted: DigestRange, columns: Sequence[str]) -> pa.Table:
    with open_shard(shard) as file:
        groups = [
            number
            for number in range(file.num_row_groups)
            if _overlaps(file.metadata.row_group(number).column(0).statistics, wanted.words)
        ]
        table = file.read_row_groups(groups, list(columns), use_threads=False)
    words = take_words(table["digest"])
    begin, end = np.searchsorted(words, [wanted.words.start, wanted.words.stop])
    return table.take(np.arange(begin, end))  # a copy: a slice would keep all of the row groups


def _overlaps(statistics: Any, words: range) -> bool:
    """Whether a row group may hold digests that begin with one of some words."""
    first, last = (int.from_bytes(digest[:4], "big") for digest in (statistics.min, statistics.max))
    return first < words.stop and last >= words.start


def measure_longest(texts: pa.ChunkedArray) -> int:
    """Bytes of UTF-8 of the longest one, 0 if there is none."""
    import pyarrow.compute as pc

    return pc.max(pc.binary_length(texts)).as_py() or 0


def take_words(digests: pa.ChunkedArray) -> np.ndarray:
    """The first four bytes of each digest, as numbers: int64 [N]."""
    parts = [
        np.frombuffer(chunk.buffers()[1], ">u4")[::WORDS][chunk.offset : chunk.offset + len(chunk)]
        for chunk in digests.chunks
    ]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def read_digests(shards: Iterable[TextShard], wanted: DigestRange) -> np.ndarray:
    """The different digests of a range, ascending; 32 bytes each."""
    return np.unique(np.array(read_range(shards, wanted, ["digest"])["digest"].to_pylist(), DIGEST))


def read_with_digests(shards: Iterable[TextShard]) -> Iterator[tuple[bytes, str]]:
    """Digest and text of all documents; holds READ_ROWS at most."""
    for shard in shards:
        with open_shard(shard) as file:
            for batch in file.iter_batches(READ_ROWS, columns=["digest", "text"], use_threads=False):
                yield from zip(batch["digest"].to_pylist(), batch["text"].to_pylist(), strict=True)


def read_in_order(shards: Iterable[TextShard]) -> Iterator[str]:
    """All documents in the order in which they were read; holds one file's."""
    for shard in shards:
        with open_shard(shard) as file:
            yield from file.read(["number", "text"], use_threads=False).sort_by("number")["text"].to_pylist()


def open_shard(shard: TextShard) -> pq.ParquetFile:
    """A file of documents, wherever it lies."""
    import pyarrow.parquet as pq

    filesystem, path = open_filesystem(shard.place)
    return pq.ParquetFile(filesystem.open_input_file(path), pre_buffer=False)
