"""Documents of files of this machine."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import ELOOP
from glob import glob
from pathlib import Path

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import explain_os_faults
from adept_ray.data.archives import open_reader
from adept_ray.data.formats import SUPPORTED, find_ending, select_files
from adept_ray.data.opening import locate_content
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import Located, Omissions, PlainText, list_names, read_all

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

    Raises :class:`UserError` where there are none, and for an empty one.
    """
    usable: list[Path] = []
    left_out: list[str] = []
    for path in map(Path, sorted(glob(pattern, recursive=True))):
        if path.is_dir():
            if not pattern.endswith("**"):  # that names what is in the folder, too
                inside = _list_folder(path)
                usable += inside.usable
                left_out += inside.left_out
        elif find_ending(path.name) and path.is_file():
            usable.append(path)
        else:
            left_out.append(f"{path} ({DANGLING})" if path.is_symlink() and not path.exists() else str(path))
    return check_files(LocalFiles(tuple(usable), tuple(left_out)), pattern)


def _list_folder(root: Path) -> LocalFiles:
    names, unreachable = list_inside(root)
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
    if not found.usable:
        there = f" (there are: {list_names(found.left_out)})" if found.left_out else ""
        raise UserError(f"{where}: holds no file that can be read as text; {SUPPORTED}{there}")
    for file in found.usable:
        if file.stat().st_size == 0:
            raise UserError(f"{file}: the file is empty: put text into it, or take it away")
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
