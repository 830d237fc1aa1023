"""The GPUs of a cluster's nodes, asked for without taking one."""

from __future__ import annotations

import os

from adept_ray.config.errors import UserError
from adept_ray.engine.nodes import ask_nodes, list_nodes
from adept_ray.engine.waiting import Say
from adept_ray.method.gpus import find_gpu_fault, measure_smallest_gpu

LIKE = 0.95  # cards of one kind differ by less, as what the driver keeps for itself does


def measure_gpu_memory(gpus: float, say: Say) -> int:
    """Bytes of the smallest GPU of all nodes that have so many `gpus`. Needs a running Ray.

    No GPU is taken for it: others may hold all of them. Raises :class:`UserError` for a node whose GPUs torch
    can't use, and where no node has so many.
    """
    nodes = list_nodes()
    able = [node for node in nodes if node.gpus >= gpus]
    if not able:
        most = max((node.gpus for node in nodes), default=0)
        raise UserError(
            f"--gpus-per-worker {gpus:g}: a worker is on one node, and none has more than {most:g}"
        )
    answers = ask_nodes(able, inspect_gpus)
    for name, why in answers.silent.items():
        raise UserError(f"the node {name} can't say what GPUs it has: {why}")
    for name, (_, fault) in answers.heard.items():
        if fault:
            raise UserError(f"the node {name}, on which Ray counts GPUs: {fault}")
    sizes = {name: size for name, (size, _) in answers.heard.items()}
    smallest = min(sizes, key=lambda name: sizes[name])
    if sizes[smallest] < LIKE * max(sizes.values()):
        gib = f"{sizes[smallest] / 2**30:.1f} GiB"
        say(f"a worker is planned for the smallest GPU, {gib}, of the node {smallest}")
    return sizes[smallest]


def inspect_gpus() -> tuple[int, str]:
    """Bytes of the smallest GPU of this node, and why torch can't use its GPUs; in a process without any."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "all"):
        del os.environ["CUDA_VISIBLE_DEVICES"]  # Ray can be told to hide all GPUs from what has none
    fault = find_gpu_fault()
    return 0 if fault else measure_smallest_gpu(), fault
