"""The crews' health, as plain objects: what workers died of, how many there are, which k is too large."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.specs import RunSpec
from adept_ray.engine.job import CrewLost, Outcome, is_out_of_memory
from adept_ray.storage.files import read_json, store_json

ATTEMPTS = 3  # how often a job is begun: when its workers die each time, it is the job that kills them
MEMORY_LIMIT = "limit.json"  # beside a search's other memory
MUCH_LARGER = 1.1  # times the memory: what a machine has free varies by less
# How Ray says what a process took that it killed because the memory of its machine was full.
TAKEN = re.compile(r"actual memory used=([\d.]+)GB")
MODEST = 0.8  # of what a worker may use; one that took less was killed for what others take


class CrewHealth:
    """What the workers of each crew died of, and how many there are now.

    A worker may use `memory` bytes; 0 where that isn't known.
    """

    def __init__(self, memory: int = 0) -> None:
        self._memory = memory
        self._deaths: Counter[int] = Counter()  # job → deaths of its workers since its last new report
        self._faults: dict[int, str] = {}  # job → what a worker died of
        # crew → node → what the kernel had killed there for memory when the crew began its job
        self._kills: dict[int, dict[str, int]] = {}
        self._sizes: dict[int, int] = {}  # crew → its workers
        self._places: dict[int, dict[str, int]] = {}  # crew → node → its workers there

    def record_fault(self, number: int, error: str) -> None:
        """Keep what a worker of a job died of: the reason to be given if the job is given up."""
        self._faults[number] = error

    def record_death(self, number: int, error: str) -> Outcome | None:
        """Count a death of a job's workers; returns how the job ends if it is given up.

        It is given up when its workers died so many times without a new report, and when it was too large for
        the memory, which it would be again. Workers that leave, or become more or fewer, haven't died. Where
        others fill the memory again and again it is no fault of the job's, so there is no crew.
        """
        self._deaths[number] += 1
        self._faults.setdefault(number, error)
        taken = find_taken_memory(error)
        is_modest = 0 < taken < MODEST * self._memory
        if is_out_of_memory(error) and not is_modest:
            return Outcome(error)
        if self._deaths[number] < ATTEMPTS:
            return None
        if is_modest:
            sizes = f"{taken / 2**30:.1f} of the {self._memory / 2**30:.1f} GiB"
            why = f"a machine's memory is full, and its workers were killed {ATTEMPTS} times, though one took"
            return Outcome(f"{why} {sizes} that it may: end what else uses that memory", CrewLost)
        why = f"the workers died {ATTEMPTS} times at this job\n{self._faults[number]}"
        return Outcome(why.strip())

    def forgive_deaths(self, number: int) -> None:
        """Give a job all its attempts back: it has come further than before."""
        self._deaths[number] = 0

    def record_kills(self, crew: int, node: str, kills: int) -> None:
        """Keep how many processes the kernel had killed on a node of a crew when the crew began its job."""
        self._kills.setdefault(crew, {})[node] = kills

    def take_kills(self, crew: int) -> dict[str, int]:
        """Node of a crew → the kernel's kills there when the job began; nothing until it begins another."""
        return self._kills.pop(crew, {})

    def change_size(self, crew: int, size: int, full: int) -> bool:
        """Keep with how many workers, of `full`, a crew is at work; returns whether that is a change."""
        before = self._sizes.get(crew, full)
        self._sizes[crew] = size
        return size != before

    def record_place(self, crew: int, node: str, workers: int) -> int:
        """Keep that so many workers of a crew are on a node; returns how many of other crews are there."""
        self._places.setdefault(crew, {})[node] = workers
        return sum(places.get(node, 0) for other, places in self._places.items() if other != crew)

    def forget_places(self, crew: int) -> None:
        """Take in that a crew has no workers any more."""
        self._places.pop(crew, None)


def find_taken_memory(error: str) -> float:
    """Bytes that the largest process took which Ray killed for want of memory; 0 where it doesn't say."""
    return max((float(size) * 2**30 for size in TAKEN.findall(error)), default=0.0)


@dataclass(frozen=True)
class WorkerMemory:
    """What decides whether a k fits into the workers."""

    settings: Mapping[str, object] = field(default_factory=dict)
    """Those that decide whether a k fits, by name."""
    memory: int = 0
    """Bytes that a worker may use."""


def describe_worker_memory(run: RunSpec, memory: int) -> WorkerMemory:
    """What decides in `run`, whose workers may use so many bytes each."""
    return WorkerMemory({name: run.read_field(name) for name in list_fields(RunSpec, Mark.FITTING)}, memory)


class MemoryLimit:
    """The smallest k at which a worker ran out of memory; a file keeps it for a run that is resumed.

    `folder` is a path or URI, empty for no file. What is known of workers with other settings, or with much
    less memory, says nothing of these.
    """

    def __init__(self, folder: str = "", workers: WorkerMemory | None = None) -> None:
        self._file = f"{folder}/{MEMORY_LIMIT}" if folder else ""
        self._workers = workers or WorkerMemory()
        self.k: int | None = self._read_k() if folder else None

    def _read_k(self) -> int | None:
        known = read_json(self._file)
        if not isinstance(known, dict):  # no file, or one that doesn't say of which workers it is
            return None
        other = known["settings"] != self._workers.settings
        larger = self._workers.memory > MUCH_LARGER * known["memory"]
        return None if other or larger else known["k"]

    def lower_limit(self, k: int) -> None:
        """Take in that a worker ran out of memory at that k; a larger one than before changes nothing."""
        self.k = k if self.k is None else min(k, self.k)

    def store_limit(self) -> None:
        """Write the file, if there is to be one."""
        if self._file:
            store_json(self._file, {"k": self.k, **asdict(self._workers)})
