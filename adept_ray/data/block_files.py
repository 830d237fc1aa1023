"""Packed blocks in files: how they lie there, and tables whose rows are read when they are asked for.

A shard is a file of records of one length, so that a block is found by its number. Only what is asked for is
read, with ``pread``: a process holds no more of a split than the blocks of its batch, however large the split
is. (What is mapped would count as memory of the process that has touched it.)
"""

from __future__ import annotations

import fcntl
import functools
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np

from adept_ray.config.errors import UserError
from adept_ray.config.places import default_cache
from adept_ray.storage.files import copy_file, is_disk_full

FETCHED_AT_ONCE = 8  # shards
OPEN_FILES = 256  # that a process keeps: on a shared disk opening one takes as long as reading from it
LARGEST_SHORT = 2**16  # tokens of a vocabulary whose ids fit into two bytes

Column = Literal["tokens", "bytes", "starts"]
TYPES: dict[Column, type] = {"tokens": np.int32, "bytes": np.int32, "starts": np.bool_}  # of what is read


@dataclass(frozen=True)
class Shard:
    """A file of blocks, as the manifest describes it."""

    name: str
    """In the folder of its set of blocks."""
    blocks: int
    """Blocks in it."""
    tokens: str
    """NumPy's name of the type in which a token id is stored."""
    bytes: str
    """The type in which the bytes are stored that a token stands for."""

    def describe_record(self, seq_len: int) -> np.dtype:
        """How a block lies in the file."""
        return describe_record(seq_len, self.tokens, self.bytes)

    def count_bytes(self, seq_len: int) -> int:
        """Size of the file, bytes."""
        return self.blocks * self.describe_record(seq_len).itemsize


