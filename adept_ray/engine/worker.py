"""A worker of a crew: it takes jobs from the board, does its part of each, and speaks for its crew."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from adept_ray.engine.client import BoardClient
from adept_ray.engine.cluster import count_logical_cpus, share_threads
from adept_ray.engine.job import DONE, DeferredWork, Job, LeavingNodes, Metrics, Outcome, describe_error
from adept_ray.engine.job_queue import NO_MORE
from adept_ray.engine.memory import count_kernel_kills, read_peak_memory, reset_peak_memory
from adept_ray.storage.checkpoints import NO_STEP, checkpoint_place, find_last_checkpoint, save_checkpoint
from adept_ray.storage.files import fetch_temporarily, read_json

if TYPE_CHECKING:
    import torch

    from adept_ray.data.blocks import Blocks
    from adept_ray.training.work import ProbeWork, TrainWork

PROGRESS_EVERY_S = 0.5  # seconds between two reports of progress
LAST_REPORT = "said.json"  # in a checkpoint between two reports: the metrics of the last one


@dataclass(frozen=True)
class CrewSettings:
    """What every worker of a crew is told."""

    board: BoardClient
    crew: int
    """Number of its crew."""
    workers: int
    """Workers of a crew that is whole."""
    crews: int
    threads: int
    """Torch threads that each worker was asked to take, 0 for its share of its machine."""


def work_from_board(config: Mapping[str, CrewSettings]) -> None:
    """What Ray Train starts on every worker: take jobs from the board until the run is over.

    `config` has one entry, ``settings``.
    """
    import ray
    import ray.train
    import ray.train.torch
    import torch

    settings, context = config["settings"], ray.train.get_context()
    board, crew = settings.board, settings.crew
    mates = context.get_local_world_size() * settings.crews  # all of them here, at worst
    torch.set_num_threads(settings.threads or share_threads(mates, count_logical_cpus()))
    device = ray.train.torch.get_device()
    node = ray.get_runtime_context().get_node_id()
    first, size = context.get_world_rank() == 0, context.get_world_size()
    turn = -1
    while (turn := agree_on_largest(board.claim_job(crew, turn), device)) != NO_MORE:
        number, reference = board.begin_job(crew, turn, node, count_kernel_kills())
        job: Job | None = None
        try:
            job = ray.get(reference)
            if first:
                board.record_size(crew, job.name, size, settings.workers)
            perform_job(job, JobVoice(board, number, first, device), device)
        except LeavingNodes:
            return  # Ray Train's run ends well, and the crew's leader begins another one
        except FloatingPointError:  # raised on every worker alike
            board.end_job(number, Outcome(traceback.format_exc()))
        except Exception as problem:
            # Other workers may wait for this one in a collective, or it may have failed because another one
            # died: let Ray Train start the whole group anew. A worker without others is itself to blame.
            outcome = describe_error(problem, job)
            if size == 1 or outcome.would_repeat:
                board.end_job(number, outcome)
            else:
                board.record_fault(number, outcome.error)
            raise
        if first:
            board.end_job(number, DONE)


def agree_on_largest(number: int, device: torch.device) -> int:
    """The largest `number` that any worker has.

    Of turns: a worker that asked before a job was given up and one that asked afterwards got different ones.
    """
    import torch

    if not torch.distributed.is_initialized():
        return number
    numbers = torch.tensor([number], device=device)
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    return int(numbers)


class JobVoice:
    """What a worker says of the job it is at, and what it is told; only the `first` worker speaks."""

    def __init__(self, board: BoardClient, number: int, first: bool, device: torch.device) -> None:
        self._board, self._number, self._first, self._device = board, number, first, device
        self._last_progress = 0.0  # when progress was last reported
        self._last_report: Metrics | None = None
        self.resumed = NO_STEP
        """Step of the checkpoint that the job goes on from."""

    def show_progress(self, name: str, done: int, total: int) -> None:
        """Say how far a job is, now and then."""
        due = time.monotonic() - self._last_progress > PROGRESS_EVERY_S
        if self._first and (done == total or due):
            self._last_progress = time.monotonic()
            self._board.record_progress(name, done, total)

    def show_numbers(self, name: str, numbers: Mapping[str, object]) -> None:
        """Let who watches the run from outside see numbers of a training."""
        if self._first:
            self._board.record_numbers(name, numbers)

    @contextmanager
    def show_running(self, name: str, k: int) -> Iterator[None]:
        """Let who watches the run from outside see that a training runs, and when it no longer does."""
        self.show_numbers(name, {"k": k, "running": True})
        try:
            yield
        finally:
            self.show_numbers(name, {"running": False})

    def pass_report(self, place: str, metrics: Metrics, folder: Path | None) -> None:
        """Pass a report on, and keep the files of `folder` under `place`."""
        if not self._first:
            return
        metrics = {**metrics, "peak_gib": read_peak_memory(self._device)}
        if folder:
            step = metrics.get("step", 0)
            # A report that is repeated was saved before; what a job resumes from is never written over.
            again = step == self.resumed
            metrics["saved"] = (
                checkpoint_place(place, step) if again else save_checkpoint(folder, place, step)
            )
        self._last_report = metrics
        self._board.add_report(self._number, metrics)

    def open_last_checkpoint(self, place: str) -> AbstractContextManager[Path | None]:
        """The folder of the last checkpoint under `place`, as a context; of None, if there is none.

        One that was saved between two reports repeats the last of them, which may not have been heard.
        """
        # The first worker's word holds: another one's view of a shared folder may be older.
        last = find_last_checkpoint(place, self._board.add_remark) if self._first else NO_STEP
        self.resumed = agree_on_largest(last, self._device)
        if self.resumed == NO_STEP:
            return nullcontext()
        saved = checkpoint_place(place, self.resumed)
        if self._first and (said := read_json(f"{saved}/{LAST_REPORT}")):
            self._last_report = {**said, "saved": saved}
            self._board.add_report(self._number, self._last_report)
        return fetch_temporarily(saved)

    def leave_nodes(self, place: str, step: int, folder: Path | None) -> None:
        """Keep a checkpoint that came between two reports, and raise :class:`LeavingNodes`."""
        if folder:
            if self._last_report:
                (folder / LAST_REPORT).write_text(json.dumps(self._last_report, default=float))
            save_checkpoint(folder, place, step)
            name = place.rpartition("/")[2]
            self._board.add_remark(f"{name} leaves a node that will be taken away; saved at step {step}")
        raise LeavingNodes

    def ask_for_stop(self, name: str, report: int) -> bool:
        """Wait for the verdict on a report: whether to stop."""
        return self._board.wait_for_verdict(name, report)


def is_preempted() -> bool:
    """Whether a node of this worker group will be taken away; every worker hears the same."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def perform_job(job: Job, voice: JobVoice, device: torch.device) -> None:
    """Call the loop of a job on this worker and pass on what it says."""
    import ray

    def progress(done: int, total: int) -> None:
        voice.show_progress(job.name, done, total)

    def report(metrics: Metrics, folder: Path | None) -> None:
        voice.pass_report(f"{job.storage}/{job.name}", metrics, folder)

    reset_peak_memory(device)
    blocks = ray.get(job.blocks)
    work = job.work.build() if isinstance(job.work, DeferredWork) else job.work
    if job.kind == "probe":
        from adept_ray.training.stage1 import run_probe

        report({**run_probe(cast("ProbeWork", work), blocks, device, progress)}, None)
    elif job.kind == "time_compiling":
        from adept_ray.training.pace import time_compiling

        report(time_compiling(cast("TrainWork", work), blocks, device, progress), None)
    elif job.kind == "train":
        perform_training(job, cast("TrainWork", work), blocks, voice, device)
    else:
        from adept_ray.training.callbacks import Callbacks
        from adept_ray.training.export import score_and_export

        callbacks = Callbacks(report, progress)
        with fetch_temporarily(job.checkpoint) as checkpoint:
            score_and_export(cast("TrainWork", work), blocks, device, checkpoint, job.about, callbacks)


def perform_training(
    job: Job, work: TrainWork, blocks: Mapping[str, Blocks], voice: JobVoice, device: torch.device
) -> None:
    """Train on this worker, from the job's last checkpoint if there is one."""
    from adept_ray.training.callbacks import Callbacks, ResumePoint
    from adept_ray.training.stage2 import train

    place = f"{job.storage}/{job.name}"

    def report(metrics: Metrics, folder: Path | None) -> None:
        voice.show_numbers(job.name, metrics)
        voice.pass_report(place, metrics, folder)

    callbacks = Callbacks(
        report,
        progress=lambda done, total: voice.show_progress(job.name, done, total),
        should_stop=lambda reports: job.judged and voice.ask_for_stop(job.name, reports),
        asked_to_save=is_preempted,
        keep=lambda step, folder: voice.leave_nodes(place, step, folder),
    )
    with voice.show_running(job.name, work.training.k), voice.open_last_checkpoint(place) as resume:
        fresh = job.grown_from and voice.resumed == NO_STEP
        with fetch_temporarily(job.grown_from) if fresh else nullcontext() as grown_from:
            train(work, blocks, device, callbacks, ResumePoint(resume, grown_from))
