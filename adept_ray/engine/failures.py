"""What a person reads of an error that came from Ray, or from a job that failed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from adept_ray.config.errors import UserError, find_cause, find_point, first_line
from adept_ray.config.os_faults import describe_os_fault
from adept_ray.engine.job import JobFailed, is_out_of_memory
from adept_ray.engine.own_ray import find_ray_folder
from adept_ray.storage.files import is_disk_full

MOST = 250  # characters of an error's own words


def explain_failure(problem: BaseException) -> str:
    """One sentence on an error of Ray's, of its libraries, or of a job; empty for any other one.

    It is empty for a :class:`UserError`, too, which is a sentence already. Where Ray carried one from another
    process, or wrapped it in an error of its own, the sentence is that of the UserError.
    """
    import ray

    if isinstance(problem, UserError) and not isinstance(problem, ray.exceptions.RayTaskError):
        return ""
    errors = list(follow_causes(problem))
    for error in errors:
        if isinstance(error, UserError) and not isinstance(error, ray.exceptions.RayTaskError):
            return str(error)
    for error in errors:
        if isinstance(error, JobFailed | ray.exceptions.RayError):
            return describe_failure(error)
    return ""


def follow_causes(problem: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised in place of, and so on; of one that Ray carried, what was raised there."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [problem]
    while waiting:
        error = waiting.pop(0)
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            yield error
            waiting += [error.__cause__, getattr(error, "cause", None), error.__context__]


def describe_failure(error: BaseException) -> str:
    """One sentence on a job's error, or on one of Ray's."""
    import ray

    text = f"{type(error).__name__}: {error}"
    if is_out_of_memory(text):
        line = next(line.strip() for line in text.splitlines() if is_out_of_memory(line))
        return (
            f"a process of the run was lost because a memory is too small or others use it ({line[:MOST]}): "
            "end what else uses it, or give a smaller --micro-batch"
        )
    if isinstance(error, ray.exceptions.ObjectStoreFullError | ray.exceptions.OutOfDiskError):
        larger = ", or give the cluster's nodes a larger --object-store-memory"
        return (
            f"Ray's object store is full ({first_line(error)[:MOST]}): make room in Ray's temporary folder, "
            f"to which it moves what doesn't fit{larger if os.environ.get('RAY_ADDRESS') else ''}"
        )
    if isinstance(error, JobFailed):
        return f"a job of the workers failed ({find_cause(error)[:MOST]})"
    return f"Ray lost a part of the run ({type(error).__name__}: {find_point(error)[:MOST]})"


@contextmanager
def explain_no_start() -> Iterator[None]:
    """Turn what Ray raises where it can't start its processes here into :class:`UserError`."""
    try:
        yield
    except Exception as problem:  # of many kinds, a bare Exception among them
        if is_disk_full(problem):  # which is explained with what goes on afterwards
            raise
        if log := re.search(r"lines of (\S*dashboard\.\w+)", str(problem)):
            raise UserError(
                f"Ray's dashboard can't be started on this machine, as {log[1]} says: give --no-dashboard, "
                "or more time by RAY_DASHBOARD_STARTUP_TIMEOUT_S (seconds)"
            ) from problem
        why = describe_os_fault(problem) or first_line(problem).rstrip(".:")
        logs = find_ray_folder() / "ray" / "session_latest" / "logs"
        raise UserError(
            f"Ray can't be started on this machine ({why}): end what else is at work here, or look into "
            f"{logs}"
        ) from problem
