"""The crews: Ray Train's workers, started once a run, that do job after job.

A worker group takes longer to start than a short trial takes to train: half a dozen processes, each with
its imports. So stage 1, every trial and the export run on the same warm workers, as jobs that they take
from the board. Several crews take jobs side by side, each its own. A worker that dies takes its group with
it. Ray Train starts a new group, which goes on with the crew's unfinished job at its last checkpoint. A
group that hears that one of its nodes will be taken away saves what it has and leaves; the next one starts
elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from adept_ray.config.specs import RunSpec
from adept_ray.data.hub import find_token
from adept_ray.engine.board import Board
from adept_ray.engine.client import BoardClient, call_every_second, name_board
from adept_ray.engine.cluster import list_worker_resources, read_thread_request
from adept_ray.engine.health import describe_worker_memory
from adept_ray.engine.job import KERNEL_KILL, is_out_of_memory
from adept_ray.engine.memory import count_kernel_kills
from adept_ray.engine.ray_internals import leave_out_datasets
from adept_ray.engine.worker import CrewSettings, work_from_board

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer

RESTARTS = 30  # worker groups of a crew that may die in a run
START_TRIES = 10  # of a minute each, on a cluster that others keep busy
RESIZE_EVERY = 20.0  # seconds between two looks for room for more workers, where their number may change
KERNEL_TIMEOUT_S = 10  # seconds that a machine has to say what its kernel killed
END_TIMEOUT_S = 30  # seconds that the crews have to go home


@contextmanager
def start_crews(
    run: RunSpec, storage: str, say: Callable[[str], None] = print, memory: int = 0
) -> Iterator[BoardClient]:
    """Start the workers of `run.crews` crews in the background; yields the board that takes their jobs.

    `storage` is where Ray Train keeps its own records; `say` gets lines for the user; `memory` are the bytes
    that a worker may use. What goes wrong for good ends all jobs.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made = ray.remote(num_cpus=0)(Board).options(name=name_board(run.name), scheduling_strategy=here)
    actor = made.remote(storage, describe_worker_memory(run, memory), run.crews)
    board = BoardClient(actor)
    how_many = run.machine.most_workers, run.crews
    settings = CrewSettings(board, 0, *how_many, read_thread_request(), find_token())
    keep = functools.partial(keep_crew, settings, run, storage)
    leading = actor.lead.remote(run.name, keep)  # type: ignore[attr-defined]
    seen = 0

    def say_remarks(_: int = 0) -> None:
        nonlocal seen
        new = board.read_remarks(seen)
        seen += len(new)
        for text in new:
            say(text)

    # When this raises, what runs now is not worth waiting for: the cluster ends it.
    with call_every_second(say_remarks):
        yield board
    say_remarks()
    board.close()
    with suppress(ray.exceptions.GetTimeoutError):
        ray.get(leading, timeout=END_TIMEOUT_S)  # so that the workers' resources are free again


def keep_crew(settings: CrewSettings, run: RunSpec, storage: str, number: int) -> None:
    """Start the crew of a number and keep it running until the board sends it home.

    `settings` are those of any crew. Raises Ray Train's errors.
    """
    settings, restarts = replace(settings, crew=number), 0
    board = settings.board
    while not board.explain_closing():  # again, if it left its nodes
        try:
            build_trainer(settings, run, storage).fit()
        except Exception as error:
            # Where a memory is too full Ray kills the newest actors first, its own helpers among them.
            if restarts == RESTARTS or not is_out_of_memory(str(error)):
                raise
            restarts += 1
            # Of several crews another one's job may have been too large, so this one's begins again.
            why = str(error) if run.crews == 1 else "what watched over the workers was killed"
            board.record_death(number, why)
        board.give_back_jobs(number)  # whoever has workers first goes on with it


def build_trainer(settings: CrewSettings, run: RunSpec, storage: str) -> TorchTrainer:
    """Ray Train's trainer that keeps one worker group of a crew."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    machine = run.machine
    fewest, most = machine.fewest_workers, machine.most_workers  # Ray Train changes the number between these
    trainer = TorchTrainer(
        work_from_board,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=(fewest, most) if fewest < most else most,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE_EVERY,
            use_gpu=machine.gpus_per_worker > 0,
            resources_per_worker=list_worker_resources(run),
        ),
        run_config=RunConfig(
            name=f"crew-{settings.crew}",
            storage_path=storage,
            failure_config=FailureConfig(RESTARTS, controller_failure_limit=START_TRIES),  # type: ignore[call-arg]
            callbacks=[build_death_callback(settings.board, settings.crew)],  # type: ignore[list-item]
        ),
    )
    return leave_out_datasets(trainer)


def build_death_callback(board: BoardClient, crew: int) -> UserCallback:
    """A callback by which Ray Train says what a worker died of, when the worker itself can't."""
    from ray.train import UserCallback

    class ReportDeaths(UserCallback):
        def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
            # Ray Train's own errors say of which error of Ray's they are made.
            errors = [getattr(error, "health_check_failure", error) for error in worker_exceptions.values()]
            texts = [f"{type(error).__name__}: {error}" for error in errors]
            if has_kernel_killed(board.take_kills(crew)):
                texts.append(KERNEL_KILL)
            board.record_death(crew, "\n".join(texts))

    return ReportDeaths()


def has_kernel_killed(before: Mapping[str, int]) -> bool:
    """Whether the kernel has killed a process for its memory since it had killed so many on these nodes.

    A node that is gone can't say.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    # This node is asked without a new process, for which there may be no memory.
    if here in before and count_kernel_kills() > before[here]:
        return True
    count = ray.remote(num_cpus=0, max_retries=0)(count_kernel_kills)
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - {here}
    for node in alive & before.keys():
        there = count.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        with suppress(ray.exceptions.RayError):
            if ray.get(there.remote(), timeout=KERNEL_TIMEOUT_S) > before[node]:
                return True
    return False
