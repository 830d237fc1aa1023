"""Ray: the cluster, what fits on it, and the one way to run a loop on its workers (TorchTrainer)."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adept_ray.config import RunSpec, UserError

if TYPE_CHECKING:
    from adept_ray.probe import ProbeJob
    from adept_ray.train import TrainJob

CPUS_PER_WORKER = 1
SPARE_CPUS = 2  # Ray Data and Tune each need a whole logical CPU next to the workers
OBJECT_STORE_BYTES = 512 * 2**20  # blocks of a run are a few MiB; Ray's default takes 30 % of the memory
VERDICT_TIMEOUT_S = 600
MEMORY_EVERY = 5  # seconds between two looks at the memory in use
# Keeps Ray's chatter out of a run that goes well; what the user has set stays.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables: ours is shown instead
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's own CSV, JSON and TensorBoard files
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning about actors without GPUs
}


@contextmanager
def cluster(run: RunSpec) -> Iterator[str]:
    """Connect to the cluster in ``RAY_ADDRESS``, else start one on this machine; yields the dashboard's URL.

    A local cluster gets logical CPUs for the workers and for what Ray needs on top, so that two real
    CPUs are enough. It is shut down on the way out. Raises :class:`UserError` when the workers don't fit.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    check_workers(run)
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "adept_ray"}
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": run.workers * CPUS_PER_WORKER + SPARE_CPUS,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": run.dashboard,
        }
    try:
        if address:
            knock(address)
        context = ray.init(**options)
    except (ConnectionError, OSError) as problem:
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address}: {first_line(problem)}") from None
    try:
        check_cluster(run, ray.cluster_resources())
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        ray.shutdown()


def knock(address: str) -> None:
    """Raise OSError unless something listens at `address`: Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdigit():  # not "auto"
        socket.create_connection((host, int(port)), timeout=10).close()


def check_workers(run: RunSpec) -> None:
    """Refuse more workers than this machine has CPUs or GPUs, before Ray is even started.

    Raises :class:`UserError`. With ``RAY_ADDRESS`` set, only the cluster knows: see :func:`check_cluster`.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    if run.workers > cpus():
        raise UserError(
            f"--workers {run.workers}: this machine has {cpus()} CPUs, so at most {cpus()} workers"
        )
    if run.gpus_per_worker:
        import torch

        check_cluster(run, {"CPU": math.inf, "GPU": torch.cuda.device_count()})


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cluster(run: RunSpec, have: Mapping[str, float]) -> None:
    """Refuse what the cluster can never schedule; without this the run would wait for ever."""
    gpus = run.workers * run.gpus_per_worker
    if gpus > have.get("GPU", 0):
        raise UserError(
            f"--workers {run.workers} with --gpus-per-worker {run.gpus_per_worker:g} needs {gpus:g} GPUs "
            f"and the cluster has {have.get('GPU', 0):g}"
        )
    needed = run.workers * CPUS_PER_WORKER + SPARE_CPUS
    if needed > have.get("CPU", 0):
        raise UserError(
            f"--workers {run.workers} needs {needed} logical CPUs ({SPARE_CPUS} of them for Ray itself) "
            f"and the cluster has {have.get('CPU', 0):g}"
        )


def first_line(problem: object) -> str:
    """The first line of an error's text."""
    return str(problem).strip().partition("\n")[0]


class Board:
    """A small actor that workers, search and display share.

    It holds the progress of each job, the latest row of each trial and the verdicts on their reports.
    """

    def __init__(self) -> None:
        self._progress: dict[str, tuple[int, int]] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._verdicts: dict[tuple[str, int], asyncio.Future[bool]] = {}

    async def advance(self, job: str, done: int, of: int) -> None:
        """Say that `job` has done so much of so much."""
        self._progress[job] = (done, of)

    async def note(self, row: dict[str, Any]) -> None:
        """Keep the latest row of a trial."""
        self._rows[row["trial"]] = row

    async def read(self) -> tuple[dict[str, tuple[int, int]], list[dict[str, Any]]]:
        """(done, of) of every job, and the trials' rows."""
        return self._progress, list(self._rows.values())

    async def decide(self, trial: str, report: int, stop: bool) -> None:
        """Give the verdict on a trial's report."""
        future = self._verdict(trial, report)
        if not future.done():
            future.set_result(stop)

    async def verdict(self, trial: str, report: int) -> bool:
        """Wait for the verdict on a trial's report: whether to stop."""
        return await self._verdict(trial, report)

    def _verdict(self, trial: str, report: int) -> asyncio.Future[bool]:
        if (trial, report) not in self._verdicts:
            self._verdicts[trial, report] = asyncio.get_running_loop().create_future()
        return self._verdicts[trial, report]


