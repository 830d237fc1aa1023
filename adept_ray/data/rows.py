"""Readers of rows, one for each kind of file: what a file holds, in pieces of which a sample can be read.

A row is a mapping of columns. A file of plain text has one row, whose only column is ``text``.
"""

from __future__ import annotations

import gzip
import json
import random
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from adept_ray.config.errors import UserError
from adept_ray.data.opening import RangedFile, open_ranged, open_sequential

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Row = Mapping[str, object]
Located = tuple[str, Row]
"""Where a row lies, for a message, and the row."""
PARQUET, LINES = (".parquet",), (".jsonl", ".ndjson", ".jsonl.gz")
AT_ONCE = 8  # files that are read in turn
RUN_BYTES = 2**14, 2**20  # of an archive that are fetched at once: a 256th of it, within these bounds
AHEAD = 4 * 2**20  # where one member is larger, it comes in pieces of that many


class Reader(Protocol):
    """A file that is opened when something of it is asked for."""

    def list_pieces(self) -> Sequence[object]:
        """Its pieces, each to be read by itself."""

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """The rows of a piece, with at least those of the `columns` that there are."""


class ParquetReader:
    """A Parquet file; its pieces are its row groups."""

    def __init__(self, place: str, where: str) -> None:
        self._place, self._where = place, where

    @cached_property
    def _file(self) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        return pq.ParquetFile(open_ranged(self._place))

    def list_pieces(self) -> Sequence[object]:
        """Numbers of the row groups."""
        return range(self._file.num_row_groups)

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """The rows of a row group, of which only the `columns` are fetched, by this thread alone.

        Where a reader left off in the middle, threads that go on reading would meet Python's end.
        """
        group = cast(int, piece)
        present = self._file.schema_arrow.names
        wanted = [name for name in columns if name in present]
        if len(wanted) < len(columns):
            wanted = present  # whoever looks for the others says which there are
        before = sum(self._file.metadata.row_group(each).num_rows for each in range(group))
        batches = self._file.iter_batches(1024, [group], wanted, use_threads=False)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, before + 1):
            yield f"{self._where}, row {number}", row


class LinesReader:
    """A file of one JSON object a line, gzipped or not; it is one piece."""

    def __init__(self, place: str, where: str) -> None:
        self._where, self._place = where, place

    def list_pieces(self) -> Sequence[object]:
        """The whole file."""
        return (0,)

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """Its rows, from the first on."""
        with open_sequential(self._place) as file:
            lines = gzip.GzipFile(fileobj=file) if self._place.endswith(".gz") else file
            yield from parse_lines(cast(BinaryIO, lines), self._where)


def parse_lines(lines: BinaryIO, where: str) -> Iterator[Located]:
    """The rows of lines of JSON. Raises :class:`UserError` for what is no object."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{where}, row {number}: not valid JSON") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}, row {number}: must be a JSON object, not {type(row).__name__}")
        yield f"{where}, row {number}", row


@dataclass(frozen=True)
class Members:
    """Which members of an archive are read."""

    pattern: str
    """As :mod:`fnmatch` takes it: ``*.txt`` are those of all folders."""
    skip: tuple[str, ...] = ()
    """Names of folders whose members are left out."""

    def has(self, name: str) -> bool:
        """Whether the member of that name is one."""
        return fnmatch(name, self.pattern) and not set(name.split("/")[:-1]) & set(self.skip)


@dataclass(frozen=True)
class Run:
    """Members that lie side by side in an archive."""

    start: int
    end: int
    """Bytes of the archive, from the first to before the last."""
    members: tuple[zipfile.ZipInfo, ...]


class ZipReader:
    """A zip archive, whose list of members is read once; its pieces are runs of 1 MiB at most, or one member.

    The list takes about half a kB of memory a member.
    """

    def __init__(self, place: str, where: str, members: Members) -> None:
        self._place, self._where, self._chosen = place, where, members

    @cached_property
    def _file(self) -> RangedFile:
        return open_ranged(self._place, ahead=AHEAD)

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(cast(BinaryIO, self._file))

    def list_pieces(self) -> Sequence[object]:
        """Runs of members that lie side by side; where a folder ends, a run ends that is worth a request."""
        infos = sorted(self._archive.infolist(), key=lambda info: info.header_offset)
        ends = [info.header_offset for info in infos[1:]] + [self._archive.start_dir]
        wanted = min(max(self._file.size // 256, RUN_BYTES[0]), RUN_BYTES[1])
        runs: list[Run] = []
        begun: list[zipfile.ZipInfo] = []
        last = 0
        for info, end in zip(infos, ends, strict=True):
            if not self._chosen.has(info.filename):
                continue
            if begun:
                size = last - begun[0].header_offset
                other = name_folder(info) != name_folder(begun[0])
                apart = info.header_offset - last > wanted // 8
                if size >= wanted or apart or (other and size >= wanted // 8):
                    runs.append(Run(begun[0].header_offset, last, tuple(begun)))
                    begun = []
            begun.append(info)
            last = end
        if begun:
            runs.append(Run(begun[0].header_offset, last, tuple(begun)))
        return runs

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """The documents of a run, or the rows of its .jsonl files; one request brings them all."""
        run = cast(Run, piece)
        self._file.hold(run.start, min(run.end, run.start + AHEAD))
        for info in run.members:
            where = f"{self._where}, {info.filename}"
            with self._archive.open(info) as member:
                if info.filename.endswith(LINES[:2]):
                    yield from parse_lines(cast(BinaryIO, member), where)
                    continue
                try:
                    yield where, {"text": member.read().decode()}
                except UnicodeDecodeError as problem:
                    raise UserError(f"{where}: byte {problem.start + 1} is not UTF-8") from None


def name_folder(info: zipfile.ZipInfo) -> str:
    """The folder of a member."""
    return info.filename.rpartition("/")[0]


def sample_rows(readers: Sequence[Reader], columns: Sequence[str], seed: str) -> Iterator[Located]:
    """All rows of some files, in such an order that the first ones are a sample of all.

    Files are taken in a random order, :data:`AT_ONCE` in turn, a random piece of each. The order follows from
    `seed` alone, so whoever reads further has the same rows first.
    """
    order = random.Random(seed).sample(range(len(readers)), len(readers))
    for at in range(0, len(order), AT_ONCE):
        group = [(number, readers[number]) for number in order[at : at + AT_ONCE]]
        here = deque((reader, iterate_pieces(reader, f"{seed} {number}")) for number, reader in group)
        while here:
            reader, pieces = here.popleft()
            if (piece := next(pieces, None)) is not None:
                yield from reader.read(piece, columns)
                here.append((reader, pieces))


def iterate_pieces(reader: Reader, seed: str) -> Iterator[object]:
    """The pieces of a file in a random order; the file is looked into when the first one is asked for.

    Where pieces have a folder, any beginning of that order has of each folder its share.
    """
    pieces = reader.list_pieces()
    drawn = random.Random(seed)
    order = drawn.sample(range(len(pieces)), len(pieces))
    by_folder: dict[str, list[int]] = {}
    for number in order:
        piece = pieces[number]
        folder = name_folder(piece.members[0]) if isinstance(piece, Run) else ""
        by_folder.setdefault(folder, []).append(number)
    spread = [
        ((at + drawn.random()) / len(numbers), number)
        for numbers in by_folder.values()
        for at, number in enumerate(numbers)
    ]
    for _, number in sorted(spread):
        yield pieces[number]
