"""The crew: Ray Train's workers, started once a run, that do task after task; and the board in between.

A worker group takes longer to start than a short trial takes to train: half a dozen processes, each with its
imports. So stage 1, every trial and the export run on the same warm workers, as tasks that they take from
the board. A worker that dies takes its group with it; Ray Train starts a new one, and that goes on with the
unfinished task at its last checkpoint.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adept_ray.config import RunSpec
from adept_ray.launch import CPUS_PER_WORKER, Memory, forget_peak, peak_gib, threads_per_worker
from adept_ray.metrics import Numbers, serve
from adept_ray.storage import NONE, fetched, last_report, report_at, save_report

if TYPE_CHECKING:
    import torch

    from adept_ray.probe import ProbeJob
    from adept_ray.train import TrainJob

VERDICT_TIMEOUT_S = 600
ATTEMPTS = 3  # how often a task is begun: when its workers die each time, it is the task that kills them
RESTARTS = 30  # worker groups that may die in a run
START_TRIES = 10  # of a minute each, on a cluster that others keep busy
OVER = 2**31 - 1  # number of no task: there will be no more
MEMORY_EVERY = 5  # seconds between two looks at the memory in use
TOLD_EVERY = 0.5  # seconds between two reports of progress


class TaskFailed(RuntimeError):
    """A task ended with an error; the message is the worker's traceback."""


class CrewGone(TaskFailed):
    """There are no workers any more; the message says why. It is no task's fault."""


@dataclass(frozen=True)
class Task:
    """A piece of work for the whole crew."""

    name: str
    """``probe``, ``trial-001``, …: names its progress, and the folder under `storage` for what it saves."""
    loop: Literal["probe", "train", "conclude"]
    job: ProbeJob | TrainJob
    blocks: Any
    """Object reference to what the loop takes as its blocks."""
    storage: str = ""
    """Path or URI; a training that saved something there goes on from it."""
    judged: bool = False
    """Wait for a verdict on every report but the last."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More for ``conclude``: the place of the ``checkpoint``, and what it is ``about``; for a training maybe
    the place of the checkpoint that it is ``grown_from``."""
    title: str = ""
    """What it is called where a person watches the cluster; its name if empty."""


