"""What brings deliveries to a tracker: a thread of its own, so that no training waits for a server."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypedDict

from adept_ray.config.errors import find_point
from adept_ray.tracking.deliveries import Begin, Delivery, End, File, Note, Numbers, Values
from adept_ray.tracking.tracker import MAIN, Setting, TrackedRun, Tracker

AGAIN_AFTER_S = 60.0  # between two tries of what couldn't be delivered
NO_STEP = -1


class KeptRun(TypedDict):
    """What is kept of a tracked run, so that a later command goes on in it."""

    id: str
    settings: dict[str, Setting]
    step: int
    """The last one of which the tracker has values."""
    state: str


@dataclass
class Book:
    """Key → what is kept of each run of one tracker; `write` is called whenever that changes."""

    runs: dict[str, KeptRun] = field(default_factory=dict)
    write: Callable[[], object] = lambda: None

    def find(self, run: TrackedRun) -> KeptRun | None:
        """What is kept of a run. A trial of that name that had other settings was another one."""
        kept = self.runs.get(run.key)
        return None if kept and run.is_trial and kept["settings"] != dict(run.settings) else kept


class Deliverer:
    """Makes the calls of a tracker that deliveries ask for, each at most once, whatever a book says was."""

    def __init__(self, tracker: Tracker, book: Book) -> None:
        self._tracker, self._book = tracker, book
        self._runs: dict[str, TrackedRun] = {}
        self._open: set[str] = set()

    def deliver(self, delivery: Delivery) -> None:
        """Make the calls that one asks for; raises whatever the tracker does."""
        if isinstance(delivery, Begin):
            self._begin(delivery)
        elif isinstance(delivery, Values):
            if delivery.step > self._find_kept(delivery.key)["step"]:
                self._reopen(delivery.key)
                self._tracker.log_values(delivery.key, delivery.values, delivery.step)
                self._keep(delivery.key, step=delivery.step)
        elif isinstance(delivery, End):
            if delivery.key in self._open or delivery.state != self._find_kept(delivery.key)["state"]:
                self._reopen(delivery.key)
                self._tracker.end_run(delivery.key, delivery.state)
                self._open.discard(delivery.key)
                self._keep(delivery.key, state=delivery.state)
        else:
            self._reopen(delivery.key)
            if isinstance(delivery, Numbers):
                self._tracker.put_numbers(delivery.key, delivery.numbers)
            elif isinstance(delivery, Note):
                self._tracker.put_note(delivery.key, delivery.text)
            elif isinstance(delivery, File):
                self._tracker.put_file(delivery.key, delivery.path)

    def close(self) -> None:
        """Let the tracker bring all to its place."""
        self._tracker.close()

    def _begin(self, begin: Begin) -> None:
        run, kept = begin.run, self._book.find(begin.run)
        self._runs[run.key] = replace(run, id=kept["id"] if kept else "")
        if kept is None:
            fresh = KeptRun(id="", settings=dict(run.settings), step=NO_STEP, state="running")
            self._book.runs[run.key] = fresh
        if kept is None or begin.state == "running":  # what is over is opened if something is missing
            self._reopen(run.key)

    def _reopen(self, key: str) -> None:
        if key in self._open:
            return
        run = self._runs[key]
        parent = self._find_kept(MAIN)["id"] if run.is_trial else ""
        known = self._tracker.begin_run(run, parent)
        self._open.add(key)
        self._runs[key] = replace(run, id=known)
        self._keep(key, id=known, state="running")

    def _find_kept(self, key: str) -> KeptRun:
        return self._book.runs[key]

    def _keep(self, key: str, **facts: object) -> None:
        self._book.runs[key].update(facts)  # type: ignore[typeddict-item]
        self._book.write()


class Courier:
    """Delivers in order, from a thread of its own, which begins with the first delivery.

    What can't be delivered stays first and is tried again, now and then and once more at the end. `warn`
    hears of the first such fault.
    """

    def __init__(self, name: str, start: Callable[[], Deliverer], warn: Callable[[str], None]) -> None:
        self._name, self._start, self._warn = name, start, warn
        self._queue: deque[Delivery] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._deliverer: Deliverer | None = None
        self._thread: threading.Thread | None = None
        self._fault = ""  # of the last try
        self._missed = 0

    def send(self, deliveries: Iterable[Delivery]) -> None:
        """Take more deliveries; returns at once."""
        with self._changed:
            self._queue.extend(deliveries)
            if self._queue and not self._thread:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self, patience: float) -> str:
        """Wait until all is delivered, `patience` seconds at most; returns what to say of what isn't."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(patience)
        missed = self._missed + len(self._queue)
        if not missed and not (self._thread and self._thread.is_alive()):
            return ""
        why = self._fault or f"it took longer than {patience:g} s"
        return f"--track {self._name}: {missed or 'some'} of the last messages didn't get there: {why}"

    def _work(self) -> None:
        while (delivery := self._wait_for_next()) is not None:
            last = self._closing  # of a try that began before, there will be another one
            try:
                if self._deliverer is None:
                    self._deliverer = self._start()
                self._deliverer.deliver(delivery)
            except Exception as problem:
                self._record_fault(problem)
                if last:
                    self._missed += 1
                else:
                    self._wait_to_try_again()
                    continue
            self._queue.popleft()
        if self._deliverer:
            try:
                self._deliverer.close()
            except Exception as problem:
                self._record_fault(problem)
                self._missed += 1

    def _wait_for_next(self) -> Delivery | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            return self._queue[0] if self._queue else None

    def _wait_to_try_again(self) -> None:
        until = time.monotonic() + AGAIN_AFTER_S
        with self._changed:
            self._changed.wait_for(lambda: self._closing, until - time.monotonic())

    def _record_fault(self, problem: Exception) -> None:
        first = not self._fault
        self._fault = " ".join(find_point(problem).split())[:200] or type(problem).__name__
        if first and not self._closing:
            self._warn(
                f"--track {self._name}: {self._fault}; the run goes on, and what this misses is sent later, "
                "at the end at the latest"
            )
