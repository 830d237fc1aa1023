"""Checkpoints behind a path or URI: written whole, the newest whole one found again."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adept_ray.storage.files import delete_folder, has_all_files, list_sizes, open_filesystem, read_json

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

STEP = "step-"  # begins the names of a training's checkpoint folders
NO_STEP = -1  # number of no step
MANIFEST = "manifest.json"  # a checkpoint's files and their sizes, bytes


def save_checkpoint(folder: Path, place: str, step: int) -> str:
    """Copy the files of `folder` to ``step-STEP`` under `place` (a path or URI) and delete older checkpoints.

    The manifest comes last, so that nobody takes an interrupted checkpoint for whole. A checkpoint that can't
    be written whole leaves the older ones as they are. Returns the checkpoint's place.
    """
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    target = f"{path}/{STEP}{step}"
    delete_folder(checkpoint_place(place, step))  # an interrupted attempt
    try:
        filesystem.create_dir(target)
        fs.copy_files(str(folder), target, fs.LocalFileSystem(), filesystem)
        with filesystem.open_output_stream(f"{target}/{MANIFEST}") as stream:
            stream.write(json.dumps(list_sizes(folder)).encode())
    except OSError:
        with suppress(OSError):
            delete_folder(checkpoint_place(place, step))
        raise
    for older in _list_steps(filesystem, path):
        if older != step:
            filesystem.delete_dir(f"{path}/{STEP}{older}")
    return checkpoint_place(place, step)


def checkpoint_place(place: str, step: int) -> str:
    """Where :func:`save_checkpoint` puts a checkpoint."""
    return f"{place}/{STEP}{step}"


def find_last_checkpoint(place: str, say: Callable[[str], None] = lambda text: None) -> int:
    """Step of the newest whole checkpoint under `place`, or NO_STEP; `say` hears of half-written ones."""
    filesystem, path = open_filesystem(place)
    for step in sorted(_list_steps(filesystem, path), reverse=True):
        if _is_whole(filesystem, f"{path}/{STEP}{step}"):
            return step
        say(f"{checkpoint_place(place, step)} was only half written and is passed over")
    return NO_STEP


def _list_steps(filesystem: FileSystem, path: str) -> list[int]:
    from pyarrow import fs

    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = [info.base_name for info in found if info.type == fs.FileType.Directory]
    return [int(n.removeprefix(STEP)) for n in names if n.removeprefix(STEP).isdigit() and STEP in n]


def _is_whole(filesystem: FileSystem, path: str) -> bool:
    """Whether every file of the manifest is there in its size."""
    manifest = read_json(f"{path}/{MANIFEST}", filesystem=filesystem)
    return manifest is not None and has_all_files(filesystem, path, manifest)
