"""The crews: Ray Train's workers, started once a run, that do job after job; and the board in between.

A worker group takes longer to start than a short trial takes to train: half a dozen processes, each with
its imports. So stage 1, every trial and the export run on the same warm workers, as jobs that they take
from the board. Several crews take jobs side by side, each its own. A worker that dies takes its group with
it; Ray Train starts a new one, and that goes on with the crew's unfinished job at its last checkpoint. A
group that hears that one of its nodes will be taken away saves what it has and leaves; the next one starts
elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adept_ray.config.errors import UserError
from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.specs import RunSpec
from adept_ray.engine.cluster import CPUS_PER_WORKER, count_logical_cpus, read_thread_request, share_threads
from adept_ray.engine.memory import Memory, count_kernel_kills, read_peak_memory, reset_peak_memory
from adept_ray.engine.metrics import RunNumbers, serve_metrics
from adept_ray.storage.checkpoints import NO_STEP, checkpoint_place, find_last_checkpoint, save_checkpoint
from adept_ray.storage.files import fetch_temporarily, is_disk_full, read_json, store_json

if TYPE_CHECKING:
    import torch

    from adept_ray.training.work import ProbeWork, TrainWork

VERDICT_TIMEOUT_S = 600
ATTEMPTS = 3  # how often a job is begun: when its workers die each time, it is the job that kills them
RESTARTS = 30  # worker groups of a crew that may die in a run
START_TRIES = 10  # of a minute each, on a cluster that others keep busy
RESIZE_EVERY = 20.0  # seconds between two looks for room for more workers, where their number may change
NO_MORE = 2**31 - 1  # number of no job: there will be no more
MEMORY_EVERY = 5  # seconds between two looks at the memory in use
PROGRESS_EVERY_S = 0.5  # seconds between two reports of progress
ERROR_PREFIX = "error: "  # begins the end of a job that a person can do something about
FULL_DISK = "no space left"
KERNEL_KILL = "the kernel killed a process of that machine for want of memory"
KERNEL_TIMEOUT_S = 10  # seconds that a machine has to say so
LAST_REPORT = "said.json"  # in a checkpoint between two reports: the metrics of the last one
MEMORY_LIMIT = "limit.json"  # beside a search's other memory
MUCH_LARGER = 1.1  # times the memory: what a machine has free varies by less


class JobFailed(RuntimeError):
    """A job ended with an error; the message is the worker's traceback."""


class CrewLost(JobFailed):
    """There are no workers any more; the message says why. It is no job's fault."""


class JobRefused(JobFailed, UserError):
    """A job ended with an error that a person can do something about; the message is one sentence."""


class LeavingNodes(Exception):
    """This worker group has saved what it has and leaves its nodes."""


class DiskFull(JobRefused):
    """A disk is full, for this job and for every other one."""


@dataclass(frozen=True)
class Job:
    """A piece of work for the whole crew."""

    name: str
    """``probe``, ``trial-001``, …: names its progress, and the folder under `storage` for what it saves."""
    loop: Literal["probe", "pace", "train", "conclude"]
    work: ProbeWork | TrainWork
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


@dataclass(frozen=True)
class WorkerMemory:
    """What decides whether a k fits into the workers."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those that decide whether a k fits, by name."""
    memory: int = 0
    """Bytes that a worker may use."""

    def limit(self, known: Any) -> int | None:
        """The k that a file of :meth:`Board.exceeded` says was too large, if it is in this room, too."""
        if not isinstance(known, dict):  # no file, or one that doesn't say in which room that was
            return None
        other = known["settings"] != self.settings or self.memory > MUCH_LARGER * known["memory"]
        return None if other else known["k"]


