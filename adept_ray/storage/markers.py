"""Whether several machines mean the same place by a path or URI: one leaves a mark, the others find it."""

from __future__ import annotations

from contextlib import suppress

from adept_ray.config.errors import shorten_error
from adept_ray.storage.files import open_filesystem

MARK = ".doctor-"  # begins the names of the files that are left for a moment


def leave_mark(place: str, token: str) -> None:
    """Leave the mark `token` in a place, which is made if it isn't there. Raises OSError or ValueError."""
    filesystem, path = open_filesystem(place)
    filesystem.create_dir(path)
    _write(place, f"{MARK}{token}", token)


def answer_mark(place: str, token: str, name: str) -> str:
    """Look for a mark that another machine left, and leave an answer under a `name` that is this one's own.

    Returns why this machine has another place there, or can't use it; empty if it is the same one.
    """
    from pyarrow import fs

    try:
        filesystem, path = open_filesystem(place)
        if filesystem.get_file_info(path).type == fs.FileType.NotFound:
            return "there is no such place"
        if filesystem.get_file_info(f"{path}/{MARK}{token}").type != fs.FileType.File:
            return "what the command wrote there isn't in it"
        with filesystem.open_input_file(f"{path}/{MARK}{token}") as stream:
            if stream.read().decode() != token:
                return "what the command wrote there reads otherwise"
        _write(place, f"{MARK}{token}-{name}", name)
    except Exception as problem:  # each file system has errors of its own
        return f"it can't be used there: {shorten_error(problem)}"
    return ""


def has_answer(place: str, token: str, name: str) -> bool:
    """Whether the answer of the machine of that `name` can be seen here."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    return bool(filesystem.get_file_info(f"{path}/{MARK}{token}-{name}").type == fs.FileType.File)


def remove_marks(place: str, token: str) -> None:
    """Delete the mark and all answers to it."""
    from pyarrow import fs

    filesystem, path = open_filesystem(place)
    with suppress(OSError):
        for each in filesystem.get_file_info(fs.FileSelector(path)):
            if each.base_name.startswith(f"{MARK}{token}"):
                filesystem.delete_file(each.path)


def _write(place: str, name: str, text: str) -> None:
    filesystem, path = open_filesystem(place)
    with filesystem.open_output_stream(f"{path}/{name}") as stream:
        stream.write(text.encode())