@dataclass(frozen=True)
class BlockFiles:
    """The shards of one split, in their order: all that another process needs to find a block."""

    place: str
    """Folder or URI of the set of blocks."""
    seq_len: int
    shards: tuple[Shard, ...]

    @property
    def folder(self) -> Path:
        """Where this machine reads: there, or a copy in this machine's own cache."""
        if "://" not in self.place:
            return Path(self.place)
        return default_cache() / "blocks" / self.place.rpartition("/")[2]

    @functools.cached_property
    def begins(self) -> np.ndarray:
        """int64 [shards + 1]: number of each shard's first block, and of all blocks."""
        return np.cumsum([0, *(shard.blocks for shard in self.shards)])

    @functools.cached_property
    def records(self) -> tuple[np.dtype, ...]:
        """How a block lies in each shard."""
        return tuple(shard.describe_record(self.seq_len) for shard in self.shards)

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """Where this machine reads each shard."""
        return tuple(str(self.folder / shard.name) for shard in self.shards)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Pickle nothing that is computed: another machine has other paths."""
        return BlockFiles, (self.place, self.seq_len, self.shards)

    def find_missing(self, blocks: range) -> list[Shard]:
        """Shards with some of the `blocks` that this machine doesn't have whole."""
        held = [s for s, at in zip(self.shards, self.begins, strict=False) if overlap(blocks, at, s.blocks)]
        return [shard for shard in held if not self._has(shard)]

    def fetch(self, blocks: range, say: Callable[[str], None] = lambda text: None) -> None:
        """Copy the shards with some of the `blocks` to this machine, if they are elsewhere.

        `say` hears of it. One process of a machine copies and the others wait. Raises :class:`UserError` for
        a folder that isn't there or a disk that is full.
        """
        if not self.find_missing(blocks):
            return
        if "://" not in self.place:
            raise UserError(
                f"token blocks in {self.place} can't be seen from every node (or were deleted): give a "
                "--cache that all nodes reach, a shared folder or a URI"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.folder):
            missing = self.find_missing(blocks)
            size = sum(shard.count_bytes(self.seq_len) for shard in missing)
            if missing:
                say(f"fetches token blocks from {self.place}: {size / 1e9:.2f} GB")
            try:
                with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
                    list(pool.map(self._fetch_shard, missing))
            except OSError as problem:
                if not is_disk_full(problem):
                    raise
                raise UserError(
                    f"no space left for {size / 1e9:.2f} GB of token blocks in {self.folder}: make room, or "
                    "set ADEPT_RAY_CACHE to a folder with more"
                ) from None

    def read(self, column: Column, blocks: range) -> np.ndarray:
        """A column of consecutive blocks: int32 or bool [N, T], or [N, T − 1] of ``bytes``."""
        parts: list[np.ndarray] = [np.empty((0, self.count_width(column)), TYPES[column])]
        for number, at in enumerate(self.begins[:-1]):
            if held := overlap(blocks, at, self.shards[number].blocks):
                record = self.records[number]
                data = self._read_bytes(number, held.start * record.itemsize, len(held) * record.itemsize)
                parts.append(self._unpack(column, np.frombuffer(data, record)[column]))
        return np.concatenate(parts)

    def read_rows(self, column: Column, blocks: Sequence[int]) -> np.ndarray:
        """A column of some blocks, in the order in which they are given."""
        found: np.ndarray = np.empty((len(blocks), self.count_width(column)), TYPES[column])
        for row, (number, begin, stored) in enumerate(self._locate(column, blocks)):
            data = np.frombuffer(self._read_bytes(number, begin, stored.itemsize), stored.base)
            found[row] = self._unpack(column, data[None])[0]
        return found

    def read_ahead(self, column: Column, blocks: Sequence[int]) -> None:
        """Let the kernel begin to read a column of some blocks; this doesn't wait for it."""
        for number, begin, stored in self._locate(column, blocks):
            with suppress(OSError):
                os.posix_fadvise(self._open(number), begin, stored.itemsize, os.POSIX_FADV_WILLNEED)

    def count_width(self, column: Column) -> int:
        """Values of a block in a column."""
        return self.seq_len - (column == "bytes")

    def _locate(self, column: Column, blocks: Sequence[int]) -> Iterator[tuple[int, int, np.dtype]]:
        """Number of the shard, byte of that file and type of a column of each of some blocks."""
        owners = np.searchsorted(self.begins, blocks, "right") - 1
        for block, number in zip(blocks, owners.tolist(), strict=True):
            record = self.records[number]
            stored, offset = record.fields[column][:2]  # type: ignore[index]  # a record has fields
            yield number, (block - int(self.begins[number])) * record.itemsize + offset, stored

    def _unpack(self, column: Column, stored: np.ndarray) -> np.ndarray:
        if column == "starts":
            return np.unpackbits(stored, axis=1, count=self.seq_len).view(bool)
        return stored.astype(TYPES[column])

    def _read_bytes(self, number: int, begin: int, size: int) -> bytearray:
        """Bytes of a shard. Raises :class:`UserError` where it has become shorter, or is gone."""
        data = bytearray(size)
        rest = memoryview(data)
        try:
            file = self._open(number)
            while rest and (read := os.preadv(file, [rest], begin)):
                rest, begin = rest[read:], begin + read
        except FileNotFoundError:
            pass
        if rest:
            path = self.paths[number]
            raise UserError(f"{path} isn't whole any more: give the command again, and it is made anew")
        return data

    def _open(self, number: int) -> int:
        """The descriptor of a shard; it stays open."""
        path = self.paths[number]
        return open_once(path, os.stat(path).st_ino).number

    def _has(self, shard: Shard) -> bool:
        try:
            return (self.folder / shard.name).stat().st_size == shard.count_bytes(self.seq_len)
        except FileNotFoundError:
            return False

    def _fetch_shard(self, shard: Shard) -> None:
        copy_file(f"{self.place}/{shard.name}", self.folder / shard.name)


@dataclass(frozen=True)
class StoredTable:
    """A column of consecutive blocks of a split, like an array whose rows are read when they are asked for.

    It is small, however many rows it has: this is what travels to the workers.
    """

    files: BlockFiles
    column: Column
    blocks: range
    """Their numbers in the split."""

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.files.count_width(self.column)

    @overload
    def __getitem__(self, rows: slice) -> StoredTable: ...
    @overload
    def __getitem__(self, rows: list[int]) -> np.ndarray: ...
    def __getitem__(self, rows: slice | list[int]) -> StoredTable | np.ndarray:
        """Some consecutive rows, not read yet, or those of a list as an array."""
        if isinstance(rows, slice):
            return StoredTable(self.files, self.column, self.blocks[rows])
        return self.files.read_rows(self.column, [self.blocks[row] for row in rows])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """All rows."""
        return np.asarray(self.files.read(self.column, self.blocks), dtype)

    def fetch(self, say: Callable[[str], None] = lambda text: None) -> None:
        """See :meth:`BlockFiles.fetch`."""
        self.files.fetch(self.blocks, say)


