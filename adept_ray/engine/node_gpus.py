"""The GPUs of a cluster's nodes, asked for without taking one."""

from __future__ import annotations

import os

from adept_ray.config.errors import UserError, find_cause
from adept_ray.engine.waiting import NODE_ANSWER_S, Say, wait_for_task
from adept_ray.method.gpus import find_gpu_fault, measure_smallest_gpu

LIKE = 0.95  # cards of one kind differ by less, as what the driver keeps for itself does


def measure_gpu_memory(gpus: float, say: Say) -> int:
    """Bytes of the smallest GPU of all nodes that have so many `gpus`. Needs a running Ray.

    No GPU is taken for it: others may hold all of them. Raises :class:`UserError` for a node whose GPUs torch
    can't use, and where no node has so many.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # The process ends with its answer: it has made itself ready for GPUs that it must not keep.
    ask = ray.remote(num_cpus=0, max_calls=1)(inspect_gpus)
    counts = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]}
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    asked = {
        node: ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node, count in counts.items()
        if count >= gpus
    }
    if not asked:
        most = max(counts.values(), default=0)
        raise UserError(
            f"--gpus-per-worker {gpus:g}: a worker is on one node, and none has more than {most:g}"
        )
    sizes = {}
    for node, answer in asked.items():
        where = f"the node {addresses[node]}"
        try:
            size, fault = wait_for_task(answer, f"{where} to say what GPUs it has", say, NODE_ANSWER_S)
        except ray.exceptions.RayError as problem:
            raise UserError(f"{where} can't say what GPUs it has: {find_cause(problem)}") from None
        if fault or not size:
            raise UserError(f"{where}: {fault or 'Ray counts GPUs there, and torch sees none'}")
        sizes[where] = size
    smallest = min(sizes, key=lambda where: sizes[where])
    if sizes[smallest] < LIKE * max(sizes.values()):
        say(f"a worker is planned for the smallest GPU, {sizes[smallest] / 2**30:.1f} GiB, of {smallest}")
    return sizes[smallest]


def inspect_gpus() -> tuple[int, str]:
    """Bytes of the smallest GPU of this node, and why torch can't use its GPUs; in a process without any."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "all"):
        del os.environ["CUDA_VISIBLE_DEVICES"]  # Ray can be told to hide all GPUs from what has none
    fault = find_gpu_fault()
    return 0 if fault else measure_smallest_gpu(), fault
