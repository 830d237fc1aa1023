"""Files, wherever they lie, opened for reading in one place."""

from __future__ import annotations

import errno
import functools
import io
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, cast

from adept_ray.config.errors import BadContent, UserError, shorten_error
from adept_ray.config.os_faults import describe_os_fault, explain_os_faults
from adept_ray.config.places import split_query
from adept_ray.data.uris import open_uri

TAIL = 64 * 2**10  # bytes at a file's end in which most kinds say what is in them
SEQUENTIAL = 4 * 2**20  # bytes of one request where a file is read from its beginning on
ASSUMED_SIZE = 2**20  # bytes of a file of which nobody says how large it is
UNPACKED = 4  # bytes of text that one of a compressed file stands for, about
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Ending → the compression's name."""
XZ_BYTES = 2**16  # packed ones that are unpacked at once
SHORT_ENDINGS = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}


class RangedFile(io.RawIOBase):
    """A file that is read by ranges of bytes, a request each: what is held is read from memory.

    `fetch` gives the bytes from a first one to before a last one; of those that nobody announced, at least
    `ahead` come at once.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, ahead: int = 0) -> None:
        self._fetch, self.size, self.ahead = fetch, size, ahead
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
                self.hold(start, max(end, start + self.ahead))
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
    """A file of this machine or behind a URI, read by ranges; see :class:`RangedFile` for `ahead`.

    Raises :class:`UserError` for what can't be opened, and of the hub, ``hf://…``, what its client raises.
    """
    if "://" in place:
        fetch, size = open_uri(place)
        return RangedFile(fetch, size, ahead)
    with explain_os_faults(place), open(place, "rb") as local:
        size = local.seek(0, io.SEEK_END)

    def read_local(start: int, end: int) -> bytes:
        with open(place, "rb") as local:  # it isn't kept open, for there may be more than a process may open
            local.seek(start)
            return local.read(end - start)

    return RangedFile(read_local, size, ahead)


@dataclass(frozen=True)
class Content:
    """What a file holds, wherever it lies: by itself or in an archive."""

    name: str
    """Its path, whose ending says how it is compressed and of which format it is."""
    where: str
    """How messages name it."""
    open_raw: Callable[[], BinaryIO]
    """Opens its bytes as they lie there."""
    inside: bool = False
    """It is a member of an archive, so that going back in it is dear."""
    size: int | None = None
    """Bytes of the file as it lies there, where that is known before it is opened."""

    @property
    def text_size(self) -> int:
        """About how many bytes it has without compression."""
        size = ASSUMED_SIZE if self.size is None else self.size
        return size * UNPACKED if self.compression else size

    @property
    def format(self) -> str:
        """Ending of its format, such as ``.jsonl``; empty if it has none."""
        return split_endings(self.name)[0]

    @property
    def compression(self) -> str:
        """Ending of its compression, such as ``.gz``; empty if it has none."""
        return split_endings(self.name)[1]

    def open_sequential(self) -> BinaryIO:
        """Its content without compression, from the beginning on, fetched in large pieces.

        Nothing stays open on the way, so a reader may stop anywhere.
        """
        raw = self.open_raw()
        if not self.inside:
            raw = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), SEQUENTIAL))
        return decompress(raw, self.compression)

    def open_ranged(self) -> BinaryIO:
        """Its content without compression, for a reader that jumps; unpacked first where that can't be."""
        if not self.inside and not self.compression:
            return self.open_raw()
        unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as what reads it
        into = f"{self.where}, unpacked into {tempfile.gettempdir()}"
        with self.open_sequential() as stream, explain_os_faults(into):
            shutil.copyfileobj(stream, unpacked, SEQUENTIAL)
        unpacked.seek(0)
        return cast(BinaryIO, unpacked)


def locate_content(place: str, where: str = "", size: int | None = None) -> Content:
    """The content of a file by itself, of this machine or behind a URI; messages name it by `where`.

    It may be sent to other processes. `size` are the bytes of a file elsewhere, where they are known.
    """
    if size is None and "://" not in place:
        with suppress(OSError):  # whoever opens it says what is wrong
            size = os.stat(place).st_size
    return Content(name_in_place(place), where or place, functools.partial(_open, place), size=size)


def _open(place: str) -> BinaryIO:
    return cast(BinaryIO, open_ranged(place))


def name_in_place(place: str) -> str:
    """The path in a place, without what a URI asks for behind it."""
    return split_query(place)[0]


def split_endings(name: str) -> tuple[str, str]:
    """Endings of a file's format and of its compression, in small letters; empty where it has none."""
    name = name.lower().rpartition("/")[2]
    for short, long in SHORT_ENDINGS.items():
        name = name.removesuffix(short) + long * name.endswith(short)
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    stem, dot, ending = name.removesuffix(compression).rpartition(".")
    return (dot + ending if stem else ""), compression


def decompress(stream: BinaryIO, compression: str) -> BinaryIO:
    """The content of a compressed stream, all of its parts one after the other."""
    if not compression:
        return stream
    if compression == ".xz":
        return cast(BinaryIO, io.BufferedReader(XzStream(stream)))
    import pyarrow as pa

    packed = pa.PythonFile(stream, "r")
    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(packed, COMPRESSIONS[compression])))


class XzStream(io.RawIOBase):
    """The content of an .xz file, all of its parts: Python's own reader drops what follows a damaged one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._part = stream, lzma.LZMADecompressor()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from what is unpacked next; returns the bytes that came, none at the end.

        Raises :class:`EOFError` and :class:`lzma.LZMAError` for what is damaged.
        """
        content = b""
        while not content:
            packed = b""
            if self._part.eof:
                packed = self._part.unused_data.lstrip(b"\0")  # with which parts are filled up
                while not packed:
                    if not (piece := self._stream.read(XZ_BYTES)):
                        return 0
                    packed = piece.lstrip(b"\0")
                self._part = lzma.LZMADecompressor()
            elif self._part.needs_input and not (packed := self._stream.read(XZ_BYTES)):
                raise EOFError
            content = self._part.decompress(packed, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readable(self) -> bool:
        """It is."""
        return True


@contextmanager
def explain_damage(content: Content, kind: str = "") -> Iterator[None]:
    """One sentence for a file that can't be what its ending says, a `kind` of file or a compressed one."""
    import pyarrow as pa

    what = f"{COMPRESSIONS.get(content.compression, kind)} file".lstrip()
    damaged = f"{content.where}: truncated or damaged {what}; copy or download it again"
    try:
        yield
    except GeneratorExit:  # at Python's end the names below may be gone
        raise
    except UserError:
        raise
    except UnicodeDecodeError:
        raise BadContent(f"{content.where}: holds bytes that are not UTF-8") from None
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, pa.ArrowException):
        raise BadContent(damaged) from None
    except (NotImplementedError, RuntimeError) as problem:  # how zip archives refuse what they can't unpack
        raise BadContent(f"{content.where}: can't be unpacked: {shorten_error(problem)}") from None
    except OSError as problem:
        if sentence := describe_os_fault(problem, content.where):
            raise UserError(sentence) from None
        if type(problem) is not OSError:  # the hub's own are explained by whoever knows the repository
            raise
        if problem.errno:
            raise UserError(f"{content.where}: can't be read: {problem.strerror}") from None
        raise BadContent(damaged) from None
