"""The results folder: where a run's files go, on this machine or behind a URI."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adept_ray.config.specs import RunSpec, UserError

RAY = "ray"  # sub-folder for what Ray and the workers keep
TRIALS = "trials"  # in that: what the trials saved, a folder each
STEP = "step-"  # folders of what a training saved
# what a command that goes on from a run behind a URI reads of it
RESUMED_FILES = (
    "run.json",
    "importance.json",
    "runs.csv",
    "best.yaml",
    "trials.csv",
    "trials.json",
    "rates.jsonl",
)
NO_STEP = -1  # number of no step
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MANIFEST = "manifest.json"  # its files and their sizes, bytes


class Results:
    """Folder NAME under a storage.

    Files are written to `folder`. For a URI that is a temporary folder which :meth:`publish` copies
    to its place; Ray writes to `ray` directly in both cases.
    """

    def __init__(self, storage: str, name: str) -> None:
        self.place = f"{storage.rstrip('/')}/{name}"
        self._remote = "://" in storage
        self.folder = Path(tempfile.mkdtemp()) if self._remote else Path(self.place).resolve()
        self.ray = f"{self.place}/{RAY}" if self._remote else str(self.folder / RAY)

    def exists(self) -> bool:
        """Whether a run of that name has begun."""
        if not self._remote:
            return (self.folder / "run.json").exists()
        from pyarrow import fs

        filesystem, path = self.filesystem()
        return bool(filesystem.get_file_info(f"{path}/run.json").type == fs.FileType.File)

    def about(self) -> dict[str, Any]:
        """Content of run.json; empty as long as the run hasn't begun."""
        file = self.folder / "run.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def open(self, resume: bool) -> None:
        """Make the folder and check that it can be written to.

        Raises :class:`UserError` when it can't, or when a run of that name exists and is not to be
        resumed, or is to be resumed and doesn't exist.
        """
        try:
            exists = self.exists()
            if exists and not resume:
                raise UserError(f"{self.place} exists: choose another --name, or continue it with --resume")
            if resume and not exists:
                raise UserError(f"{self.place} holds no run to resume: check --name and --storage")
            if self._remote:
                self._check_remote(download=resume)
            else:
                (self.folder / RAY).mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.folder):
                    pass
        except OSError as problem:
            raise UserError(f"{self.place} can't be written: {problem.strerror or problem}") from None

    def _check_remote(self, download: bool) -> None:
        filesystem, path = self.filesystem()
        filesystem.create_dir(path)
        with filesystem.open_output_stream(f"{path}/.writable") as stream:
            stream.write(b"")
        filesystem.delete_file(f"{path}/.writable")
        if download:
            self.fetch(RESUMED_FILES)

    def fetch(self, names: Iterable[str]) -> None:
        """Copy files that lie behind a URI, and aren't here yet, to `folder`; what doesn't exist is left."""
        if not self._remote:
            return
        from pyarrow import fs

        filesystem, path = self.filesystem()
        for name in names:
            here = self.folder / name
            if not here.exists() and filesystem.get_file_info(f"{path}/{name}").type == fs.FileType.File:
                here.parent.mkdir(parents=True, exist_ok=True)
                fs.copy_files(f"{path}/{name}", str(here), filesystem, fs.LocalFileSystem())

    def filesystem(self) -> tuple[Any, str]:
        """pyarrow's file system of the place and the path on it. Raises :class:`UserError` for a bad URI."""
        from pyarrow import fs

        if not self._remote:
            return fs.LocalFileSystem(), str(self.folder)
        try:
            return fs.FileSystem.from_uri(self.place)
        except (ValueError, OSError) as problem:
            raise UserError(f"{self.place} is not a URI that storage can be reached by: {problem}") from None

    def adopt(self, place: str, name: str) -> None:
        """Move a folder that a worker saved at `place` to `name` in the results."""
        filesystem, source = open_filesystem(place)
        if not self._remote:
            shutil.rmtree(self.folder / name, ignore_errors=True)  # of an earlier attempt
            shutil.move(source, self.folder / name)
            return
        from pyarrow import fs

        delete_folder(f"{self.place}/{name}")
        target = f"{self.filesystem()[1]}/{name}"
        filesystem.create_dir(target)
        fs.copy_files(source, target, filesystem, filesystem)
        filesystem.delete_dir(source)

    def holds(self, name: str) -> bool:
        """Whether a file or folder of that name is among the results, here or in its place already."""
        from pyarrow import fs

        filesystem, path = self.filesystem()
        there = filesystem.get_file_info(f"{path}/{name}").type != fs.FileType.NotFound
        return there or (self.folder / name).exists()

    def write(self, name: str, text: str) -> Path:
        """Write a text file whole or not at all; behind a URI too, so that a cut-off run can be resumed."""
        path = write_text(self.folder / name, text)
        if self._remote:
            from pyarrow import fs

            filesystem, place = self.filesystem()
            fs.copy_files(str(path), f"{place}/{name}", fs.LocalFileSystem(), filesystem)
        return path

    def write_json(self, name: str, data: Mapping[str, Any]) -> Path:
        """Write JSON as :meth:`write` does."""
        return self.write(name, json.dumps(data, indent=1) + "\n")

    def publish(self) -> str:
        """Copy what was written to its place (nothing to do for a local one); returns the place."""
        if self._remote:
            from pyarrow import fs

            filesystem, path = self.filesystem()
            fs.copy_files(str(self.folder), path, fs.LocalFileSystem(), filesystem)
            shutil.rmtree(self.folder)
            return self.place
        return str(self.folder)


