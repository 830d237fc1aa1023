"""The board as every other process of a run sees it: typed, and without Ray's way of calling actors."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adept_ray.engine.job import CrewLost, Job, JobProgress, Metrics, Outcome
from adept_ray.engine.memory import Memory
from adept_ray.engine.notices import Row
from adept_ray.storage.files import is_disk_full

if TYPE_CHECKING:
    from ray import ObjectRef

VERDICT_TIMEOUT_S = 600
READ_TIMEOUT_S = 30
MEMORY_EVERY = 5  # seconds between two looks at the memory in use


class BoardClient:
    """Calls the methods of :class:`~adept_ray.engine.board.Board`; can be sent to any process of the run.

    What asks for something, or must have been heard, waits for the board. The verdicts and what only the
    watchers of a run read (progress, rows, numbers, sizes, stage times) are sent without waiting.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def count_crews(self) -> int:
        """How many crews take jobs."""
        return _fetch(self._actor.count_crews.remote())

    # -------------------------------------------------------- jobs, for those who hand them in

    def submit_job(self, job: Job) -> int:
        """Hand in a job; returns its number. See :meth:`JobQueue.submit_job`."""
        import ray

        # In a list: Ray would fetch a bare reference for the board.
        return _fetch(self._actor.submit_job.remote(job.name, [ray.put(job)]))

    def wait_for_reports(self, number: int, seen: int, title: str) -> tuple[list[Metrics], Outcome | None]:
        """Wait for more than `seen` reports of a job, or its end: what is new, and how it ended.

        Ray's dashboard shows the call as running, under `title`.
        """
        return _fetch(self._actor.reports.options(name=title).remote(number, seen))

    def close(self, why: str = "the run is over") -> None:
        """Send the crews home; what is unfinished, and what is still handed in, ends with `why`."""
        _fetch(self._actor.close.remote(why))

    def explain_closing(self) -> str:
        """Why there will be no more jobs; empty while there may be some."""
        return _fetch(self._actor.explain_closing.remote())

    # -------------------------------------------------------- jobs, for workers

    def claim_job(self, crew: int, done: int) -> int:
        """Wait for a crew's next job: see :meth:`JobQueue.claim_next`."""
        return _fetch(self._actor.claim_job.remote(crew, done))

    def begin_job(self, crew: int, turn: int, node: str, kills: int) -> tuple[int, ObjectRef]:
        """Number of the job of a crew's turn, and the reference to it: see :meth:`Board.begin_job`."""
        number, (reference,) = _fetch(self._actor.begin_job.remote(crew, turn, node, kills))
        return number, reference

    def give_back_jobs(self, crew: int) -> None:
        """Free what a crew had claimed: it has no workers."""
        _fetch(self._actor.give_back_jobs.remote(crew))

    def add_report(self, number: int, metrics: Metrics) -> None:
        """Add a report to a job."""
        _fetch(self._actor.add_report.remote(number, metrics))

    def end_job(self, number: int, outcome: Outcome) -> None:
        """Say how a job ended; the first word holds."""
        _fetch(self._actor.end_job.remote(number, outcome))

    # -------------------------------------------------------- the crews' health

    def record_fault(self, number: int, error: str) -> None:
        """Keep what a worker of a job died of: the reason to be given if the job is given up."""
        _fetch(self._actor.record_fault.remote(number, error))

    def record_death(self, crew: int, error: str) -> None:
        """Say what a worker of a crew died of: the job that it was at is free again, or given up."""
        _fetch(self._actor.record_death.remote(crew, error))

    def take_kills(self, crew: int) -> dict[str, int]:
        """Node of a crew → the kernel's kills there when the job began; nothing until it begins another."""
        return _fetch(self._actor.take_kills.remote(crew))

    def record_size(self, crew: int, job: str, size: int, full: int) -> None:
        """Say with how many of its workers a crew is at a job."""
        self._actor.record_size.remote(crew, job, size, full)

    def record_place(self, crew: int, node: str, workers: int) -> int:
        """Say how many workers of a crew are on a node; returns how many of other crews are there."""
        return _fetch(self._actor.record_place.remote(crew, node, workers))

    def lower_limit(self, k: int) -> None:
        """Say that a worker ran out of memory at that k."""
        _fetch(self._actor.lower_limit.remote(k))

    def read_limit(self) -> int | None:
        """Smallest k at which a worker ran out of memory."""
        return _fetch(self._actor.read_limit.remote())

    # -------------------------------------------------------- verdicts

    def give_verdict(self, trial: str, report: int, stop: bool) -> None:
        """Say whether a trial stops after that report; the first word holds."""
        self._actor.give_verdict.remote(trial, report, stop)

    def wait_for_verdict(self, trial: str, report: int) -> bool:
        """Wait for the verdict on a trial's report: whether to stop. Raises TimeoutError."""
        import ray

        try:
            return _fetch(self._actor.wait_for_verdict.remote(trial, report), VERDICT_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            what = f"{trial} waited {VERDICT_TIMEOUT_S} s for the verdict on its report {report}"
            raise TimeoutError(f"{what}: the search no longer answers") from None

    # -------------------------------------------------------- notices

    def record_progress(self, job: str, done: int, total: int) -> None:
        """Say how far the job of that name is."""
        self._actor.record_progress.remote(job, done, total)

    def record_row(self, row: Row) -> None:
        """Keep the latest row of a trial."""
        self._actor.record_row.remote(row)

    def read_progress(self) -> tuple[JobProgress, list[Row]]:
        """How far every job is, and the trials' rows."""
        return _fetch(self._actor.read_progress.remote(), READ_TIMEOUT_S)

    def add_remark(self, text: str) -> None:
        """Keep a line that the run's user should read."""
        _fetch(self._actor.add_remark.remote(text))

    def read_remarks(self, seen: int) -> list[str]:
        """The remarks but for the first `seen`."""
        return _fetch(self._actor.read_remarks.remote(seen), READ_TIMEOUT_S)

    def record_numbers(self, training: str, numbers: Mapping[str, object]) -> None:
        """Keep the latest numbers of a training, for who watches the run from outside."""
        self._actor.record_numbers.remote(training, numbers)

    def read_readings(self, seen: int) -> list[Metrics]:
        """What trainings have reported, but for the first `seen` readings."""
        return _fetch(self._actor.read_readings.remote(seen), READ_TIMEOUT_S)

    def record_stage_times(self, seconds: Mapping[str, float]) -> None:
        """Keep the seconds of every stage so far, for who watches the run from outside."""
        self._actor.record_stage_times.remote(seconds)


class NewReadings:
    """What the trainings of a run report, each reading once."""

    def __init__(self, board: BoardClient) -> None:
        self._board, self._seen = board, 0

    def take(self) -> list[Metrics]:
        """Those that have come since the last call."""
        new = self._board.read_readings(self._seen)
        self._seen += len(new)
        return new


def _fetch(reference: Any, timeout: float | None = None) -> Any:
    """The answer to a call of the board."""
    import ray

    return ray.get(reference, timeout=timeout)


def name_board(run: str) -> str:
    """The name that the board of the run of that name has in Ray."""
    return f"board {run}"


def find_board(run: str) -> BoardClient:
    """The board of the run of that name, from any process of the run.

    Raises :class:`CrewLost` if it is gone.
    """
    import ray

    try:
        return BoardClient(ray.get_actor(name_board(run)))
    except ValueError:  # which is all that Ray says of an actor that died
        raise CrewLost("the process between the search and its workers is gone") from None


def follow_job(board: BoardClient, job: Job) -> Iterator[Metrics]:
    """Hand `job` to a crew and yield its reports as they come.

    Raises :class:`JobFailed`, :class:`JobRefused` for what a person can mend, and :class:`CrewLost` when it
    isn't the job that failed.
    """
    number, seen = board.submit_job(job), 0
    while True:
        new, outcome = board.wait_for_reports(number, seen, job.title or job.name)
        yield from new
        seen += len(new)
        if outcome:
            outcome.raise_error()
            return


def run_job(board: BoardClient, job: Job) -> Metrics:
    """Hand `job` to a crew and wait for its end; returns its last report. Raises as :func:`follow_job`."""
    *_, last = follow_job(board, job)
    return last


@contextmanager
def watch_board(board: BoardClient, show: Callable[[JobProgress, list[Row]], None]) -> Iterator[None]:
    """Call `show` with what the board holds about once a second, from another thread, and at the end."""

    def look(tick: int) -> None:
        if tick % MEMORY_EVERY == 0:
            Memory.sample()
        show(*board.read_progress())

    with call_every_second(look):
        yield
    show(*board.read_progress())


@contextmanager
def call_every_second(look: Callable[[int], None]) -> Iterator[None]:
    """Call `look` with 0, 1, … about once a second from another thread."""
    import ray

    done = threading.Event()

    def poll() -> None:
        for tick in itertools.count():
            if done.wait(1.0):
                return
            try:
                look(tick)
            except ray.exceptions.GetTimeoutError:  # a busy machine: there will be a next time
                continue
            except Exception as problem:  # of a full disk the next look, or the last one, may find room
                if not is_disk_full(problem):
                    raise

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=READ_TIMEOUT_S + 5)
