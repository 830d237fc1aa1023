"""Claims of results folders: one command at a time writes one, on whatever machine it runs.

A folder of this machine's is claimed by a lock, which ends with the process that holds it. Behind a URI there
are no locks, nor on some file systems: there a claim is an object that its holder writes again and again, and
one that isn't written any more is void.
"""

from __future__ import annotations

import _thread
import atexit
import errno
import fcntl
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from adept_ray.config.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

LOCK = ".claim"  # file that is locked, and how the names of claiming objects begin
BEAT_S = 10.0  # seconds between two times that a holder writes its object
VOID_S = 45.0  # seconds after which an object that nobody wrote is void
TRIES = 5  # of commands that begin at the same moment, and so see each other


class Claim(Protocol):
    """A folder's, as long as it isn't released."""

    def check(self) -> None:
        """Raise :class:`UserError` where another command has taken the folder in the meantime."""

    def release(self) -> None:
        """Let others have the folder; nothing happens the second time."""


@dataclass(frozen=True)
class Holder:
    """A process that writes a results folder."""

    host: str
    pid: int
    started: int
    """When the process began, in ticks of its machine; 0 where that can't be known."""
    machine: str
    """Tells machines, and containers that number their processes apart, from each other."""
    is_settled: bool = True
    """Whether it has the folder; else it looks whether somebody has."""

    @property
    def is_this_process(self) -> bool:
        """Whether it is this one."""
        return replace(self, is_settled=True) == describe_process()

    @property
    def is_of_this_machine(self) -> bool:
        """Whether it can be known whether it runs."""
        return self.machine == describe_process().machine

    @property
    def is_gone(self) -> bool:
        """Whether it was one of this machine's that runs no more."""
        return self.is_of_this_machine and read_start(self.pid) != self.started


def describe_process() -> Holder:
    """This process as a holder."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return Holder(parts[0], os.getpid(), read_start(os.getpid()), " ".join(parts))


def read_start(pid: int) -> int:
    """When a process of this machine began, which tells it from another of its number; −1 without one."""
    try:
        os.kill(pid, 0)
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except ProcessLookupError:
        return -1
    except OSError:  # it is somebody else's, or there is no /proc
        return 0


def refuse_second(place: str, holder: Holder | None) -> UserError:
    """What whoever comes second is told."""
    return UserError(
        f"{place} is being written by {name_holder(holder)}: wait for its end, or choose another --name"
    )


def name_holder(holder: Holder | None) -> str:
    """A holder as people read it."""
    return f"process {holder.pid} on {holder.host}" if holder else "another process"


def read_holder(content: str | bytes) -> Holder | None:
    """The holder that a claim names; None where it names none."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


class LockedFile:
    """A claim of a local folder: a lock on a file in it, which ends with this process."""

    def __init__(self, file: int, path: Path) -> None:
        self._file, self._path = file, path

    def check(self) -> None:
        """A lock is never lost."""

    def release(self) -> None:
        """Remove the file, then the lock; who waited for the lock sees that the file is another one."""
        if self._file >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.release()


def claim_folder(folder: Path) -> Claim | None:
    """Claim a folder of this machine's; None where its file system knows no locks.

    Raises :class:`UserError` naming whoever has it. A process has what it has claimed before.
    """
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = read_holder(os.read(file, 4096))
            os.close(file)
            if holder and holder.is_this_process:
                return LockedFile(-1, path)
            raise refuse_second(str(folder), holder) from None
        except OSError as problem:
            os.close(file)
            if problem.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            path.unlink()
            return None
        try:
            current = os.stat(path).st_ino == os.fstat(file).st_ino
        except FileNotFoundError:
            current = False
        if current:
            os.ftruncate(file, 0)
            os.write(file, json.dumps(asdict(describe_process())).encode())
            return LockedFile(file, path)
        os.close(file)  # its holder removed it in between


