"""Rows through Ray Data: a task each, on whatever node has a CPU free."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ray import ObjectRef

Row = dict[str, Any]
Job = TypeVar("Job")
AT_ONCE = 2  # tasks on a node that may have no CPU free


def map_rows(
    work: Callable[[Row, ObjectRef[Job]], Row], rows: Sequence[Row], job: Job, node: str = ""
) -> Iterator[Row]:
    """What `work` makes of each of the rows, as it gets ready; every task is told of the `job`, too.

    With the id of a `node` all run there, whatever else holds its CPUs, AT_ONCE of them at a time: no other
    node could do their work, so they wait for none. No row starts nothing. Needs a running Ray.
    """
    if not rows:
        return
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    where: dict[str, Any] = {}
    if node:
        pinned = NodeAffinitySchedulingStrategy(node, soft=False)
        where.update(scheduling_strategy=pinned, num_cpus=0, concurrency=AT_ONCE)
    reference = ray.put(job)
    data = ray.data.from_items(list(rows), override_num_blocks=len(rows))
    told: Any = work  # Ray's stubs know functions of a row alone
    yield from data.map(told, fn_args=(reference,), **where).iter_rows()
