"""The memory of machines whose workers compute on GPUs: what a training puts there, beside that of the GPUs.

Where workers compute on CPUs, the plan of a worker has all of this (see :mod:`adept_ray.method.memory_plan`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from adept_ray.config.errors import UserError
from adept_ray.config.machine import Machine
from adept_ray.config.specs import RunSpec
from adept_ray.engine.layout import CPUS_PER_WORKER
from adept_ray.engine.nodes import Node, list_nodes
from adept_ray.method.fit import Fit
from adept_ray.method.memory_plan import GIB, SLACK, MemoryPlan
from adept_ray.training.streams import MOST_READ, WRITES_AT_ONCE

# Of a worker on a GPU: Python, torch, and what CUDA and NCCL keep there. An estimate that nobody measured.
PROCESS = 3 * GIB


@dataclass(frozen=True)
class Host:
    """A machine with GPUs."""

    name: str
    memory: int
    """Bytes that Ray counts there."""
    workers: int
    """Workers that may be there at the same time."""
    groups: int
    """Groups that they may belong to, each with a first worker."""


def list_hosts(nodes: Iterable[Node], machine: Machine, crews: int) -> tuple[Host, ...]:
    """The `nodes` on which a worker on GPUs may be, if as many as each has room for are there.

    Ray puts a group on as few nodes as it can. None where workers compute on CPUs, nor of a node that
    doesn't say how much memory it has.
    """
    if not machine.on_gpus:
        return ()
    hosts = []
    for node in nodes:
        room = min(int(node.gpus / machine.gpus_per_worker), int(node.cpus) // CPUS_PER_WORKER)
        workers = min(room, machine.most_workers * crews)
        if workers and node.memory:
            groups = math.ceil(workers / machine.most_workers)
            hosts.append(Host(node.name, node.memory, workers, groups))
    return tuple(hosts)


def count_host_parts(host: Host, needs: MemoryPlan, fit: Fit, micro_batch: int) -> dict[str, int]:
    """What a training that `needs` so much takes of a host's memory at most, by part, in bytes.

    Backbones on their way to GPUs aren't counted: their files are mapped, all workers of a machine share
    those pages, and the kernel takes them back when it needs them.
    """
    parts = {"processes": host.workers * PROCESS}
    if fit.stream_bytes:
        waiting = MOST_READ + WRITES_AT_ONCE
        parts["streams on their way"] = host.workers * waiting * micro_batch * needs.stream
    if fit.sharded:
        parts["whole models of first workers"] = host.groups * needs.count_whole_copy(on_gpus=False)
    if needs.trained:
        # The model is exported once, and no checkpoint is written then.
        copies = max(host.groups * needs.count_checkpoint_copy(on_gpus=False), needs.weights)
        parts["checkpoints or the exported model"] = copies
    return parts


@dataclass(frozen=True)
class Hosts:
    """The machines on which workers on GPUs may be; none where workers compute on CPUs."""

    each: tuple[Host, ...] = ()

    def check_training(
        self, needs: MemoryPlan, fit: Fit, micro_batch: int, what: str, warn: Callable[[str], None]
    ) -> None:
        """Refuse a training that the memory beside the GPUs can't hold, and `warn` where it fills that.

        Raises :class:`UserError`. Of several hosts the one that lacks most is named.
        """
        lacking = [
            (sum(count_host_parts(each, needs, fit, micro_batch).values()), each) for each in self.each
        ]
        total, host = max(lacking, key=lambda pair: pair[0] - SLACK * pair[1].memory, default=(0, None))
        if host is None or total <= SLACK * host.memory:
            return
        parts = count_host_parts(host, needs, fit, micro_batch)
        sizes = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        ways = "give fewer --workers" + " or --concurrent" * (host.groups > 1)
        workers = "one worker" if host.workers == 1 else f"{host.workers} workers"
        sentence = (
            f"{what}: node {host.name} has {host.memory / GIB:.1f} GiB of memory beside that of its GPUs, "
            f"and {workers} there may take {total / GIB:.1f} ({sizes}): {ways}, train fewer layers, or take "
            "nodes with more memory"
        )
        if total > host.memory:
            raise UserError(sentence)
        warn(sentence)


NO_HOSTS = Hosts()


def find_hosts(run: RunSpec) -> Hosts:
    """The machines of a run's workers on GPUs. Needs a running Ray."""
    return Hosts(list_hosts(list_nodes(), run.machine, run.crews)) if run.machine.on_gpus else NO_HOSTS
