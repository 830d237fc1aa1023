"""Files and folders on this machine or behind a URI, written whole or not at all."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adept_ray.config.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

COPIED_AT_ONCE = 16 * 2**20  # bytes
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Stream(Protocol):
    """A file that is being written, here or behind a URI."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Add `data` at its end."""


WriteFile = Callable[[Stream], object]
"""Writes the content of a file."""


def check_place(place: str, flag: str) -> None:
    """Raise :class:`UserError`, naming the `flag`, for a place without a known file system."""
    try:
        open_filesystem(place)
    except (ValueError, OSError) as problem:
        raise UserError(f"{flag} {place} is not a URI that can be reached: {problem}") from None


def open_filesystem(place: str) -> tuple[FileSystem, str]:
    """pyarrow's file system and the path on it of a path or a URI."""
    from pyarrow import fs

    return fs.FileSystem.from_uri(place if "://" in place else os.path.abspath(place))


def has_all_files(filesystem: FileSystem, path: str, sizes: Mapping[str, int]) -> bool:
    """Whether the files with these names under `path` are there in these sizes, bytes."""
    return sizes.items() <= measure_files(filesystem, path).items()


def measure_files(filesystem: FileSystem, path: str) -> dict[str, int]:
    """Name under `path` of every file there → its size, bytes; empty where there is no such folder."""
    from pyarrow import fs

    every = fs.FileSelector(path, allow_not_found=True, recursive=True)  # a thousand files a request
    found = filesystem.get_file_info(every)
    return {info.path.removeprefix(f"{path}/"): info.size for info in found if info.is_file}


def list_sizes(folder: Path) -> dict[str, int]:
    """Name in `folder` of every file in it → its size, bytes."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def list_files(folder: Path) -> dict[str, WriteFile]:
    """Name in `folder` of every file in it → what writes a copy of it."""

    def copy(name: str, stream: Stream) -> None:
        with (folder / name).open("rb") as file:
            shutil.copyfileobj(file, stream, COPIED_AT_ONCE)

    return {name: functools.partial(copy, name) for name in list_sizes(folder)}


def measure_size(place: str) -> int:
    """Bytes of all files in a folder behind a path or URI."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    return sum(each.size for each in found if each.is_file)


def find_local_folder(place: str) -> Path | None:
    """The folder behind a path or URI, if it is one of this machine."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    return Path(path) if isinstance(filesystem, fs.LocalFileSystem) else None


@contextmanager
def fetch_temporarily(place: str, names: Iterable[str] | None = None) -> Iterator[Path]:
    """A folder behind a path or URI as a local one: itself, or a copy that is deleted afterwards.

    `names` are the files to copy; by default all.
    """
    if local := find_local_folder(place):
        yield local
        return
    with tempfile.TemporaryDirectory() as folder:
        fetch_folder(place, Path(folder) / "copy", names)
        yield Path(folder) / "copy"


def fetch_folder(place: str, folder: Path, names: Iterable[str] | None = None) -> None:
    """Copy a folder behind a path or URI to this machine, whole or not at all; `names` are files, or all."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        if names is None:
            fs.copy_files(path, str(made), filesystem, fs.LocalFileSystem())
        for name in names or ():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(f"{path}/{name}", str(made / name), filesystem, fs.LocalFileSystem())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)


def copy_file(place: str, file: Path) -> None:
    """Copy a file behind a path or URI to this machine, whole or not at all."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    with write_whole(file) as scratch:
        fs.copy_files(path, str(scratch), filesystem, fs.LocalFileSystem())


@contextmanager
def write_whole(file: Path) -> Iterator[Path]:
    """An empty file beside `file`, which takes its place once it is written, and is gone if that fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        scratch.chmod(0o644)
        os.replace(scratch, file)
    except OSError as problem:
        problem.filename = str(file)
        raise
    finally:
        scratch.unlink(missing_ok=True)


def store_bytes(place: str, data: memoryview) -> None:
    """Write a file behind a path or URI, whole or not at all."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    if isinstance(filesystem, fs.LocalFileSystem):
        with write_whole(Path(path)) as scratch:
            scratch.write_bytes(data)
        return
    filesystem.create_dir(path.rpartition("/")[0])
    with filesystem.open_output_stream(path) as stream:  # an object appears once all of it was sent
        stream.write(data)


def upload_file(file: Path, place: str) -> None:
    """Copy a file of this machine to a path or URI."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    filesystem.create_dir(path.rpartition("/")[0])
    fs.copy_files(str(file), path, fs.LocalFileSystem(), filesystem)


def read_json(
    place: str,
    say: Callable[[str], None] = lambda text: None,
    filesystem: FileSystem | None = None,
) -> Any:
    """Content of a JSON file behind a path or URI; None if there is none, or half of one, which `say` hears.

    With a `filesystem`, `place` is a path on it.
    """
    from pyarrow import fs

    filesystem, path = (filesystem, place) if filesystem else open_filesystem(place)
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    try:
        with filesystem.open_input_file(path) as stream:
            return json.loads(stream.read())
    except FileNotFoundError:  # somebody deleted it since
        return None
    except ValueError:
        say(f"{place} was only half written and is made again")
        return None


def store_json(place: str, data: object) -> None:
    """Write a JSON file behind a path or URI, whole or not at all."""
    store_bytes(place, memoryview(f"{format_json(data, indent=1)}\n".encode()))


def is_disk_full(problem: BaseException) -> bool:
    """Whether an error says that a disk, or what one may take of it, is full."""
    number = getattr(problem, "errno", None)
    signs = (*map(os.strerror, FULL_DISK_ERRORS), "database or disk is full")  # the last one is SQLite's
    return number in FULL_DISK_ERRORS or any(sign in str(problem) for sign in signs)


def describe_full_disk(problem: BaseException, note: Callable[[str], str] = lambda place: "") -> str:
    """The beginning of a sentence about a disk that is full; `note` says more of the place."""
    place = getattr(problem, "filename", None) or ""
    return f"no space left for {place or 'what is to be written'}{note(place)}: make room and"


def delete_folder(place: str) -> None:
    """Remove a folder behind a path or URI; none is fine."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    with write_whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, data: Mapping[str, object]) -> Path:
    """Write JSON whole or not at all."""
    return write_text(path, format_json(data, indent=1) + "\n")


def format_json(data: object, indent: int | None = None) -> str:
    """`data` as JSON; a number that isn't finite, for which JSON has no word, is null."""
    return json.dumps(_drop_infinite(data), indent=indent, default=_read_number, allow_nan=False)


def _read_number(value: Any) -> float | None:
    """numpy's numbers, which json doesn't know."""
    number = float(value)
    return number if math.isfinite(number) else None


def _drop_infinite(data: object) -> object:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _drop_infinite(value) for key, value in data.items()}
    return [_drop_infinite(value) for value in data] if isinstance(data, (list, tuple)) else data