@dataclass(frozen=True)
class JoinedTable:
    """The rows of several tables of the same width, one after the other; nothing is copied."""

    parts: tuple[BlockTable, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.parts[0].shape[1]

    @overload
    def __getitem__(self, rows: slice) -> JoinedTable: ...
    @overload
    def __getitem__(self, rows: list[int]) -> np.ndarray: ...
    def __getitem__(self, rows: slice | list[int]) -> JoinedTable | np.ndarray:
        """Some consecutive rows, or those of a list as an array."""
        if isinstance(rows, slice):
            begins = np.cumsum([0, *map(len, self.parts)])
            every = range(len(self))[rows]
            cut = (
                part[slice(each.start, each.stop)]
                for part, at in zip(self.parts, begins, strict=False)
                for each in [overlap(every, at, len(part))]
            )
            return JoinedTable(tuple(cut))
        found = np.empty((len(rows), self.shape[1]), self.parts[0][[]].dtype)
        for part, places, own in self.share_out(rows):
            found[places] = part[own]
        return found

    def share_out(self, rows: list[int]) -> Iterator[tuple[BlockTable, np.ndarray, list[int]]]:
        """Each part, which of `rows` are its own (bool [rows]), and their numbers in it."""
        begins = np.cumsum([0, *map(len, self.parts)])
        wanted = np.array([range(len(self))[row] for row in rows], np.int64)
        owners = np.searchsorted(begins, wanted, "right") - 1
        for number, part in enumerate(self.parts):
            here = owners == number
            yield part, here, (wanted[here] - begins[number]).tolist()

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """All rows."""
        return np.concatenate([np.asarray(part, dtype) for part in self.parts])


BlockTable = np.ndarray | StoredTable | JoinedTable
"""A column of blocks, a row each: in memory or in files."""


def list_stored(table: BlockTable) -> Iterator[StoredTable]:
    """What of a table lies in files."""
    if isinstance(table, StoredTable):
        yield table
    elif isinstance(table, JoinedTable):
        for part in table.parts:
            yield from list_stored(part)


def describe_record(seq_len: int, token_type: str, size_type: str) -> np.dtype:
    """How a block lies in a file: its ids, the bytes of all but the first, a bit a token for the starts."""
    shapes = {
        "tokens": (token_type, seq_len),
        "bytes": (size_type, seq_len - 1),
        "starts": ("u1", -(-seq_len // 8)),
    }
    return np.dtype([(column, kind, (width,)) for column, (kind, width) in shapes.items()])


def read_ahead(table: BlockTable, rows: list[int]) -> None:
    """Let the kernel begin to read rows of a table, as far as they lie in files; this doesn't wait for it."""
    if isinstance(table, StoredTable):
        table.files.read_ahead(table.column, [table.blocks[row] for row in rows])
    elif isinstance(table, JoinedTable):
        for part, _, own in table.share_out(rows):
            read_ahead(part, own)


def choose_token_type(vocabulary: int) -> str:
    """NumPy's name of the smallest type that holds every id of a vocabulary of so many tokens."""
    return "<u2" if vocabulary <= LARGEST_SHORT else "<u4"


def choose_size_type(largest: int) -> str:
    """NumPy's name of the smallest type that holds the bytes that any token stands for."""
    return next(name for name in ("|u1", "<u2", "<u4") if largest <= np.iinfo(name).max)


def overlap(blocks: range, begin: int, count: int) -> range:
    """Which of `count` blocks from number `begin` on are among `blocks`; counted from `begin`."""
    first, end = max(blocks.start - begin, 0), min(blocks.stop - begin, count)
    return range(int(first), int(max(first, end)))


class OpenFile:
    """A file that is open as long as this object is there."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)


@functools.lru_cache(OPEN_FILES)
def open_once(path: str, inode: int) -> OpenFile:
    """A file, which stays open until so many others were read, or another one has taken its place."""
    return OpenFile(path)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out that come here with the same folder."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