class Board:
    """A small actor between the run's processes: jobs, their reports and verdicts, progress, trials' rows.

    A job is kept as it came, a reference in a list, so that this process needn't import what it is made of.
    `memory` is the path or URI of a folder for what a resumed run has to know; `room` is that of its workers.
    """

    def __init__(self, memory: str = "", room: WorkerMemory | None = None) -> None:
        self._progress: dict[str, tuple[int, int]] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._remarks: list[str] = []
        self._verdicts: dict[tuple[str, int], bool] = {}
        self._jobs: list[Any] = []
        self._names: list[str] = []
        self._reports: list[list[dict[str, Any]]] = []
        self._ends: dict[int, str] = {}  # job → what went wrong, empty if nothing did
        self._claims: dict[int, list[int]] = defaultdict(list)  # crew → its jobs, as they were claimed
        self._sizes: dict[int, int] = {}  # crew → its workers, where their number may change
        self._deaths: Counter[int] = Counter()  # of its workers, since the last new report
        self._faults: dict[int, str] = {}
        # crew → node → what the kernel had killed there for memory when the crew began its job
        self._kills: dict[int, dict[str, int]] = defaultdict(dict)
        self._closed = ""  # why there will be no more jobs
        self._place = f"{memory}/{MEMORY_LIMIT}" if memory else ""
        self._room = room or WorkerMemory()
        # smallest k at which a worker ran out of memory
        self._limit = self._room.limit(read_json(self._place)) if memory else None
        self._changed = asyncio.Condition()
        self._numbers = RunNumbers()
        self._crews = 1

    async def lead(self, board: Any, run: RunSpec, storage: str, threads: int) -> None:
        """Keep the crews running; when all are gone for good, so are the jobs. `board` is its own handle.

        It is done here and not in the run's own process, where it would take a thread: one that still waits
        for Ray when the run is interrupted ends the process with Ray's status in place of ours.
        """
        serving = asyncio.create_task(serve_metrics(self._numbers, run.name))
        self._crews = run.crews
        leaders = ThreadPoolExecutor(run.crews)

        why = "the workers went home"

        async def lead_one(number: int) -> None:
            nonlocal why
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(leaders, keep_crew, board, run, storage, number, threads)
            except Exception as error:
                why = f"the workers can't be kept running: {error}"
                await self.give_back(number)
                if run.crews > 1:
                    await self.remark(f"crew {number + 1} of {run.crews} is gone for good: {error}")

        await asyncio.gather(*(lead_one(number) for number in range(run.crews)))
        await self.close(why)
        serving.cancel()

    async def crews(self) -> int:
        """How many crews take jobs."""
        return self._crews

    async def submit(self, name: str, job: Any) -> int:
        """Hand in a job; returns its number.

        One of that name that isn't over yet, or that failed, is the same: who handed it in before is gone.
        """
        number = self._names.index(name) if name in self._names else None
        if number is not None and self._ends.get(number, "not yet") != "":
            self._jobs[number] = job  # what it refers to went with the one who handed it in
            return number
        if number is not None:
            self._names[number] = ""
        self._jobs.append(job)
        self._names.append(name)
        self._reports.append([])
        number = len(self._jobs) - 1
        if self._closed:
            self._ends[number] = self._closed
        await self._tell()
        return number

    async def job(self, crew: int, done: int) -> int:
        """Wait for a crew's next job; returns its place among those it claimed, above `done`, or OVER.

        A job that it has claimed and that isn't over comes first, then one that nobody has claimed.
        """
        await self._until(lambda: bool(self._closed) or self._next(crew, done) is not None)
        number = self._next(crew, done)
        if self._closed or number is None:
            return NO_MORE
        if number not in self._claims[crew][done + 1 :]:
            self._claims[crew].append(number)
        return self._claims[crew].index(number, done + 1)

    def _next(self, crew: int, done: int) -> int | None:
        claimed = {number for numbers in self._claims.values() for number in numbers}
        free = (number for number in range(len(self._jobs)) if number not in claimed)
        wanted = itertools.chain(self._claims[crew][done + 1 :], free)
        return next((number for number in wanted if number not in self._ends), None)

    async def give_back(self, crew: int) -> None:
        """Say that a crew has no workers: what it had claimed is free again."""
        self._claims.pop(crew, None)
        await self._tell()

    async def begin(self, crew: int, place: int, node: str = "", kills: int = 0) -> tuple[int, Any]:
        """Number and job at a place of a crew, to begin with it; so many have been killed on that node."""
        if node:
            self._kills[crew][node] = kills
        number = self._claims[crew][place]
        return number, self._jobs[number]

    async def kills(self, crew: int) -> dict[str, int]:
        """Node of a crew → the processes that the kernel had killed there when its job began."""
        return self._kills.pop(crew, {})

    async def fault(self, number: int, error: str) -> None:
        """Keep what a worker died of: the reason to be given if the job is given up."""
        self._faults[number] = error

    async def report(self, number: int, metrics: dict[str, Any]) -> None:
        """Add a report to a job; one that comes further than all before clears it of killing its workers."""
        if metrics.get("report", 0) > max((m.get("report", 0) for m in self._reports[number]), default=0):
            self._deaths[number] = 0
        self._reports[number].append(metrics)
        await self._tell()

    async def end(self, number: int, error: str = "") -> None:
        """Say that a job is over; the first to say so is heard."""
        self._ends.setdefault(number, error)
        await self._tell()

    async def reports(self, number: int, seen: int) -> tuple[list[dict[str, Any]], str | None]:
        """Wait for more than `seen` reports of a job or its end: what is new, and how it ended."""
        await self._until(lambda: len(self._reports[number]) > seen or number in self._ends)
        return self._reports[number][seen:], self._ends.get(number)

    async def close(self, error: str = "the run is over") -> None:
        """Send the crew home; what is unfinished, and what is still handed in, ends with `error`."""
        self._closed = self._closed or error
        for number in range(len(self._jobs)):
            self._ends.setdefault(number, self._closed)
        await self._tell()

    async def closed(self) -> str:
        """Why there will be no more jobs; empty while there may be some."""
        return self._closed

    async def decide(self, trial: str, report: int, stop: bool) -> None:
        """Give the verdict on a trial's report; the first one stands."""
        self._verdicts.setdefault((trial, report), stop)
        await self._tell()

    async def verdict(self, trial: str, report: int) -> bool:
        """Wait for the verdict on a trial's report: whether to stop."""
        await self._until(lambda: (trial, report) in self._verdicts)
        return self._verdicts[trial, report]

    async def died(self, crew: int, error: str) -> None:
        """Say what a worker of a crew died of: the job that it was at is free again, or given up.

        It is when it has killed its workers so many times, or was too large for the memory, which it would be
        again. Workers that leave, or become more or fewer, haven't died.
        """
        at = next((n for n in self._claims[crew] if n not in self._ends), None)
        if at is None:
            return
        self._deaths[at] += 1
        self._faults.setdefault(at, error)
        if is_out_of_memory(error):
            await self.end(at, error)
        elif self._deaths[at] >= ATTEMPTS:
            await self.end(at, f"the workers died {ATTEMPTS} times at this job\n{self._faults[at]}".strip())
        await self.give_back(crew)

    async def remark(self, text: str) -> None:
        """Keep a line that the run's user should read."""
        self._remarks.append(text)

    async def manned(self, crew: int, job: str, size: int, of: int) -> None:
        """Say with how many of its workers a crew is at a job; a change is remarked."""
        if size != self._sizes.get(crew, of):
            await self.remark(f"{job} goes on with {size} of {of} workers")
        self._sizes[crew] = size

    async def remarks(self, seen: int) -> list[str]:
        """The lines but for the first `seen`."""
        return self._remarks[seen:]

    async def exceeded(self, k: int) -> None:
        """Say that a worker ran out of memory at that k."""
        self._limit = k if self._limit is None else min(k, self._limit)
        if self._place:
            await asyncio.to_thread(store_json, self._place, {"k": self._limit, **asdict(self._room)})

    async def limit(self) -> int | None:
        """Smallest k at which a worker ran out of memory."""
        return self._limit

    async def advance(self, job: str, done: int, of: int) -> None:
        """Say that the job of that name has done so much of so much."""
        self._progress[job] = (done, of)
        self._numbers.of(job, {"step": done})

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
        """(done, of) of every job, and the trials' rows."""
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
def start_crews(
    run: RunSpec, storage: str, say: Callable[[str], None] = print, memory: int = 0
) -> Iterator[Any]:
    """Start the workers of `run.crews` crews in the background; yields the board that takes their jobs.

    `storage` is where Ray Train keeps its own records; `say` gets lines for the user; `memory` are the bytes
    that a worker may use. What goes wrong for good ends all jobs.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(Board)
    room = WorkerMemory({name: run.read_field(name) for name in list_fields(RunSpec, Mark.FITTING)}, memory)
    board = actor.options(name=board_name(run), scheduling_strategy=here).remote(storage, room)
    leading = board.lead.remote(board, run, storage, read_thread_request())
    said = 0

    def say_more() -> None:
        nonlocal said
        new = ray.get(board.remarks.remote(said), timeout=30)
        said += len(new)
        for text in new:
            say(text)

    # When this raises, what runs now is not worth waiting for: the cluster ends it.
    with call_every_second(lambda tick: say_more()):
        yield board
    say_more()
    ray.get(board.close.remote())
    with suppress(ray.exceptions.GetTimeoutError):
        ray.get(leading, timeout=30)  # so that the workers' resources are free again


def keep_crew(board: Any, run: RunSpec, storage: str, number: int, threads: int) -> None:
    """Start a crew and keep it running until the board sends it home. Raises Ray Train's errors.

    `threads` is the number that each worker was asked to take, 0 for its share of its machine.
    """
    import ray

    restarts = 0
    while not ray.get(board.closed.remote()):  # again, if it left its nodes
        try:
            build_trainer(board, run, storage, number, threads).fit()
        except Exception as error:
            # Where a memory is too full Ray kills the newest actors first, its own helpers among them.
            if restarts == RESTARTS or not is_out_of_memory(str(error)):
                raise
            restarts += 1
            # Of several crews it needn't be this one's job that was too large: that begins again.
            why = str(error) if run.crews == 1 else "what watched over the workers was killed"
            ray.get(board.died.remote(number, why))
        ray.get(board.give_back.remote(number))  # whoever has workers first goes on with it


def build_trainer(board: Any, run: RunSpec, storage: str, number: int, threads: int) -> Any:
    """Ray Train's trainer that keeps one worker group of a crew."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources: dict[str, float] = {"CPU": CPUS_PER_WORKER}
    if run.machine.gpus_per_worker:
        resources["GPU"] = run.machine.gpus_per_worker
    numbers: Any = (
        run.machine.fewest_workers,
        run.machine.workers,
    )  # Ray Train changes the number between these
    return TorchTrainer(
        work_from_board,
        train_loop_config={
            "board": board,
            "crew": number,
            "workers": run.machine.workers,
            "crews": run.crews,
            "threads": threads,
        },
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=numbers if run.machine.fewest_workers < run.machine.workers else run.machine.workers,
            elastic_resize_monitor_interval_s=RESIZE_EVERY,
            use_gpu=run.machine.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=f"crew-{number}",
            storage_path=storage,
            failure_config=FailureConfig(RESTARTS, controller_failure_limit=START_TRIES),  # type: ignore[call-arg]
            callbacks=[report_deaths(board, number)],
        ),
    )


