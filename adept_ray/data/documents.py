"""Documents of files of this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import ELOOP
from glob import glob, has_magic
from pathlib import Path

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import explain_os_faults
from adept_ray.data.archives import open_reader
from adept_ray.data.formats import SUPPORTED, check_usable, find_ending, select_files
from adept_ray.data.opening import locate_content
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import Located, Omissions, PlainText, read_all

DANGLING = "a link to nothing"


@dataclass(frozen=True)
class LocalFiles:
    """Files of this machine that make up a corpus."""

    usable: tuple[Path, ...]
    left_out: tuple[str, ...] = ()
    """Files beside them that aren't read as text."""


def list_usable_files(root: Path) -> LocalFiles:
    """The file `root`, or the files in that folder, that can be read as text.

    Raises :class:`UserError` where there are none, and for an empty one.
    """
    if root.is_file():
        if not find_ending(root.name):
            raise UserError(f"{root}: not a supported kind of file; {SUPPORTED}")
        found = LocalFiles((root,))
    else:
        found = _list_folder(root)
    return check_files(found, str(root))


def list_matching_files(pattern: str) -> LocalFiles:
    """The files that a glob names, ``**`` for any folders, and those in folders that it names.

    Each is there once, and they are chosen as those of the folder before the first ``*`` are. Raises
    :class:`UserError` where there are none, and for an empty one.
    """
    parts = Path(pattern).parts
    root = Path(*parts[: next(at for at, part in enumerate(parts) if has_magic(part))])
    # Folder, whatever links lead there, and file → its path below root.
    names: dict[tuple[str, str], str] = {}
    unreachable: list[str] = []
    for path in map(Path, sorted(glob(pattern, recursive=True))):
        if path.is_dir():
            if pattern.endswith("**"):  # that names what is in the folder, too
                continue
            inside, lost = list_inside(path)
            unreachable += [(path.relative_to(root) / each).as_posix() for each in lost]
        elif path.is_file():
            inside = [""]
        else:
            why = DANGLING if path.is_symlink() else "no regular file"
            unreachable.append(f"{path.relative_to(root).as_posix()} ({why})")
            continue
        for file in (path / name for name in inside):
            key = os.path.realpath(file.parent), file.name
            names.setdefault(key, file.relative_to(root).as_posix())
    return check_files(_choose(root, list(names.values()), list(dict.fromkeys(unreachable))), pattern)


def _list_folder(root: Path) -> LocalFiles:
    return _choose(root, *list_inside(root))


def _choose(root: Path, names: list[str], unreachable: list[str]) -> LocalFiles:
    chosen = select_files(names)
    usable = tuple(root / name for name in chosen.usable)
    return LocalFiles(usable, (*chosen.left_out, *unreachable))


def list_inside(root: Path) -> tuple[list[str], list[str]]:
    """The files in a folder and all below it, links followed, by their paths in it; and what leads nowhere.

    A folder that is there twice, as by a link that leads in a circle, is read once. Raises
    :class:`UserError` for a folder that may not be read.
    """
    names: list[str] = []
    unreachable: list[str] = []
    seen: set[tuple[int, int]] = set()
    with explain_os_faults():
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            about = folder.stat()
            if (about.st_dev, about.st_ino) in seen:
                unreachable.append(f"{folder.relative_to(root).as_posix()} (a link to a folder read already)")
                continue
            seen.add((about.st_dev, about.st_ino))
            for path in sorted(folder.iterdir()):
                name = path.relative_to(root).as_posix()
                try:
                    mode = path.stat().st_mode
                except OSError as problem:
                    if not path.is_symlink():
                        raise
                    unreachable.append(
                        f"{name} ({'a link in a circle' if problem.errno == ELOOP else DANGLING})"
                    )
                    continue
                if stat.S_ISDIR(mode):
                    waiting.append(path)
                elif stat.S_ISREG(mode):
                    names.append(name)
                else:
                    unreachable.append(f"{name} (no regular file)")
    return sorted(names), sorted(unreachable)


def check_files(found: LocalFiles, where: str) -> LocalFiles:
    """The same files. Raises :class:`UserError` where there are none, and for an empty one."""
    check_usable({str(file): file.stat().st_size for file in found.usable}, found.left_out, where)
    return found


def read_documents(files: Iterable[Path], recipe: TextRecipe, omissions: Omissions) -> Iterator[str]:
    """The documents of files, blank ones too; raises :class:`UserError` for the first thing wrong in them."""
    for file in files:
        reader = open_reader(locate_content(str(file)), omissions)
        yield from read_texts(read_all(reader, recipe.columns), recipe)


def read_texts(rows: Iterable[Located], recipe: TextRecipe) -> Iterator[str]:
    """The texts of the rows that are taken; rows that are no table have one whatever is asked for."""
    plain = recipe.for_plain_text
    for where, row in rows:
        asked = plain if isinstance(row, PlainText) else recipe
        if asked.takes(where, row):
            yield asked.read(where, row)
