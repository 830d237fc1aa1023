"""Checkpoints behind a path or URI: written whole, the newest whole one found again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adept_ray.storage.files import WriteFile, delete_folder, has_all_files, open_filesystem, read_json

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

STEP = "step-"  # begins the names of the folders of checkpoints that a training can go on from
WEIGHTS_ALONE = "weights-"  # and of those that hold no more than what was trained
CHECKPOINT_NAME = re.compile(rf"({STEP}|{WEIGHTS_ALONE})\d+")
NO_STEP = -1  # number of no step
PLATEAU = "plateau"  # folder of the checkpoint that branches of a plateau go on from
MANIFEST = "manifest.json"  # a checkpoint's files and their sizes, bytes


@dataclass(frozen=True)
class Checkpoint:
    """What is saved of a step, held in memory: it can be written while the training goes on."""

    step: int
    files: Mapping[str, WriteFile]
    """Name of a file → what writes it."""
    resumable: bool = True
    """Whether a training can go on from it."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{STEP if self.resumable else WEIGHTS_ALONE}{self.step}"


def save_checkpoint(checkpoint: Checkpoint, place: str) -> str:
    """Write a checkpoint under `place` (a path or URI) and delete those that it replaces; returns its place.

    A resumable one replaces all others, one of weights alone those of its kind. The manifest comes last, so
    that nobody takes an interrupted checkpoint for whole. One that can't be written whole leaves the older
    ones as they are.
    """
    filesystem, path = open_filesystem(place)
    saved = f"{place}/{checkpoint.name}"
    delete_folder(saved)  # an interrupted attempt
    try:
        _write_files(filesystem, f"{path}/{checkpoint.name}", checkpoint.files)
    except OSError:
        with suppress(OSError):
            delete_folder(saved)
        raise
    for other in _list_names(filesystem, path):
        if other != checkpoint.name and (checkpoint.resumable or other.startswith(WEIGHTS_ALONE)):
            filesystem.delete_dir(f"{path}/{other}")
    return saved


def _write_files(filesystem: FileSystem, path: str, files: Mapping[str, WriteFile]) -> None:
    """Write `files` to a new folder and then, with their sizes, the manifest."""
    sizes = {}
    filesystem.create_dir(path)
    for name, write in files.items():
        filesystem.create_dir(f"{path}/{name}".rpartition("/")[0])
        with filesystem.open_output_stream(f"{path}/{name}") as stream:
            write(stream)
            sizes[name] = stream.tell()
    with filesystem.open_output_stream(f"{path}/{MANIFEST}") as stream:
        stream.write(json.dumps(sizes).encode())


def checkpoint_place(place: str, step: int) -> str:
    """Where :func:`save_checkpoint` puts a resumable checkpoint."""
    return f"{place}/{STEP}{step}"


def find_last_checkpoint(place: str, say: Callable[[str], None] = lambda text: None) -> int:
    """Step of the newest whole resumable checkpoint under `place`, or NO_STEP.

    `say` hears of half-written ones.
    """
    filesystem, path = open_filesystem(place)
    names = (name for name in _list_names(filesystem, path) if name.startswith(STEP))
    for step in sorted((int(name.removeprefix(STEP)) for name in names), reverse=True):
        if _is_whole(filesystem, f"{path}/{STEP}{step}"):
            return step
        say(f"{checkpoint_place(place, step)} was only half written and is passed over")
    return NO_STEP


def delete_older_checkpoints(saved: str) -> None:
    """Delete all checkpoints beside that of the place `saved`: the training is over."""
    filesystem, path = open_filesystem(saved)
    folder, _, last = path.rpartition("/")
    for name in _list_names(filesystem, folder):
        if name != last:
            filesystem.delete_dir(f"{folder}/{name}")


class CheckpointWriter:
    """Writes checkpoints under a place while the training goes on, one at a time."""

    def __init__(self, place: str, pool: ThreadPoolExecutor) -> None:
        self._place, self._pool = place, pool
        self._writing: Future[str] | None = None

    def begin(self, checkpoint: Checkpoint, place: str = "") -> str:
        """Begin to write a checkpoint, once the one before is written; returns its place.

        `place` is another one than that of the others. Raises what went wrong with the one before.
        """
        self.wait()
        place = place or self._place
        self._writing = self._pool.submit(save_checkpoint, checkpoint, place)
        return f"{place}/{checkpoint.name}"

    def check(self) -> None:
        """Raise what went wrong, if anything has."""
        if self._writing and self._writing.done():
            self._writing.result()

    def wait(self) -> None:
        """Wait until all is written. Raises what went wrong."""
        if self._writing:
            self._writing.result()


@contextmanager
def write_checkpoints(place: str) -> Iterator[CheckpointWriter]:
    """A writer of checkpoints under `place`; nothing of it is left running at the end.

    What could not be written is an error, unless there was another one.
    """
    with ThreadPoolExecutor(1) as pool:
        writer = CheckpointWriter(place, pool)
        yield writer
        writer.wait()


def _list_names(filesystem: FileSystem, path: str) -> list[str]:
    """Names of all checkpoints' folders."""
    from pyarrow import fs

    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = [info.base_name for info in found if info.type == fs.FileType.Directory]
    return [name for name in names if CHECKPOINT_NAME.fullmatch(name)]


def _is_whole(filesystem: FileSystem, path: str) -> bool:
    """Whether every file of the manifest is there in its size."""
    manifest = read_json(f"{path}/{MANIFEST}", filesystem=filesystem)
    return manifest is not None and has_all_files(filesystem, path, manifest)