def report_deaths(board: Any, crew: int) -> Any:
    """A callback for Ray Train that tells the board what a worker died of, which itself can't any more."""
    import ray
    from ray.train import UserCallback

    class Deaths(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            # Ray Train's own errors say of which error of Ray's they are made.
            errors = [getattr(error, "health_check_failure", error) for error in worker_exceptions.values()]
            texts = [f"{type(error).__name__}: {error}" for error in errors]
            if has_kernel_killed(ray.get(board.kills.remote(crew))):
                texts.append(KERNEL_KILL)
            board.died.remote(crew, "\n".join(texts))

    return Deaths()


def has_kernel_killed(before: Mapping[str, int]) -> bool:
    """Whether the kernel has killed a process for its memory since it had killed so many on these nodes.

    A node that is gone can't say.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    count, here = (
        ray.remote(num_cpus=0, max_retries=0)(count_kernel_kills),
        ray.get_runtime_context().get_node_id(),
    )
    if (
        here in before and count_kernel_kills() > before[here]
    ):  # asked without a new process, for want of memory
        return True
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - {here}
    for node in alive & before.keys():
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        with suppress(ray.exceptions.RayError):
            if (
                ray.get(count.options(scheduling_strategy=there).remote(), timeout=KERNEL_TIMEOUT_S)
                > before[node]
            ):
                return True
    return False


def follow_job(board: Any, job: Job) -> Iterator[dict[str, Any]]:
    """Hand `job` to a crew and yield its reports as they come.

    Raises :class:`JobFailed`, :class:`JobRefused` for what a person can mend, and :class:`CrewLost` when it
    isn't the job that failed.
    """
    import ray

    number, seen = ray.get(board.submit.remote(job.name, [ray.put(job)])), 0
    waiting = board.reports.options(name=job.title or job.name)  # what the dashboard shows as running
    while True:
        new, end = ray.get(waiting.remote(number, seen))
        yield from new
        seen += len(new)
        if end and end.startswith(ERROR_PREFIX):
            sentence = end.removeprefix(ERROR_PREFIX)
            raise (DiskFull if sentence.startswith(FULL_DISK) else JobRefused)(sentence)
        if end:
            raise (CrewLost if ray.get(board.closed.remote()) else JobFailed)(end)
        if end is not None:
            return


def run_job(board: Any, job: Job) -> dict[str, Any]:
    """Hand `job` to a crew and wait for its end; returns its last report. Raises as :func:`follow_job`."""
    *_, last = follow_job(board, job)
    return last


Progress = dict[str, tuple[int, int]]


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
        thread.join(timeout=35)


@contextmanager
def watch_board(board: Any, show: Callable[[Progress, list[dict[str, Any]]], None]) -> Iterator[None]:
    """Call `show` with what the board holds about once a second, from another thread, and at the end."""
    import ray

    def look(tick: int) -> None:
        if tick % MEMORY_EVERY == 0:
            Memory.sample()
        show(*ray.get(board.read.remote(), timeout=30))

    with call_every_second(look):
        yield
    show(*ray.get(board.read.remote(), timeout=30))


def work_from_board(config: dict[str, Any]) -> None:
    """What Ray Train starts on every worker: take jobs from the board until the run is over."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    context = ray.train.get_context()
    mates = context.get_local_world_size() * config["crews"]  # all of them here, at worst
    torch.set_num_threads(config["threads"] or share_threads(mates, count_logical_cpus()))
    board, crew, device = config["board"], config["crew"], ray.train.torch.get_device()
    node = ray.get_runtime_context().get_node_id()
    first, size = context.get_world_rank() == 0, context.get_world_size()
    place = -1
    while (place := agree_on_largest(ray.get(board.job.remote(crew, place)), device)) != NO_MORE:
        number, (reference,) = ray.get(board.begin.remote(crew, place, node, count_kernel_kills()))
        job: Job | None = None
        try:
            job = ray.get(reference)
            if first:
                board.manned.remote(crew, job.name, size, config["workers"])
            perform_job(job, JobVoice(board, number, first, device), device)
        except LeavingNodes:
            return  # Ray Train's run ends well, and the crew's leader begins another one
        except FloatingPointError:  # raised on every worker alike
            ray.get(board.end.remote(number, traceback.format_exc()))
        except Exception as problem:
            # Others may wait for this one in a collective, or it may have failed because another one died:
            # let Ray Train start the whole group anew. A worker without others is itself to blame, and what
            # was too large for a memory or a disk would be so again.
            why = describe_fault(problem, job)
            hopeless = size == 1 or is_out_of_memory(why) or why.startswith(ERROR_PREFIX)
            ray.get((board.end if hopeless else board.fault).remote(number, why))
            raise
        if first:
            ray.get(board.end.remote(number))


def describe_fault(problem: Exception, job: Job | None) -> str:
    """What the board is told of an error: a sentence where that says what to do, else the traceback."""
    if isinstance(problem, UserError):
        return f"{ERROR_PREFIX}{problem}"
    if job and is_disk_full(problem):
        return (
            f"{ERROR_PREFIX}{FULL_DISK} for a checkpoint of {job.name} under {job.storage} (it is made in "
            f"{tempfile.gettempdir()} first): make room and go on with --resume, from the last whole one"
        )
    return "".join(traceback.format_exception(problem))


def is_out_of_memory(error: str) -> bool:
    """Whether an error says that a memory, a GPU's or a machine's, was too small."""
    signs = (
        "OutOfMemoryError",
        "can't allocate memory",
        "out of memory issue",
        "running low on memory",
        KERNEL_KILL,
    )
    return any(sign in error for sign in signs)


def agree_on_largest(number: int, device: torch.device) -> int:
    """The largest `number` that any worker says.

    Of jobs: one that asked before a job was given up and one that asked afterwards were given others.
    """
    import torch

    if not torch.distributed.is_initialized():
        return number
    numbers = torch.tensor([number], device=device)
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    return int(numbers)


class JobVoice:
    """What a worker says of the job it is at, and hears; only the `first` worker speaks."""

    def __init__(self, board: Any, number: int, first: bool, device: torch.device) -> None:
        self._board, self._number, self._first, self._device = board, number, first, device
        self._told = 0.0
        self._said: dict[str, Any] | None = None  # metrics of the last report
        self.resumed = NO_STEP
        """Step of the checkpoint that the job goes on from."""

    def progress(self, name: str, done: int, of: int) -> None:
        """Say how far a job is, now and then."""
        if self._first and (done == of or time.monotonic() - self._told > PROGRESS_EVERY_S):
            self._told = time.monotonic()
            self._board.advance.remote(name, done, of)

    def measured(self, name: str, numbers: Mapping[str, Any]) -> None:
        """Let who watches the run from outside see numbers of a training."""
        if self._first:
            self._board.measured.remote(name, numbers)

    @contextmanager
    def running(self, name: str, k: int) -> Iterator[None]:
        """Let them see that a training runs, and when it no longer does."""
        self.measured(name, {"k": k, "running": True})
        try:
            yield
        finally:
            self.measured(name, {"running": False})

    def report(self, place: str, metrics: dict[str, Any], folder: Path | None) -> None:
        """Pass a report on, and keep the files of `folder` under `place`."""
        import ray

        if not self._first:
            return
        metrics = {**metrics, "peak_gib": read_peak_memory(self._device)}
        if folder:
            step = metrics.get("step", 0)
            # What is said once more was saved before; what is resumed from is never written over.
            again = step == self.resumed
            metrics["saved"] = (
                checkpoint_place(place, step) if again else save_checkpoint(folder, place, step)
            )
        self._said = metrics
        ray.get(self._board.report.remote(self._number, metrics))

    def resume(self, place: str) -> Any:
        """The folder of the last checkpoint under `place`, as a context; of None, if there is none.

        One that was saved between two reports repeats the last of them, which may not have been heard.
        """
        import ray

        # The first worker's word holds: another one's view of a shared folder may be older.
        last = find_last_checkpoint(place, self._board.remark.remote) if self._first else NO_STEP
        self.resumed = agree_on_largest(last, self._device)
        if self.resumed == NO_STEP:
            return nullcontext()
        saved = checkpoint_place(place, self.resumed)
        if self._first and (said := read_json(f"{saved}/{LAST_REPORT}")):
            self._said = {**said, "saved": saved}
            ray.get(self._board.report.remote(self._number, self._said))
        return fetch_temporarily(saved)

    def should_stop(self, name: str, reports: int) -> bool:
        """Wait for the verdict on a report."""
        import ray

        try:
            return ray.get(self._board.verdict.remote(name, reports), timeout=VERDICT_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            what = f"{name} waited {VERDICT_TIMEOUT_S} s for the verdict on its report {reports}"
            raise TimeoutError(f"{what}: the search no longer answers") from None

    def leave(self, place: str, step: int, folder: Path | None) -> None:
        """Keep a checkpoint that came between two reports, and raise :class:`LeavingNodes`."""
        import ray

        if folder:
            if self._said:
                (folder / LAST_REPORT).write_text(json.dumps(self._said, default=float))
            save_checkpoint(folder, place, step)
            text = f"{place.rpartition('/')[2]} leaves a node that will be taken away; saved at step {step}"
            ray.get(self._board.remark.remote(text))
        raise LeavingNodes


def is_preempted() -> bool:
    """Whether a node of this worker group will be taken away; every worker hears the same."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def perform_job(job: Job, voice: JobVoice, device: torch.device) -> None:
    """Call the loop of a job on this worker and pass on what it says."""
    import ray

    def progress(done: int, of: int) -> None:
        voice.progress(job.name, done, of)

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        if job.loop == "train":
            voice.measured(job.name, metrics)
        voice.report(place, metrics, folder)

    reset_peak_memory(device)
    place = f"{job.storage}/{job.name}"
    blocks: Any = ray.get(job.blocks)
    if job.loop == "probe":
        from adept_ray.training.stage1 import run_probe

        report(run_probe(job.work, blocks, device, progress), None)  # type: ignore[arg-type]
    elif job.loop == "pace":
        from adept_ray.training.pace import time_compiling

        report(time_compiling(job.work, blocks, device, progress), None)  # type: ignore[arg-type]
    elif job.loop == "train":
        from adept_ray.training.stage2 import train

        asks: dict[str, Any] = {
            "asked_to_save": is_preempted,
            "keep": lambda *what: voice.leave(place, *what),
        }
        if job.judged:
            asks["should_stop"] = lambda reports: voice.should_stop(job.name, reports)
        start = job.extra.get("grown_from")
        with (
            voice.running(job.name, job.work.training.k),  # type: ignore[union-attr]
            voice.resume(place) as resume,
            fetch_temporarily(start) if start and voice.resumed == NO_STEP else nullcontext() as grown_from,
        ):
            begin = {"resume": resume, "grown_from": grown_from, "progress": progress}
            train(job.work, blocks, device, report, **begin, **asks)  # type: ignore[arg-type]
    else:
        from adept_ray.training.export import score_and_export

        with fetch_temporarily(job.extra["checkpoint"]) as checkpoint:
            score_and_export(job.work, blocks, device, report, checkpoint, job.extra["about"], progress)  # type: ignore[arg-type]
