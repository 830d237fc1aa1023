"""Rows through Ray Data: a task each, on whatever node has a CPU free."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import find_fault_place

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
    Raises OSError and :class:`UserError` as `work` does.
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
    told: Any = answer_row  # Ray's stubs know functions of a row alone
    for answer in data.map(told, fn_args=(work, reference), **where).iter_rows():
        yield read_answer(answer)


def answer_row(row: Row, work: Callable[[Row, ObjectRef[Job]], Row], job: ObjectRef[Job]) -> dict[str, bytes]:
    """What `work` makes of a row, or its fault, of which Ray Data would pass on nothing but a text."""
    from ray.exceptions import RayError

    try:
        made: dict[str, Any] = {"made": work(row, job)}
    except UserError as problem:
        made = {"refused": str(problem)}
    except OSError as problem:
        if isinstance(problem, RayError):  # its timeouts are OSErrors, too
            raise
        words = problem.strerror or str(problem)
        made = {"failed": [problem.errno, words, find_fault_place(problem)]}
    return {"answer": json.dumps(made).encode()}


def read_answer(answer: Mapping[str, bytes]) -> Row:
    """What a row became. Raises OSError and :class:`UserError` for what went wrong."""
    said = json.loads(answer["answer"])
    if "refused" in said:
        raise UserError(said["refused"])
    if "failed" in said:
        number, words, place = said["failed"]
        problem = OSError(number, words) if number else OSError(words)
        if place:
            problem.filename = place
        raise problem
    made: Row = said["made"]
    return made