def check_place(place: str, flag: str) -> None:
    """Raise :class:`UserError`, naming the `flag`, for what no file system is known for."""
    try:
        open_filesystem(place)
    except (ValueError, OSError) as problem:
        raise UserError(f"{flag} {place} is not a URI that can be reached: {problem}") from None


def open_filesystem(place: str) -> tuple[Any, str]:
    """pyarrow's file system and the path on it of a path or a URI."""
    from pyarrow import fs

    return fs.FileSystem.from_uri(place if "://" in place else os.path.abspath(place))


def save_checkpoint(folder: Path, place: str, step: int) -> str:
    """Copy the files of `folder` to ``step-STEP`` under `place` (a path or URI) and delete older ones.

    A manifest is written last, so that one that was cut off is never taken for whole. Returns its place.
    What can't be written whole leaves the older ones as they are.
    """
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    target = f"{path}/{STEP}{step}"
    delete_folder(checkpoint_place(place, step))  # what was cut off
    try:
        filesystem.create_dir(target)
        fs.copy_files(str(folder), target, fs.LocalFileSystem(), filesystem)
        with filesystem.open_output_stream(f"{target}/{MANIFEST}") as stream:
            stream.write(json.dumps(list_sizes(folder)).encode())
    except OSError:
        with suppress(OSError):
            delete_folder(checkpoint_place(place, step))
        raise
    for older in _checkpoints(filesystem, path):
        if older != step:
            filesystem.delete_dir(f"{path}/{STEP}{older}")
    return checkpoint_place(place, step)


def checkpoint_place(place: str, step: int) -> str:
    """Where :func:`save_checkpoint` puts a checkpoint."""
    return f"{place}/{STEP}{step}"


def find_last_checkpoint(place: str, say: Callable[[str], None] = lambda text: None) -> int:
    """Step of the newest whole checkpoint under `place`, or NONE; `say` hears of those that aren't whole."""
    filesystem, path = open_filesystem(place)
    for step in sorted(_checkpoints(filesystem, path), reverse=True):
        if _is_whole(filesystem, f"{path}/{STEP}{step}"):
            return step
        say(f"{checkpoint_place(place, step)} was only half written and is passed over")
    return NO_STEP


def _checkpoints(filesystem: Any, path: str) -> list[int]:
    from pyarrow import fs

    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = [info.base_name for info in found if info.type == fs.FileType.Directory]
    return [int(n.removeprefix(STEP)) for n in names if n.removeprefix(STEP).isdigit() and STEP in n]


