"""Readers of archives: what lies in them is read by the readers of its formats."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from typing import BinaryIO, Self, cast

from adept_ray.config.errors import BadContent, UserError
from adept_ray.data.formats import ARCHIVES, FORMATS, SUPPORTED, is_text
from adept_ray.data.opening import Content, RangedFile, explain_damage
from adept_ray.data.rows import Located, Omissions, Reader, read_all

RUN_BYTES = 2**14, 2**20  # of an archive that are fetched at once: a 256th of it, within these bounds
AHEAD = 4 * 2**20  # where one member is larger, it comes in pieces of that many
END = tarfile.EOFHeaderError  # type: ignore[attr-defined]  # typeshed doesn't know what says it is the end
ENCRYPTED = 1  # bit of a member's flags
# The record at a zip archive's end, and where in it is the number of members: the last two bytes of it, or
# all bits for a number that stands elsewhere.
END_BYTES, COUNT_AT, COUNT, MOST_COUNTED = 22, 10, struct.Struct("<H"), 2**16


@dataclass(frozen=True)
class Members:
    """Which members of an archive are read."""

    pattern: str = "*"
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

    @property
    def folder(self) -> str:
        """The folder of the first of them."""
        return name_folder(self.members[0])


class ZipReader:
    """A zip archive, whose list of members is read once; its pieces are runs of 1 MiB at most, or one member.

    The list takes about half a kB of memory a member.
    """

    def __init__(
        self, content: Content, omissions: Omissions | None = None, members: Members | None = None
    ) -> None:
        self.content, self._chosen = content, members or Members()
        self._omissions = omissions or Omissions()

    @cached_property
    def _file(self) -> RangedFile:
        file = cast(RangedFile, self.content.open_raw())
        file.ahead = AHEAD
        return file

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(cast(BinaryIO, self._file))

    def list_pieces(self) -> Sequence[object]:
        """Runs of members that lie side by side; where a folder ends, a run ends that is worth a request.

        Raises :class:`UserError` for what is no zip archive, and for one without text.
        """
        with explain_damage(self.content, "zip"):
            infos = sorted(self._archive.infolist(), key=lambda info: info.header_offset)
            self._check_list(infos)
        ends = [info.header_offset for info in infos[1:]] + [self._archive.start_dir]
        wanted = min(max(self._file.size // 256, RUN_BYTES[0]), RUN_BYTES[1])
        runs: list[Run] = []
        begun: list[zipfile.ZipInfo] = []
        last = 0
        for info, end in zip(infos, ends, strict=True):
            if not self._is_chosen(info):
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
        check_members(len(runs), self.content)
        return runs

    def _check_list(self, infos: Sequence[zipfile.ZipInfo]) -> None:
        """Raise :class:`zipfile.BadZipFile` for a list that isn't whole: a wrong length hides members."""
        self._file.seek(-END_BYTES - len(self._archive.comment), io.SEEK_END)
        (count,) = COUNT.unpack_from(self._file.read(END_BYTES) or b"", COUNT_AT)
        is_whole = count in (len(infos) % MOST_COUNTED, MOST_COUNTED - 1)
        if not is_whole or (infos and infos[0].header_offset < 0):
            raise zipfile.BadZipFile

    def _is_chosen(self, info: zipfile.ZipInfo) -> bool:
        return (
            not info.is_dir()
            and self._chosen.has(info.filename)
            and is_member(info.filename, self.content, self._omissions)
        )

    def measure(self, piece: object) -> int:
        """Bytes of the members of a run without compression."""
        return sum(info.file_size for info in cast(Run, piece).members)

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """The rows of the members of a run; one request brings them all."""
        run = cast(Run, piece)
        self._file.hold(run.start, min(run.end, run.start + AHEAD))
        for info in run.members:
            yield from self._omissions.guard(self._read_member(info, columns))

    def close(self) -> None:
        """Let go of the archive and of the list of its members."""
        for held in ("_archive", "_file"):
            vars(self).pop(held, None)

    def _read_member(self, info: zipfile.ZipInfo, columns: Sequence[str]) -> Iterator[Located]:
        def unpack() -> BinaryIO:
            return cast(BinaryIO, self._archive.open(info))

        where = f"{self.content.where}, {info.filename}"
        if info.flag_bits & ENCRYPTED:
            raise BadContent(f"{where}: can't be unpacked without a password; unpack it and give the folder")
        member = Content(info.filename, where, unpack, inside=True)
        with explain_damage(member, "zip"):
            yield from read_all(open_reader(member, self._omissions), columns)


