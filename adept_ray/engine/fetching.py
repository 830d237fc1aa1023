"""A backbone's files from the hub, fetched once on each node and seen by who waits for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adept_ray.data.hub_faults import explain_hub_error
from adept_ray.data.hub_files import fetch_files
from adept_ray.engine.nodes import Node

Said = tuple[str, int | str | None, str]  # node, bytes that came or a line (None: the end), why no more will


def fetch_on_nodes(
    nodes: Sequence[Node],
    repository: tuple[str, str],
    missing: Mapping[str, int],
    token: str | None,
    update: Callable[[int, int], None],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Fetch a hub repository's files (its id and commit) on all `nodes` that lack some, at the same time.

    `missing` has the bytes that a node lacks. `update` hears of the bytes that came, and of all, and `say` of
    pauses in which a node waits for the hub. Returns the nodes on which that failed, with the reason. Needs a
    running Ray.
    """
    lacking = [node for node in nodes if missing.get(node.name)]
    said: queue.Queue[Said] = queue.Queue()
    for node in lacking:
        about = (node, repository, token, said)
        threading.Thread(target=follow_fetching, args=about, daemon=True).start()
    came = dict.fromkeys((node.name for node in lacking), 0)
    failed: dict[str, str] = {}
    waiting, total = len(lacking), sum(missing.get(node.name, 0) for node in lacking)
    while waiting:
        name, size, why = said.get()
        if size is None:
            waiting -= 1
            failed |= {name: why} if why else {}
        elif isinstance(size, str):
            say(f"node {name}: {size}")
        else:
            came[name] = min(size, missing[name])
            update(sum(came.values()), total)
    return failed


def follow_fetching(
    node: Node, repository: tuple[str, str], token: str | None, said: queue.Queue[Said]
) -> None:
    """Fetch on one node and say how far it is, until it is done or has failed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    ask: Any = ray.remote  # whose types know no function with a default
    fetch = ask(num_cpus=0, max_retries=0, num_returns="streaming", scheduling_strategy=there)(fetch_files)
    try:
        for reference in fetch.remote(*repository, token):
            said.put((node.name, ray.get(reference), ""))
        said.put((node.name, None, ""))
    except Exception as problem:  # the hub client's, or Ray's where the node is gone
        cause = getattr(problem, "cause", None) or problem
        said.put((node.name, None, explain_hub_error(repository[0], cause)))