class WrittenObject:
    """A claim of a place without locks: an object that is written again every :data:`BEAT_S` seconds.

    A holder that was silent too long loses it: `stop` is called then, and :meth:`check` says so.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        path: str,
        place: str = "",
        stop: Callable[[], None] = _thread.interrupt_main,
    ) -> None:
        self.filesystem, self.path, self._place, self._stop = filesystem, path, place, stop
        self._taker: Holder | None = None
        self._is_lost = False
        self._holder = replace(describe_process(), is_settled=False)
        self._over = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._write_again, name="claim", daemon=True)
        self._thread.start()
        atexit.register(self.release)

    def _write(self) -> None:
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(json.dumps(asdict(self._holder)).encode())

    def settle(self) -> None:
        """Say that the folder is had."""
        self._holder = describe_process()
        self._write()

    def check(self) -> None:
        """Raise :class:`UserError` where another command has taken the folder in the meantime."""
        if self._is_lost:
            raise UserError(
                f"{self._place}: this process was silent for so long that its claim was void, and "
                f"{name_holder(self._taker)} may write the folder now: this one stops, and leaves it as it is"
            )

    def _write_again(self) -> None:
        while not self._is_lost and not self._over.wait(BEAT_S):
            with suppress(OSError):  # whatever else writes there says what is wrong
                self.beat()

    def beat(self) -> None:
        """Write the object again, unless somebody removed it; then, or if another one has the folder, stop.

        Whoever takes a folder looks for others after it has said so, and this looks after it has written: so
        at least one of two sees the other.
        """
        from pyarrow import fs

        gone = self.filesystem.get_file_info(self.path).type == fs.FileType.NotFound
        if not gone:
            self._write()
        if not self._holder.is_settled:  # it watches whoever has the folder
            return
        others = find_others(self, self.path.rpartition("/")[0])
        settled = [other for other in others.values() if other and other.is_settled]
        if gone or settled:
            self._taker, self._is_lost = next(iter(settled), None), True
            with suppress(OSError):
                self.filesystem.delete_file(self.path)
            self._stop()

    def release(self) -> None:
        """Stop writing the object, and remove it."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        atexit.unregister(self.release)
        with suppress(OSError):
            self.filesystem.delete_file(self.path)


def claim_place(
    filesystem: FileSystem, folder: str, place: str, say: Callable[[str], None] = lambda text: None
) -> Claim:
    """Claim a folder, `place` to people, on a file system that knows no locks.

    Who has written an object looks for others': of two at the same moment each sees the other, and both try
    again. Another machine's claim is watched until it is void or written again; `say` hears of that.
    Raises :class:`UserError` naming whoever has the folder.
    """
    holder = None
    for attempt in range(TRIES):
        time.sleep(attempt * random.random())
        own = WrittenObject(filesystem, f"{folder}/{LOCK}-{uuid.uuid4().hex}", place)
        try:
            others = find_others(own, folder)
            for path in [path for path in others if _is_void(own, path, others[path], say)]:
                with suppress(OSError):
                    filesystem.delete_file(path)
                del others[path]
            if not (others := others or find_others(own, folder)):
                own.settle()
                if not (others := find_others(own, folder)):
                    return own
        except BaseException:
            own.release()
            raise
        own.release()
        holder = next(iter(others.values()))
        if any(other and other.is_settled for other in others.values()):
            break
    raise refuse_second(place, holder)


def find_others(own: WrittenObject, folder: str) -> dict[str, Holder | None]:
    """Path → holder of every claim on a folder but this process's own ones."""
    from pyarrow import fs

    found = {}
    for info in own.filesystem.get_file_info(fs.FileSelector(folder)):
        if info.base_name.startswith(LOCK) and info.path != own.path:
            with suppress(FileNotFoundError), own.filesystem.open_input_file(info.path) as stream:
                holder = read_holder(stream.read())
                if not (holder and holder.is_this_process):
                    found[info.path] = holder
    return found


def _is_void(own: WrittenObject, path: str, holder: Holder | None, say: Callable[[str], None]) -> bool:
    """Whether nobody writes a claim any more; `say` hears that it is watched.

    The ages of both claims are by the clock of the storage.
    """
    if holder and holder.is_of_this_machine:
        return holder.is_gone
    filesystem = own.filesystem
    first = filesystem.get_file_info(path).mtime
    say(
        f"{name_holder(holder)} claimed the results folder: looking for up to {VOID_S:.0f} s if it still runs"
    )
    for _ in range(round(VOID_S)):
        theirs, mine = (info.mtime for info in filesystem.get_file_info([path, own.path]))
        if theirs is None or theirs != first:
            return theirs is None  # released, or written again
        if mine is not None and (mine - theirs).total_seconds() > VOID_S:
            return True
        time.sleep(1)
    return True
