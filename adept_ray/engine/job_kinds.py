"""What a worker does for each kind of job: it calls a loop of `training` and passes on what that says."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

from adept_ray.engine.job import DeferredWork, Job, Metrics
from adept_ray.engine.job_checkpoints import open_checkpoints
from adept_ray.engine.memory import reset_peak_memory
from adept_ray.engine.node_files import fetch_backbone, fetch_blocks, fetch_once_a_node
from adept_ray.engine.voice import JobVoice
from adept_ray.storage.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch

    from adept_ray.data.blocks import Blocks
    from adept_ray.training.work import ProbeWork, SpeedWork, TrainWork


def is_preempted() -> bool:
    """Whether a node of this worker group will be taken away; every worker hears the same."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def perform_job(job: Job, voice: JobVoice, device: torch.device) -> None:
    """Call the loop of a job on this worker and pass on what it says."""
    import ray

    def progress(done: int, total: int) -> None:
        voice.show_progress(job.name, done, total)

    reset_peak_memory(device)
    work = job.work.build() if isinstance(job.work, DeferredWork) else job.work
    if backbone := getattr(work, "backbone", None):  # a kind of work may load none
        fetch_backbone(backbone, voice)
    blocks = ray.get(job.blocks)
    fetch_blocks(blocks, voice)
    if job.kind == "probe":
        from adept_ray.training.stage1 import run_probe

        voice.add_report({**run_probe(cast("ProbeWork", work), blocks, device, progress)})
    elif job.kind == "time_compiling":
        from adept_ray.training.pace import time_compiling

        voice.add_report(time_compiling(cast("TrainWork", work), blocks, device, progress))
    elif job.kind == "measure_speed":
        from adept_ray.training.speed import measure_speed

        voice.add_report(measure_speed(cast("SpeedWork", work), blocks, device, progress))
    elif job.kind == "train":
        perform_training(job, cast("TrainWork", work), blocks, voice, device)
    else:
        from adept_ray.training.callbacks import Callbacks
        from adept_ray.training.export import score_and_export

        with (
            open_checkpoints(voice, job) as checkpoints,
            fetch_once_a_node(job.checkpoint) as checkpoint,
        ):

            def report(metrics: Metrics, made: Checkpoint | None) -> None:
                checkpoints.pass_report(metrics, made)
                checkpoints.make_room()  # what was exported is deleted here after the report

            callbacks = Callbacks(report, progress)
            score_and_export(cast("TrainWork", work), blocks, device, checkpoint, job.about, callbacks)


def perform_training(
    job: Job, work: TrainWork, blocks: Mapping[str, Blocks], voice: JobVoice, device: torch.device
) -> None:
    """Train on this worker, from the job's last checkpoint if there is one, or from a shared plateau."""
    from adept_ray.training.callbacks import FROM_BACKBONE, Callbacks, ResumePoint
    from adept_ray.training.stage2 import train

    with (
        voice.show_running(job.name, work.training.k),
        open_checkpoints(voice, job) as checkpoints,
        ExitStack() as fetched,
    ):

        def report(metrics: Metrics, checkpoint: Checkpoint | None) -> None:
            voice.show_numbers(job.name, metrics)
            checkpoints.pass_report(metrics, checkpoint)

        def progress(done: int, total: int) -> None:
            checkpoints.check()
            voice.show_progress(job.name, *job.count_progress(done, total))

        callbacks = Callbacks(
            report,
            progress,
            should_stop=lambda reports: job.judged and voice.ask_for_stop(job.name, reports),
            make_room=checkpoints.make_room,
            keep=checkpoints.keep,
            keep_plateau=checkpoints.keep_plateau if job.branch else None,
            asked_to_leave=is_preempted,
            leave=checkpoints.leave,
        )
        start = FROM_BACKBONE
        if place := checkpoints.find_last() or checkpoints.find_plateau(work.decay_start):
            start = ResumePoint(fetched.enter_context(fetch_once_a_node(place)))
        elif job.grown_from:
            start = ResumePoint(None, fetched.enter_context(fetch_once_a_node(job.grown_from)))
        train(work, blocks, device, callbacks, start)
        checkpoints.finish()
