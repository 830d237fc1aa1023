"""Errors of the operating system, told as what they are: which file, what is wrong with it, what helps."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from adept_ray.config.errors import UserError, first_line

LONGEST_PLACE = 200  # characters of a path in a sentence
NETWORK_DISK = "the network file system it lies on doesn't answer: mount it again, or give another place"
NO_PERMISSION = "there is no permission for it here: change its mode or owner, or give another one"
NO_SPACE = "there is no space left for it: make room, or give a place with more"
# Error number → what a sentence says of the file, and what helps.
TOLD = {
    errno.EACCES: NO_PERMISSION,
    errno.EPERM: NO_PERMISSION,
    errno.EROFS: "its file system can only be read: give a place that can be written",
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EFBIG: "it becomes larger than a file may be here: raise `ulimit -f`, or give another place",
    errno.ENOENT: "no such file or folder: check its path",
    errno.ENOTDIR: "a part of its path is a file where a folder is needed: check its path",
    errno.EISDIR: "it is a folder where a file is needed: check its path",
    errno.ENAMETOOLONG: "its name, or its whole path, is too long: give a shorter one",
    errno.ELOOP: "it is a link that leads in a circle: put the file itself there",
    errno.EMFILE: "too many files are open: give the command again after `ulimit -n 65536`",
    errno.ENFILE: "too many files are open on this machine: end what else holds some",
    errno.EIO: "its disk fails (input/output error): check the disk, or give another place",
    errno.ESTALE: NETWORK_DISK,
    errno.ENOTCONN: NETWORK_DISK,
    errno.EHOSTDOWN: NETWORK_DISK,
    errno.ETXTBSY: "another process runs it: end that, or give another place",
    errno.EBUSY: "another process uses it: end that, or give another place",
    errno.EEXIST: "it is there already: move it away, or give another name",
    errno.ENOTEMPTY: "it is there already: move it away, or give another name",
    errno.ENOMEM: "this machine has no memory left for it: end what else uses it",
    errno.EAGAIN: (  # of a lock or a read, too
        "this machine can't give it what it needs just now, processes for instance: give the command again, "
        "if need be after `ulimit -u unlimited`"
    ),
    errno.EADDRINUSE: "its port is taken: end what listens there, or give another one",
}
# Libraries in Rust put no number into an error, but in its text.
NUMBER = re.compile(r"\b(?:os error|errno) (\d+)\b", re.IGNORECASE)
NAMED = re.compile(r"'([^']*/[^']*)'|directory: (.+)")  # how pyarrow and safetensors name a file
KINDS: dict[type[BaseException], int] = {PermissionError: errno.EACCES, FileNotFoundError: errno.ENOENT}


def find_fault_number(problem: BaseException) -> int | None:
    """The number of the operating system's error that `problem` is or tells of; None for one unknown here."""
    number = getattr(problem, "errno", None) or KINDS.get(type(problem))
    if number is None and (found := NUMBER.search(str(problem))):
        number = int(found[1])
    return number if number in TOLD else None


def find_fault_place(problem: BaseException) -> str:
    """The file that an error of the operating system names; empty where it names none."""
    if (named := getattr(problem, "filename", None)) is None:
        found = NAMED.search(str(problem))
        named = found[1] or found[2] if found else ""
    return os.fsdecode(named) if isinstance(named, bytes) else str(named)


def explain_os_fault(problem: BaseException, place: object = "") -> str:
    """What is wrong with a file and what helps, to stand behind its name; empty for other errors.

    The file is `place`, or else the one that the error names.
    """
    number = find_fault_number(problem)
    named = str(place) or find_fault_place(problem)
    if number is None and isinstance(problem, OSError) and problem.filename and problem.strerror:
        why = first_line(problem.strerror)
        return f"it can't be read or written ({why}): mend that, or give another place"
    if number != errno.ENOENT:
        return TOLD[number] if number else ""
    if os.path.exists(named):  # what safetensors says of any file that it can't open
        return TOLD[errno.EACCES]
    if os.path.islink(named):
        return f"it is a link to {os.readlink(named)}, where nothing is: put the file there, or mend the link"
    return TOLD[number]


def describe_os_fault(problem: BaseException, place: object = "") -> str:
    """A sentence on what is wrong with `place`, or with the file that an error names; empty for others."""
    why = explain_os_fault(problem, place)
    named = shorten_place(str(place) or find_fault_place(problem)) or "a file that is needed"
    return f"{named}: {why}" if why else ""


def shorten_place(place: str) -> str:
    """A path as a sentence holds it: of one that is too long its beginning and its end."""
    half = LONGEST_PLACE // 2
    return place if len(place) <= LONGEST_PLACE else f"{place[:half]}…{place[-half:]}"


@contextmanager
def name_fault_place(place: str) -> Iterator[None]:
    """Let an error of the operating system that names no file name `place`, a path or URI."""
    try:
        yield
    except OSError as problem:
        if not find_fault_place(problem):
            problem.strerror = problem.strerror or first_line(problem)  # its text is gone once it has a file
            problem.filename = place
        raise


@contextmanager
def explain_os_faults(place: object = "") -> Iterator[None]:
    """Turn an error of the operating system into :class:`UserError` that names `place`, or else the file."""
    try:
        yield
    except OSError as problem:
        sentence = describe_os_fault(problem, place)
        if not sentence and problem.errno is None:
            raise
        named = place or problem.filename or "a file that is needed"
        raise UserError(sentence or f"{named}: can't be read or written: {problem.strerror}") from problem