def start_board(run: RunSpec) -> Any:
    """A new board for this run; it lives as long as somebody holds the handle."""
    import ray

    return ray.remote(num_cpus=0)(Board).options(name=board_name(run)).remote()


def board_name(run: RunSpec) -> str:
    """The name under which any process of the run finds its board."""
    return f"board {run.name}"


class Memory:
    """Memory of this process and all that it started; files that they map are left to the page cache."""

    _peak = 0

    @classmethod
    def sample(cls) -> None:
        """Measure now. A no-op where there is no /proc."""
        own, shared, waiting = 0, 0, [os.getpid()]
        while waiting:
            pid = waiting.pop()
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                own += int(status.partition("RssAnon:")[2].split()[0])
                # The object store is one piece that every process maps.
                shared = max(shared, int(status.partition("RssShmem:")[2].split()[0]))
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
            except (OSError, IndexError):  # it has ended, or this isn't Linux
                continue
        cls._peak = max(cls._peak, own + shared)

    @classmethod
    def peak_gib(cls) -> float | None:
        """Largest sample so far, GiB."""
        return round(cls._peak / 2**20, 2) or None


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


def fit(
    loop: str,
    job: ProbeJob | TrainJob,
    blocks: Any,
    run: RunSpec,
    name: str,
    storage: str,
    board: Any,
    tuned: bool = False,
    **extra: Any,
) -> Any:
    """Run one of the loops ``probe``, ``train``, ``conclude`` on the run's workers and wait for it.

    `blocks` is an object reference to what the loop takes as its blocks; `extra` goes to the loop.
    With `tuned` (inside a Tune trial) every report is passed on to Tune. A run of the same `name`
    under the same `storage` resumes from its last checkpoint (``probe`` and ``conclude`` make none that
    they read, so they begin anew). Returns Ray Train's result.
    """
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    callbacks: list[Any] = []
    if tuned:
        from ray.tune.integration.ray_train import TuneReportCallback

        callbacks.append(TuneReportCallback())
    resources: dict[str, float] = {"CPU": CPUS_PER_WORKER}
    if run.gpus_per_worker:
        resources["GPU"] = run.gpus_per_worker
    trainer = TorchTrainer(
        worker,
        train_loop_config={
            "loop": loop,
            "job": job,
            "blocks": blocks,
            "board": board,
            "name": name,
            "threads": threads_per_worker(run),
            "extra": extra,
        },
        scaling_config=ScalingConfig(
            num_workers=run.workers, use_gpu=run.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            callbacks=callbacks,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    return trainer.fit()


def threads_per_worker(run: RunSpec) -> int:
    """Torch threads of one worker: the machine's CPUs shared out, since busy threads beyond them spin."""
    return max(1, cpus() // run.workers)


def worker(config: dict[str, Any]) -> None:
    """What Ray Train starts on every worker: fetch the blocks, call the loop, pass its reports on."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    torch.set_num_threads(config["threads"])
    board, name = config["board"], config["name"]
    first = ray.train.get_context().get_world_rank() == 0

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        checkpoint = ray.train.Checkpoint.from_directory(str(folder)) if folder else None
        ray.train.report(metrics, checkpoint=checkpoint)

    told = [0.0]

    def progress(done: int, of: int) -> None:
        if first and (done == of or time.monotonic() - told[0] > 0.5):
            told[0] = time.monotonic()
            board.advance.remote(name, done, of)

    def should_stop(reports: int) -> bool:
        try:
            return ray.get(board.verdict.remote(name, reports), timeout=VERDICT_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            what = f"{name} waited {VERDICT_TIMEOUT_S} s for the verdict on its report {reports}"
            raise TimeoutError(f"{what}: the search no longer answers") from None

    blocks = ray.get(config["blocks"])
    given = dict(config["extra"])
    device = ray.train.torch.get_device()
    if config["loop"] == "probe":
        from adept_ray.probe import probe

        result = probe(config["job"], blocks, device, progress)
        with tempfile.TemporaryDirectory() as folder:
            if first:
                (Path(folder) / "probe.json").write_text(json.dumps(result))
            report({}, Path(folder) if first else None)
    elif config["loop"] == "train":
        from adept_ray.train import train

        asks = {"should_stop": should_stop} if given.pop("judged", False) else {}
        with resumed(ray.train.get_checkpoint()) as last:
            train(config["job"], blocks, device, report, resume=last, progress=progress, **asks)
    else:
        from adept_ray.train import conclude

        with given.pop("checkpoint").as_directory() as folder:
            conclude(config["job"], blocks, device, report, checkpoint=Path(folder), **given)


@contextmanager
def resumed(checkpoint: Any) -> Iterator[Path | None]:
    """The folder of a checkpoint, or None where there is none."""
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)
