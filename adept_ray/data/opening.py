"""Files, wherever they lie, opened for reading in one place."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from typing import BinaryIO, cast

TAIL = 64 * 2**10  # bytes at a file's end in which most kinds say what is in them
SEQUENTIAL = 4 * 2**20  # bytes of one request where a file is read from its beginning on
HUB = "hf://"


class RangedFile(io.RawIOBase):
    """A file that is read by ranges of bytes, a request each: what is held is read from memory.

    `fetch` gives the bytes from a first one to before a last one; of those that nobody announced, at least
    `ahead` come at once.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, ahead: int = 0) -> None:
        self._fetch, self.size, self._ahead = fetch, size, ahead
        self._at = self._start = 0
        self._held = b""

    def hold(self, start: int, end: int) -> None:
        """Fetch these bytes, in place of those that were held."""
        end = min(end, self.size)
        self._held = b""  # first, so that there are never two
        self._start, self._held = start, self._fetch(start, end) if end > start else b""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from what is held, else with a request for it; returns the bytes that came."""
        start, end = self._at, min(self._at + len(buffer), self.size)
        if end <= start:
            return 0
        if start < self._start or end > self._start + len(self._held):
            # Zip archives and Parquet files are first read at their ends, a few bytes at a time.
            if end == self.size:
                self.hold(min(start, max(0, self.size - TAIL)), end)
            else:
                self.hold(start, max(end, start + self._ahead))
        piece = self._held[start - self._start : end - self._start]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in the file, in bytes; nothing is read."""
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if place < 0:
            raise OSError(errno.EINVAL, "there is nothing before a file's beginning")
        self._at = place
        return place

    def tell(self) -> int:
        """Where the file is read next, in bytes."""
        return self._at

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True


def open_ranged(place: str, ahead: int = 0) -> RangedFile:
    """A file of the hub, ``hf://…``, or a local one, read by ranges; see :class:`RangedFile` for `ahead`.

    Raises what the hub's client raises, and FileNotFoundError.
    """
    if not place.startswith(HUB):
        local = open(place, "rb")  # noqa: SIM115 - it lives as long as what reads it

        def read_local(start: int, end: int) -> bytes:
            local.seek(start)
            return local.read(end - start)

        return RangedFile(read_local, local.seek(0, io.SEEK_END), ahead)
    from huggingface_hub import HfFileSystem, constants

    file = HfFileSystem(endpoint=constants.ENDPOINT).open(place, "rb", cache_type="none")

    def read(start: int, end: int) -> bytes:
        file.seek(start)
        return cast(bytes, file.read(end - start))

    return RangedFile(read, file.size, ahead)


def open_sequential(place: str) -> BinaryIO:
    """A file as :func:`open_ranged` finds it, read from its beginning on in large pieces.

    Nothing stays open on the way, so a reader may stop anywhere.
    """
    return cast(BinaryIO, io.BufferedReader(open_ranged(place), SEQUENTIAL))