class CheckedMember(tarfile.TarInfo):
    """A member of a tar archive whose header must be whole: tarfile takes a damaged one for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next member. Raises :class:`tarfile.ReadError` where neither it nor the end's mark is next."""
        try:
            return super().fromtarfile(archive)
        except END:
            raise
        except tarfile.HeaderError as problem:
            raise tarfile.ReadError(str(problem)) from None


class TarReader:
    """A tar archive, packed or not, which is read from its beginning to its end; it is one piece."""

    def __init__(self, content: Content, omissions: Omissions | None = None) -> None:
        self.content, self._omissions = content, omissions or Omissions()

    def list_pieces(self) -> Sequence[object]:
        """The whole archive."""
        return (0,)

    def measure(self, piece: object) -> int:
        """The size of the archive."""
        return self.content.text_size

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """The rows of all its members. Raises :class:`UserError` for an archive without text."""
        count = 0
        with (
            explain_damage(self.content, "tar"),
            self.content.open_sequential() as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=CheckedMember) as archive,
        ):
            for info in archive:
                if info.isfile() and is_member(info.name, self.content, self._omissions):
                    count += 1
                    yield from self._omissions.guard(self._read_member(archive, info, columns))
            self._check_end(cast(BinaryIO, archive.fileobj))
        check_members(count, self.content)

    def close(self) -> None:
        """Nothing is kept open."""

    def _check_end(self, stream: BinaryIO) -> None:
        """Read what follows an archive's end, also for the sake of a compressed file's checksum.

        Raises :class:`UserError` where that is more than zeros.
        """
        while block := stream.read(RUN_BYTES[1]):
            if block.strip(b"\0"):
                raise UserError(
                    f"{self.content.where}: goes on behind its end, as joined or damaged tar archives do; "
                    "unpack it and give the folder"
                )

    def _read_member(
        self, archive: tarfile.TarFile, info: tarfile.TarInfo, columns: Sequence[str]
    ) -> Iterator[Located]:
        def unpack() -> BinaryIO:
            return cast(BinaryIO, archive.extractfile(info))

        member = Content(info.name, f"{self.content.where}, {info.name}", unpack, inside=True)
        with explain_damage(member, "tar"):
            yield from read_all(open_reader(member, self._omissions), columns)


def open_reader(content: Content, omissions: Omissions) -> Reader:
    """What reads a file, by its ending, which must be a known one."""
    if content.format == ".zip":
        return ZipReader(content, omissions)
    return TarReader(content, omissions) if content.format == ".tar" else FORMATS[content.format](content)


def is_member(name: str, content: Content, omissions: Omissions) -> bool:
    """Whether a member of an archive is read; what isn't is noted."""
    inside = name.removeprefix("./")
    if is_text(inside) and Content(name, "", content.open_raw).format not in ARCHIVES:
        return True
    omissions.other.append(f"{content.where}, {name}")
    return False


def check_members(count: int, content: Content) -> None:
    """Raise :class:`UserError` where no member is text."""
    if not count:
        raise UserError(f"{content.where}: holds no file that can be read as text; {SUPPORTED}")


def name_folder(info: zipfile.ZipInfo) -> str:
    """The folder of a member."""
    return info.filename.rpartition("/")[0]
