"""Rows of files, and a sample of them: a file is read in pieces, by a reader of its kind.

A row is a mapping of columns. What is text and no table has rows that are a :class:`PlainText`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from adept_ray.config.errors import BadContent

Row = Mapping[str, object]
Located = tuple[str, Row]
"""Where a row lies, for a message, and the row."""
AT_ONCE = 8  # files that are read in turn
MOST_NAMED = 3  # files in a note; of the others their number is enough


class PlainText(dict[str, object]):
    """A row whose ``text`` is a whole document, whatever the column of text is called elsewhere."""


class Reader(Protocol):
    """A file that is opened when something of it is asked for."""

    def list_pieces(self) -> Sequence[object]:
        """Its pieces, each to be read by itself."""

    def measure(self, piece: object) -> int:
        """About how many bytes of text a piece holds, from what is known of it without reading it."""

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """The rows of a piece, with at least those of the `columns` that there are."""

    def close(self) -> None:
        """Let go of what is open and known of the file; it is opened anew where it is read again."""


class FilePiece(NamedTuple):
    """A piece of one of some files."""

    file: int
    """Its number among them."""
    piece: object
    size: int
    """About how many bytes of text it holds."""


@dataclass
class Omissions:
    """What of a corpus isn't read, for the note that the report shows."""

    skip_bad: bool = False
    """Leave out members that can't be read, in place of refusing them."""
    bad: list[str] = field(default_factory=list)
    """What was wrong with each of them."""
    other: list[str] = field(default_factory=list)
    """Members, and files elsewhere, that are of no format that is read."""

    def guard(self, rows: Iterator[Located]) -> Iterator[Located]:
        """The rows of a member; what is wrong with its content is raised, or counted.

        A package that is missing or a place that doesn't answer is no fault of the member's, so it is raised.
        """
        try:
            yield from rows
        except BadContent as problem:
            if not self.skip_bad:
                raise BadContent(f"{problem} (--skip-bad leaves out such members of archives)") from None
            self.bad.append(str(problem))

    def describe(self) -> str:
        """What wasn't read, empty where all was."""
        count = f"{len(self.bad)} bad member{'s' * (len(self.bad) > 1)}"
        bad = f"{count} of archives skipped, the first: {self.bad[0]}" if self.bad else ""
        other = f"left out: {list_names(self.other)}" if self.other else ""
        return "; ".join(filter(None, (bad, other)))


def list_names(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def read_all(reader: Reader, columns: Sequence[str]) -> Iterator[Located]:
    """The rows of a file, one piece after the other."""
    for piece in reader.list_pieces():
        yield from reader.read(piece, columns)


def sample_pieces(readers: Sequence[Reader], seed: str) -> Iterator[FilePiece]:
    """All pieces of some files, in such an order that the first ones are a sample of all.

    Files are taken in a random order, :data:`AT_ONCE` in turn, a random piece of each. The order follows from
    `seed` alone, so whoever reads further has the same pieces first. A file is looked into when its first
    piece is asked for, and closed behind its last one.
    """
    order = random.Random(seed).sample(range(len(readers)), len(readers))
    for at in range(0, len(order), AT_ONCE):
        here = deque(
            (number, iterate_pieces(readers[number], f"{seed} {number}"))
            for number in order[at : at + AT_ONCE]
        )
        while here:
            number, pieces = here.popleft()
            if (piece := next(pieces, None)) is not None:
                yield FilePiece(number, piece, readers[number].measure(piece))
                here.append((number, pieces))
            else:
                readers[number].close()


def sample_rows(readers: Sequence[Reader], columns: Sequence[str], seed: str) -> Iterator[Located]:
    """All rows of some files, in such an order that the first ones are a sample of all: by their pieces."""
    for file, piece, _ in sample_pieces(readers, seed):
        yield from readers[file].read(piece, columns)


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
        folder = getattr(piece, "folder", "")
        by_folder.setdefault(folder, []).append(number)
    spread = [
        ((at + drawn.random()) / len(numbers), number)
        for numbers in by_folder.values()
        for at, number in enumerate(numbers)
    ]
    for _, number in sorted(spread):
        yield pieces[number]