class Board:
    """A small actor between the run's processes: tasks, their reports and verdicts, progress, trials' rows.

    A task is kept as it came, a reference in a list, so that this process needn't import what it is made of.
    """

    def __init__(self) -> None:
        self._progress: dict[str, tuple[int, int]] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._verdicts: dict[tuple[str, int], bool] = {}
        self._tasks: list[Any] = []
        self._reports: list[list[dict[str, Any]]] = []
        self._ends: dict[int, str] = {}  # task → what went wrong, empty if nothing did
        self._begun: Counter[int] = Counter()  # attempts since the last new report
        self._faults: dict[int, str] = {}
        self._closed = ""  # why there will be no more tasks
        self._limit: int | None = None  # smallest k at which a worker ran out of memory
        self._changed = asyncio.Condition()
        self._numbers = Numbers()

    async def lead(self, board: Any, run: RunSpec, storage: str) -> None:
        """Keep the workers running; when they are gone for good, so are the tasks. `board` is its own handle.

        It is done here and not in the run's own process, where it would take a thread: one that still waits
        for Ray when the run is interrupted ends the process with Ray's status in place of ours.
        """
        serving = asyncio.create_task(serve(self._numbers, run.name))
        try:
            await asyncio.to_thread(keep_workers, board, run, storage)
            await self.close("the workers went home")
        except Exception as error:
            await self.close(f"the workers can't be kept running: {error}")
        serving.cancel()

    async def submit(self, task: Any) -> int:
        """Hand in a task; returns its number."""
        self._tasks.append(task)
        self._reports.append([])
        number = len(self._tasks) - 1
        if self._closed:
            self._ends[number] = self._closed
        await self._tell()
        return number

    async def task(self, done: int) -> int:
        """Wait for the next unfinished task with a number above `done`; OVER when the run is over."""

        def waiting() -> int | None:
            return next((n for n in range(done + 1, len(self._tasks)) if n not in self._ends), None)

        while True:
            await self._until(lambda: bool(self._closed) or waiting() is not None)
            number = waiting()
            if self._closed or number is None:
                return OVER
            if self._begun[number] < ATTEMPTS:
                return number
            why = self._faults.get(number, "")
            await self.end(number, f"the workers died {ATTEMPTS} times at this task\n{why}".strip())

    async def begin(self, number: int, first: bool) -> Any:
        """A task as it was handed in, to begin with it now; the `first` worker's word is an attempt."""
        self._begun[number] += first
        return self._tasks[number]

    async def fault(self, number: int, error: str) -> None:
        """Keep what a worker died of: the reason to be given if the task is given up."""
        self._faults[number] = error

    async def report(self, number: int, metrics: dict[str, Any]) -> None:
        """Add a report to a task; one that comes further than all before clears it of killing its workers."""
        if metrics.get("report", 0) > max((m.get("report", 0) for m in self._reports[number]), default=0):
            self._begun[number] = 1
        self._reports[number].append(metrics)
        await self._tell()

    async def end(self, number: int, error: str = "") -> None:
        """Say that a task is over; the first to say so is heard."""
        self._ends.setdefault(number, error)
        await self._tell()

    async def reports(self, number: int, seen: int) -> tuple[list[dict[str, Any]], str | None]:
        """Wait for more than `seen` reports of a task or its end: what is new, and how it ended."""
        await self._until(lambda: len(self._reports[number]) > seen or number in self._ends)
        return self._reports[number][seen:], self._ends.get(number)

    async def close(self, error: str = "the run is over") -> None:
        """Send the crew home; what is unfinished, and what is still handed in, ends with `error`."""
        self._closed = self._closed or error
        for number in range(len(self._tasks)):
            self._ends.setdefault(number, self._closed)
        await self._tell()

    async def closed(self) -> str:
        """Why there will be no more tasks; empty while there may be some."""
        return self._closed

    async def decide(self, trial: str, report: int, stop: bool) -> None:
        """Give the verdict on a trial's report; the first one stands."""
        self._verdicts.setdefault((trial, report), stop)
        await self._tell()

    async def verdict(self, trial: str, report: int) -> bool:
        """Wait for the verdict on a trial's report: whether to stop."""
        await self._until(lambda: (trial, report) in self._verdicts)
        return self._verdicts[trial, report]

    async def exceeded(self, k: int) -> None:
        """Say that a worker ran out of memory at that k."""
        self._limit = k if self._limit is None else min(k, self._limit)

    async def limit(self) -> int | None:
        """Smallest k at which a worker ran out of memory."""
        return self._limit

    async def advance(self, task: str, done: int, of: int) -> None:
        """Say that the task of that name has done so much of so much."""
        self._progress[task] = (done, of)
        self._numbers.of(task, {"step": done})

    async def note(self, row: dict[str, Any]) -> None:
        """Keep the latest row of a trial."""
        self._rows[row["trial"]] = row
        self._numbers.of(row["trial"], {"running": row["state"] == "running"})

    async def measured(self, training: str, numbers: dict[str, Any]) -> None:
        """Keep the latest numbers of a training, for who watches the run from outside."""
        self._numbers.of(training, numbers)

    async def timed(self, seconds: dict[str, float]) -> None:
        """Keep the seconds of every stage so far, for who watches the run from outside."""
        self._numbers.stages(seconds)

    async def read(self) -> tuple[dict[str, tuple[int, int]], list[dict[str, Any]]]:
        """(done, of) of every task, and the trials' rows."""
        return self._progress, list(self._rows.values())

    async def _until(self, ready: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(ready)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def board_name(run: RunSpec) -> str:
    """The name under which any process of the run finds its board."""
    return f"board {run.name}"


@contextmanager
def crew(run: RunSpec, storage: str) -> Iterator[Any]:
    """Start the workers in the background; yields the board that takes their tasks.

    `storage` is where Ray Train keeps its own records. What goes wrong for good ends all tasks.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(num_cpus=0)(Board)
    board = actor.options(name=board_name(run), scheduling_strategy=here).remote()
    leading = board.lead.remote(board, run, storage)
    # When this raises, what runs now is not worth waiting for: the cluster ends it.
    yield board
    ray.get(board.close.remote())
    with suppress(ray.exceptions.GetTimeoutError):
        ray.get(leading, timeout=30)  # so that the workers' resources are free again


def keep_workers(board: Any, run: RunSpec, storage: str) -> None:
    """Start the workers and keep them running until the board sends them home. Raises Ray Train's errors."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources: dict[str, float] = {"CPU": CPUS_PER_WORKER}
    if run.gpus_per_worker:
        resources["GPU"] = run.gpus_per_worker
    TorchTrainer(
        worker,
        train_loop_config={"board": board, "threads": threads_per_worker(run)},
        scaling_config=ScalingConfig(
            num_workers=run.workers, use_gpu=run.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="crew",
            storage_path=storage,
            failure_config=FailureConfig(RESTARTS, controller_failure_limit=START_TRIES),  # type: ignore[call-arg]
        ),
    ).fit()


def reports(board: Any, task: Task) -> Iterator[dict[str, Any]]:
    """Hand `task` to the crew and yield its reports as they come.

    Raises :class:`TaskFailed`, and :class:`CrewGone` when it isn't the task that failed.
    """
    import ray

    number, seen = ray.get(board.submit.remote([ray.put(task)])), 0
    waiting = board.reports.options(name=task.title or task.name)  # what the dashboard shows as running
    while True:
        new, end = ray.get(waiting.remote(number, seen))
        yield from new
        seen += len(new)
        if end:
            raise (CrewGone if ray.get(board.closed.remote()) else TaskFailed)(end)
        if end is not None:
            return


def do(board: Any, task: Task) -> dict[str, Any]:
    """Hand `task` to the crew and wait for its end; returns its last report. Raises :class:`TaskFailed`."""
    *_, last = reports(board, task)
    return last


Progresses = dict[str, tuple[int, int]]


@contextmanager
def watching(board: Any, show: Callable[[Progresses, list[dict[str, Any]]], None]) -> Iterator[None]:
    """Call `show` with what the board holds about once a second, from another thread, and at the end."""
    import ray

    done = threading.Event()

    def poll() -> None:
        for tick in itertools.count():
            if done.wait(1.0):
                return
            if tick % MEMORY_EVERY == 0:
                Memory.sample()
            with suppress(ray.exceptions.GetTimeoutError):  # a busy machine: there will be a next time
                show(*ray.get(board.read.remote(), timeout=30))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=35)
    show(*ray.get(board.read.remote(), timeout=30))