def _is_whole(filesystem: Any, path: str) -> bool:
    """Whether every file of the manifest is there in its size."""
    manifest = read_json(f"{path}/{MANIFEST}", filesystem=filesystem)
    return manifest is not None and has_all_files(filesystem, path, manifest)


def has_all_files(filesystem: Any, path: str, sizes: Mapping[str, int]) -> bool:
    """Whether the files with these names under `path` are there in these sizes, bytes."""
    return all(filesystem.get_file_info(f"{path}/{name}").size == size for name, size in sizes.items())


def list_sizes(folder: Path) -> dict[str, int]:
    """Name in `folder` of every file in it → its size, bytes."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def measure_size(place: str) -> int:
    """Bytes of all files in a folder behind a path or URI."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    return sum(each.size for each in found if each.is_file)


@contextmanager
def fetch_temporarily(place: str, names: Iterable[str] | None = None) -> Iterator[Path]:
    """A folder behind a path or URI as a local one: itself, or a copy that is deleted afterwards.

    Of its files those `names` are copied, or all.
    """
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        fetch_folder(place, Path(folder) / "copy", names)
        yield Path(folder) / "copy"


def fetch_folder(place: str, folder: Path, names: Iterable[str] | None = None) -> None:
    """Copy a folder behind a path or URI to this machine, whole or not at all; of its files those `names`."""
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


def publish_folder(folder: Path, place: str, last: str) -> None:
    """Copy a folder of this machine to a path or URI, the file named `last` when all others are there.

    What was there is deleted; what another machine writes at the same time may stay beside it.
    """
    delete_folder(place)
    for name in sorted(list_sizes(folder), key=lambda name: name == last):
        upload_file(folder / name, f"{place}/{name}")


def upload_file(file: Path, place: str) -> None:
    """Copy a file of this machine to a path or URI."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    filesystem.create_dir(path.rpartition("/")[0])
    fs.copy_files(str(file), path, fs.LocalFileSystem(), filesystem)


def read_json(place: str, say: Callable[[str], None] = lambda text: None, filesystem: Any = None) -> Any:
    """Content of a JSON file behind a path or URI; None if there is none, or half of one, which `say` hears.

    With a `filesystem` `place` is a path on that.
    """
    from pyarrow import fs

    filesystem, path = (filesystem, place) if filesystem else open_filesystem(place)
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    with filesystem.open_input_file(path) as stream:
        try:
            return json.loads(stream.read())
        except ValueError:
            say(f"{place} was only half written and is made again")
            return None


def store_json(place: str, data: Any) -> None:
    """Write a JSON file behind a path or URI, whole or not at all."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    text = json.dumps(data, indent=1, default=float) + "\n"
    if isinstance(filesystem, fs.LocalFileSystem):
        write_text(Path(path), text)
        return
    filesystem.create_dir(path.rpartition("/")[0])
    with filesystem.open_output_stream(path) as stream:  # an object appears when all of it was sent
        stream.write(text.encode())


def is_disk_full(problem: BaseException) -> bool:
    """Whether an error says that a disk, or what one may take of it, is full."""
    number = getattr(problem, "errno", None)
    signs = (*map(os.strerror, FULL_DISK_ERRORS), "database or disk is full")  # the last one is SQLite's
    return number in FULL_DISK_ERRORS or any(sign in str(problem) for sign in signs)


def describe_full_disk(problem: BaseException) -> str:
    """The beginning of a sentence about a disk that is full."""
    return f"no space left for {getattr(problem, 'filename', None) or 'what is to be written'}: make room and"


def delete_folder(place: str) -> None:
    """Remove a folder behind a path or URI; none is fine."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as problem:
        os.unlink(scratch)
        problem.filename = str(path)
        raise
    os.replace(scratch, path)
    path.chmod(0o644)
    return path


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write JSON whole or not at all."""
    return write_text(path, json.dumps(data, indent=1) + "\n")


def make_run_name(run: RunSpec, what: str = "") -> str:
    """A name for the results folder: what, backbone, domain and time."""
    parts = [what, Path(run.backbone).stem, Path(run.domain).stem, time.strftime("%Y%m%d-%H%M%S")]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part for part in parts if part)).lower()
