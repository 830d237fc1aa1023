"""A worker of a crew: it takes jobs from the board and does its part of each."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field

from adept_ray.data.hub import TOKEN
from adept_ray.engine.client import BoardClient
from adept_ray.engine.cluster import count_logical_cpus, count_worker_nodes, share_threads
from adept_ray.engine.job import DONE, Job, LeavingNodes, Outcome, describe_error
from adept_ray.engine.job_kinds import perform_job
from adept_ray.engine.job_queue import NO_MORE
from adept_ray.engine.memory import count_kernel_kills
from adept_ray.engine.voice import JobVoice


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
    token: str = field(default="", repr=False)
    """With which a worker asks the model hub; not in the text by which Ray shows what a worker is told."""


def work_from_board(config: Mapping[str, CrewSettings]) -> None:
    """What Ray Train starts on every worker: take jobs from the board until the run is over.

    `config` has one entry, ``settings``.
    """
    import ray
    import ray.train
    import ray.train.torch

    from adept_ray.method.ranks import agree_on_largest

    settings, context = config["settings"], ray.train.get_context()
    if settings.token:
        os.environ[TOKEN] = settings.token
    board, crew = settings.board, settings.crew
    device = ray.train.torch.get_device()
    node = ray.get_runtime_context().get_node_id()
    first, size = context.get_world_rank() == 0, context.get_world_size()
    turn = -1
    gc.freeze()  # what is imported stays: who looks for what a job left needn't look at all of that
    while (turn := agree_on_largest(board.claim_job(crew, turn), device)) != NO_MORE:
        number, reference = board.begin_job(crew, turn, node, count_kernel_kills())
        job: Job | None = None
        try:
            job = ray.get(reference)
            set_threads(settings, node, context.get_local_world_size())
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


def set_threads(settings: CrewSettings, node: str, here: int) -> None:
    """Give torch this worker's share of its node's CPUs; so many workers of its crew are `here`.

    Other crews count where they are. On one node alone all are taken to be there from the beginning: so the
    number, and how sums are rounded, doesn't depend on which of them came first.
    """
    import torch

    mates = here
    if settings.crews > 1:
        alone = count_worker_nodes() == 1
        others = settings.board.record_place(settings.crew, node, here)
        mates = here * settings.crews if alone else here + others
    torch.set_num_threads(settings.threads or share_threads(mates, count_logical_cpus()))
