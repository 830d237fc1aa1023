"""The results folder of a run, on this machine or behind a URI."""

from __future__ import annotations

import atexit
import json
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import explain_os_fault, shorten_place
from adept_ray.config.places import split_query
from adept_ray.config.specs import RunSpec
from adept_ray.storage.claims import Claim, claim_folder, claim_place
from adept_ray.storage.files import delete_folder, format_json, open_filesystem, write_text
from adept_ray.storage.records import RunRecord

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

OUTPUT_LOG = "ray.log"  # what Ray, Tune, Train and the workers print
RAY = "ray"  # sub-folder for the files of Ray and the workers
TRIALS = "trials"  # in that: a folder for each trial's checkpoints
# A command that goes on from a run behind a URI reads these.
RESUMED_FILES = (
    "run.json",
    "importance.json",
    "runs.csv",
    "best.yaml",
    "trials.csv",
    "trials.json",
    "rates.jsonl",
)


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
        self._claim: Claim | None = None
        self._began_here = False  # and not with an earlier command

    def exists(self) -> bool:
        """Whether a run of that name has begun."""
        if not self._remote:
            return (self.folder / "run.json").exists()
        from pyarrow import fs

        filesystem, path = self.open_place()
        return bool(filesystem.get_file_info(f"{path}/run.json").type == fs.FileType.File)

    def read_record(self) -> RunRecord:
        """Content of run.json; empty as long as the run hasn't begun."""
        file = self.folder / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def open(self, resume: bool, say: Callable[[str], None] = lambda text: None) -> None:
        """Make the folder, claim it, and check that it can be written to.

        No other command can open it before :meth:`release`, :meth:`publish` or the end of this process. `say`
        hears of a claim that has to be waited for.

        Raises :class:`UserError` when it can't, when another command has it, when a run of that name exists
        that isn't to be resumed, and when there is no run to resume.
        """
        try:
            if resume and not self.exists():
                raise UserError(f"{self.place} holds no run to resume: check --name and --storage")
            atexit.register(self.abandon)
            self._make_place()
            filesystem, path = self.open_place()
            self._claim = None if self._remote else claim_folder(self.folder)
            self._claim = self._claim or claim_place(filesystem, path, self.place, say)
            if not resume and self.exists():
                raise UserError(f"{self.place} exists: choose another --name, or continue it with --resume")
            if resume and self._remote:
                self.fetch(RESUMED_FILES)
            self._began_here = not resume
        except OSError as problem:
            self.release()
            why = explain_os_fault(problem) or problem.strerror or problem
            raise UserError(f"{shorten_place(self.place)} can't be written: {why}") from None
        except UserError:
            self.release()
            raise

    def _make_place(self) -> None:
        if self._remote:
            filesystem, path = self.open_place()
            filesystem.create_dir(path)
        else:
            (self.folder / RAY).mkdir(parents=True, exist_ok=True)

    def abandon(self) -> None:
        """Release the folder, and remove it if it is empty: a run that was refused leaves none behind.

        The temporary folder of a URI is removed whatever it holds.
        """
        from pyarrow.fs import FileSelector

        self.release()
        with suppress(OSError, UserError):  # it may be full, or gone
            if self._remote:
                shutil.rmtree(self.folder, ignore_errors=True)  # what is worth keeping is in its place
                filesystem, path = self.open_place()
                if not filesystem.get_file_info(FileSelector(path, allow_not_found=True)):
                    filesystem.delete_dir(path)
                return
            with suppress(FileNotFoundError):
                Path(self.ray).rmdir()
            self.folder.rmdir()

    def withdraw(self) -> bool:
        """Take back a run that began with this command and has nothing yet that a resumed one would use.

        Then the same command, mended, can be given again under that name. Returns whether it did.
        """
        try:
            self.check_claim()
        except UserError:  # it is another command's now
            return False
        own = self._claim is not None and self._began_here
        if not own or any(map(self.has, (*RESUMED_FILES[1:], f"{RAY}/{TRIALS}"))):
            return False
        with suppress(OSError):
            delete_folder(self.ray)
            filesystem, path = self.open_place()
            for name in ("run.json", OUTPUT_LOG):
                (self.folder / name).unlink(missing_ok=True)
                if self.has(name):  # behind a URI, too
                    filesystem.delete_file(f"{path}/{name}")
        return not self.exists()

    def release(self) -> None:
        """Let other commands have the folder."""
        if self._claim:
            self._claim.release()
            self._claim = None

    def fetch(self, names: Iterable[str]) -> None:
        """Copy files that lie behind a URI, and aren't here yet, to `folder`; missing ones are left out."""
        if not self._remote:
            return
        from pyarrow import fs

        filesystem, path = self.open_place()
        for name in names:
            here = self.folder / name
            if not here.exists() and filesystem.get_file_info(f"{path}/{name}").type == fs.FileType.File:
                here.parent.mkdir(parents=True, exist_ok=True)
                fs.copy_files(f"{path}/{name}", str(here), filesystem, fs.LocalFileSystem())

    def open_place(self) -> tuple[FileSystem, str]:
        """pyarrow's file system of the place and the path on it. Raises :class:`UserError` for a bad URI."""
        from pyarrow import fs

        if not self._remote:
            return fs.LocalFileSystem(), str(self.folder)
        try:
            return fs.FileSystem.from_uri(self.place)
        except (ValueError, OSError) as problem:
            raise UserError(f"{self.place} is not a URI that storage can be reached by: {problem}") from None

    def adopt_folder(self, place: str, name: str) -> None:
        """Move a folder that a worker saved at `place` to `name` in the results."""
        self.check_claim()
        filesystem, source = open_filesystem(place)
        if not self._remote:
            shutil.rmtree(self.folder / name, ignore_errors=True)  # of an earlier attempt
            shutil.move(source, self.folder / name)
            return
        from pyarrow import fs

        delete_folder(f"{self.place}/{name}")
        target = f"{self.open_place()[1]}/{name}"
        filesystem.create_dir(target)
        fs.copy_files(source, target, filesystem, filesystem)
        filesystem.delete_dir(source)

    def has(self, name: str) -> bool:
        """Whether a file or folder of that name is among the results, here or in its place already."""
        from pyarrow import fs

        filesystem, path = self.open_place()
        there = filesystem.get_file_info(f"{path}/{name}").type != fs.FileType.NotFound
        return there or (self.folder / name).exists()

    def check_claim(self) -> None:
        """Raise :class:`UserError` where another command has taken the folder in the meantime."""
        if self._claim:
            self._claim.check()

    def write(self, name: str, text: str) -> Path:
        """Write a text file whole or not at all; behind a URI, too, so that another machine can resume.

        Raises :class:`UserError` as :meth:`check_claim` does.
        """
        self.check_claim()
        path = write_text(self.folder / name, text)
        if self._remote:
            from pyarrow import fs

            filesystem, place = self.open_place()
            fs.copy_files(str(path), f"{place}/{name}", fs.LocalFileSystem(), filesystem)
        return path

    def write_json(self, name: str, data: Mapping[str, object]) -> Path:
        """Write JSON as :meth:`write` does."""
        return self.write(name, format_json(data, indent=1) + "\n")

    def copy_to_place(self, name: str) -> None:
        """Copy a folder of the results to its place behind a URI before the run is over."""
        if self._remote and (self.folder / name).is_dir():
            from pyarrow import fs

            filesystem, path = self.open_place()
            filesystem.create_dir(f"{path}/{name}")
            fs.copy_files(str(self.folder / name), f"{path}/{name}", fs.LocalFileSystem(), filesystem)

    def publish(self) -> str:
        """Copy the folder to its place (nothing to do for a local one) and release it; returns the place.

        Raises :class:`UserError` as :meth:`check_claim` does.
        """
        self.check_claim()
        if self._remote:
            from pyarrow import fs

            filesystem, path = self.open_place()
            fs.copy_files(str(self.folder), path, fs.LocalFileSystem(), filesystem)
            shutil.rmtree(self.folder)
        self.release()
        return self.place if self._remote else str(self.folder)


def make_run_name(run: RunSpec, what: str = "") -> str:
    """A name for the results folder: what, backbone, domain, time, and letters that tell it from others."""
    first, *others = run.domain.parts
    domain = f"{Path(split_query(first.place)[0]).stem}{f'-and-{len(others)}-more' * bool(others)}"
    at = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    parts = [what, Path(run.backbone).stem, domain, at]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part for part in parts if part)).lower()