def worker(config: dict[str, Any]) -> None:
    """What Ray Train starts on every worker: take tasks from the board until the run is over."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    torch.set_num_threads(config["threads"])
    board, device = config["board"], ray.train.torch.get_device()
    first = ray.train.get_context().get_world_rank() == 0
    number = -1
    while (number := agreed(ray.get(board.task.remote(number)), device)) != OVER:
        try:
            (task,) = ray.get(board.begin.remote(number, first))
            perform(ray.get(task), number, board, first, device)
        except FloatingPointError:  # raised on every worker alike
            ray.get(board.end.remote(number, traceback.format_exc()))
        except Exception:
            # Others may wait for this one in a collective, or it may have failed because another one died:
            # let Ray Train start the whole group anew. A worker without others is itself to blame, and what
            # was too large for a memory would be so again.
            alone, why = ray.train.get_context().get_world_size() == 1, traceback.format_exc()
            hopeless = alone or out_of_memory(why)
            ray.get((board.end if hopeless else board.fault).remote(number, why))
            raise
        if first:
            ray.get(board.end.remote(number))


def out_of_memory(error: str) -> bool:
    """Whether a traceback is of a memory, a GPU's or a machine's, that was too small."""
    return "OutOfMemoryError" in error or "can't allocate memory" in error


def agreed(number: int, device: torch.device) -> int:
    """The largest `number` that any worker says.

    Of tasks: one that asked before a task was given up and one that asked afterwards were given others.
    """
    import torch

    if not torch.distributed.is_initialized():
        return number
    numbers = torch.tensor([number], device=device)
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    return int(numbers)


@contextmanager
def seen_running(task: Task, board: Any) -> Iterator[None]:
    """Let who watches the run from outside see that a training runs, and when it no longer does."""
    board.measured.remote(task.name, {"k": task.job.training.k, "running": True})  # type: ignore[union-attr]
    try:
        yield
    finally:
        board.measured.remote(task.name, {"running": False})


def perform(task: Task, number: int, board: Any, first: bool, device: torch.device) -> None:
    """Call the loop of a task on this worker and pass its reports on; only the `first` worker speaks."""
    import ray

    told = [0.0]

    def progress(done: int, of: int) -> None:
        if first and (done == of or time.monotonic() - told[0] > TOLD_EVERY):
            told[0] = time.monotonic()
            board.advance.remote(task.name, done, of)

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        if first:
            metrics = {**metrics, "peak_gib": peak_gib(device)}
            if folder:
                number_of_report = metrics.get("report", 0)
                if number_of_report == resumed:  # said once more; what is resumed from is never written over
                    saved = report_at(place, resumed)
                else:
                    saved = save_report(folder, place, number_of_report)
                metrics = {**metrics, "saved": saved}
            if task.loop == "train":
                board.measured.remote(task.name, metrics)
            ray.get(board.report.remote(number, metrics))

    def should_stop(reports: int) -> bool:
        try:
            return ray.get(board.verdict.remote(task.name, reports), timeout=VERDICT_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            what = f"{task.name} waited {VERDICT_TIMEOUT_S} s for the verdict on its report {reports}"
            raise TimeoutError(f"{what}: the search no longer answers") from None

    forget_peak(device)
    place = f"{task.storage}/{task.name}"
    resumed = NONE
    blocks: Any = ray.get(task.blocks)
    if task.loop == "probe":
        from adept_ray.probe import probe

        report(probe(task.job, blocks, device, progress), None)  # type: ignore[arg-type]
    elif task.loop == "train":
        from adept_ray.train import train

        asks = {"should_stop": should_stop} if task.judged else {}
        # The first worker's word holds: another one's view of a shared folder may be older.
        resumed = agreed(last_report(place) if first else NONE, device)
        start = task.extra.get("grown_from")
        with (
            seen_running(task, board) if first else nullcontext(),
            fetched(report_at(place, resumed)) if resumed != NONE else nullcontext() as resume,
            fetched(start) if start else nullcontext() as grown_from,
        ):
            begin = {"resume": resume, "grown_from": grown_from, "progress": progress}
            train(task.job, blocks, device, report, **begin, **asks)  # type: ignore[arg-type]
    else:
        from adept_ray.train import conclude

        with fetched(task.extra["checkpoint"]) as checkpoint:
            conclude(task.job, blocks, device, report, checkpoint, task.extra["about"], progress)  # type: ignore[arg-type]
