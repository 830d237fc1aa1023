"""The streams that a worker keeps from one pass and one training to the next (see `method/prefix.py`).

On CPUs they are kept in memory. A GPU's memory is too dear for them, so there they are kept in a file in the
temporary folder. A thread reads what comes next while the GPU computes.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from adept_ray.data.loading import Backbone
from adept_ray.method.prefix import StreamKey, StreamStore

TEXT_SHARE = 0.5  # of the bytes, for training text at most: held-out text comes again within a training, too
LEFT_SHARE = 0.75  # of the room that a disk has at first: what others left of it is never used
READ_AHEAD = 4  # streams
MOST_READ = 2 * READ_AHEAD  # streams in memory that were read and not asked for yet
WRITES_AT_ONCE = 4  # streams that wait in memory; what comes meanwhile isn't kept
SLOWEST = 2**28  # bytes a second; GPUs compute as much again before a slower disk has read it
LATE = 16  # streams that came too late, before a disk is given up


class StreamBudget:
    """Counts what is kept: of `limit` bytes training text may take a part."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = {False: 0, True: 0}  # for training text or not → bytes

    def take(self, size: int, for_text: bool) -> bool:
        """Take `size` bytes, if there are so many left."""
        fits = sum(self._taken.values()) + size <= self.limit
        if fits and for_text:
            fits = self._taken[True] + size <= TEXT_SHARE * self.limit
        self._taken[for_text] += size * fits
        return fits


class MemoryStreams:
    """A store in memory, of at most `limit` bytes."""

    def __init__(self, limit: int, device: torch.device) -> None:
        self._budget = StreamBudget(limit)
        self._streams: dict[StreamKey, torch.Tensor] = {}

    def __contains__(self, key: StreamKey) -> bool:
        return key in self._streams

    def find(self, key: StreamKey) -> torch.Tensor | None:
        return self._streams.get(key)

    def keep(self, key: StreamKey, stream: torch.Tensor, for_text: bool) -> None:
        if self._budget.take(stream.nbytes, for_text):
            self._streams[key] = stream


@dataclass(frozen=True)
class Place:
    """Where a stream lies in a file, and what it is."""

    begin: int
    """Byte of the file."""
    size: int
    """Bytes."""
    shape: torch.Size
    dtype: torch.dtype


class DiskStreams:
    """A store in a file of at most `limit` bytes, for a `device` to which streams are brought.

    The file has no name, so the kernel takes it away with this process, however that ends. What entered the
    device's passes one after the other is taken to come in that order again, and is read ahead.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self._budget, self._device = StreamBudget(limit), device
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 – as long as this store is there
        self._least_room = LEFT_SHARE * self._measure_room()
        self._end = 0
        self._seen: set[StreamKey] = set()  # what is written, or will be
        self._places: dict[StreamKey, Place] = {}
        self._next: dict[StreamKey, StreamKey] = {}
        self._last: StreamKey | None = None
        self._writer, self._reader = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writes: deque[Future[None]] = deque()
        self._reads: dict[StreamKey, Future[torch.Tensor]] = {}
        self._late = 0

    def __contains__(self, key: StreamKey) -> bool:
        return key in self._places

    def find(self, key: StreamKey) -> torch.Tensor | None:
        place, reading = self._places[key], self._begin_reading(key)
        self._follow(key)
        self._reads.pop(key, None)
        try:
            stream = reading.result(1 + place.size / SLOWEST)
        except OSError:  # TimeoutError is one
            self._count_late()
            return None
        return stream.to(self._device, non_blocking=True)

    def keep(self, key: StreamKey, stream: torch.Tensor, for_text: bool) -> None:
        while self._writes and self._writes[0].done():
            self._writes.popleft()
        has_room = len(self._writes) < WRITES_AT_ONCE and self._measure_room() > self._least_room
        if key in self._seen or not has_room or not self._budget.take(stream.nbytes, for_text):
            return
        self._seen.add(key)
        place = Place(self._end, stream.nbytes, stream.shape, stream.dtype)
        self._end += place.size
        self._writes.append(self._writer.submit(self._write, key, place, stream.to("cpu").contiguous()))
        self._follow(key)

    def _follow(self, key: StreamKey) -> None:
        """Remember what `key` came after, and begin to read what came after it the last time."""
        if self._last is not None:
            self._next[self._last] = key
        self._last = key
        for _ in range(READ_AHEAD):
            following = self._next.get(key)
            if following is None:
                break
            key = following
            if key in self._places:
                self._begin_reading(key)

    def _begin_reading(self, key: StreamKey) -> Future[torch.Tensor]:
        """Begin to read a stream, if that hasn't begun yet, into memory from which a GPU can fetch it."""
        if key not in self._reads:
            place = self._places[key]
            with torch.inference_mode(False):  # a tensor made in that mode would be of no use for a gradient
                buffer = torch.empty(place.shape, dtype=place.dtype, pin_memory=self._device.type == "cuda")
            self._reads[key] = self._reader.submit(self._read, place, buffer)
            if len(self._reads) > MOST_READ:  # another order than the last time: nobody asked for it
                del self._reads[next(iter(self._reads))]
        return self._reads[key]

    def _write(self, key: StreamKey, place: Place, stream: torch.Tensor) -> None:
        data, at = list_bytes(stream), place.begin
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, at)
                data, at = data[written:], at + written
        except OSError:  # a full disk, though there was room a moment ago: it is computed as before
            return
        self._places[key] = place

    def _read(self, place: Place, stream: torch.Tensor) -> torch.Tensor:
        data, at = list_bytes(stream), place.begin
        while data:
            read = os.preadv(self._file.fileno(), [data], at)
            data, at = data[read:], at + read
        return stream

    def _measure_room(self) -> int:
        """Bytes that are free on the file's disk."""
        disk = os.fstatvfs(self._file.fileno())
        return disk.f_bavail * disk.f_frsize

    def _count_late(self) -> None:
        """Give the disk up if it is late again and again."""
        self._late += 1
        if self._late == LATE:
            self._places.clear()
            self._budget.limit = 0


def list_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    return tensor.view(-1).view(torch.uint8).numpy().data


KINDS: dict[str, Callable[[int, torch.device], StreamStore]] = {"cpu": MemoryStreams}  # others: DiskStreams


def make_store(device: torch.device, limit: int) -> StreamStore:
    """A new store for `device`, of at most `limit` bytes."""
    return KINDS.get(device.type, DiskStreams)(limit, device)


@dataclass
class HeldStore:
    """The store that this process holds, so that one training after the other uses it."""

    key: tuple[object, ...] = ()
    store: StreamStore | None = None


_HELD = HeldStore()


def lend_store(backbone: Backbone, device: torch.device, limit: int) -> StreamStore:
    """The process's store of streams of that backbone on `device`, of at most `limit` bytes.

    There is one store. Another backbone or limit begins a new one.
    """
    key = (backbone, str(device), limit)
    if _HELD.key != key:
        drop_store()
        _HELD.store, _HELD.key = make_store(device, limit), key
    assert _HELD.store is not None
    return _HELD.store


def drop_store() -> None:
    """Let go of the streams that this process holds: a training needs the memory."""
    _HELD.key, _HELD.store = (), None
