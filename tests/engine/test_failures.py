"""Whatever Ray raises ends a command with one sentence, and no mistake of the program hides behind one."""

import pytest
from ray.core.generated.common_pb2 import Address
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    NodeDiedError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    OwnerDiedError,
    RayTaskError,
    UserCodeException,
    WorkerCrashedError,
)

from adept_ray.config.errors import UserError
from adept_ray.engine.failures import explain_failure, explain_no_start
from adept_ray.engine.job import CrewLost, JobFailed

KILLED = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.1, ID: 4f) where the task was running was 23.1GB / 24.0GB (0.96)
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/"""
UNTIDY = """KeyError: 'text'

The above exception was the direct cause of the following exception:

\x1b[36mray::Map(f)()\x1b[39m (pid=4378, ip=192.0.2.2)
ray.exceptions.UserCodeException: UDF failed to process a data block.
Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).
To change retry attempts, backoff, or which errors are retried, configure `ray.data.DataContext`"""
MEMORY = "because a memory is too small or others use it (OutOfMemoryError: Task was killed"


def carried(problem):
    """`problem` as it arrives from a task of Ray's."""
    text = f"ray::f() (pid=1)\n  File x\n{type(problem).__name__}: {problem}"
    return RayTaskError("f", text, problem).as_instanceof_cause()


def wrapped(problem):
    """`problem` under an error of a library's own."""
    try:
        raise RuntimeError("the run of trials failed") from problem
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (OutOfMemoryError(KILLED), MEMORY),
        (wrapped(OutOfMemoryError(KILLED)), MEMORY),
        (JobFailed(f"Traceback …\nOutOfMemoryError: {KILLED}"), MEMORY),
        (
            JobFailed("the workers died 3 times at this job\nTraceback …\nValueError: no"),
            "failed (ValueError: no)",
        ),
        (
            CrewLost("the workers can't be kept running: no node"),
            "(the workers can't be kept running: no node)",
        ),
        (WorkerCrashedError(), "Ray lost a part of the run (WorkerCrashedError: "),
        (ActorDiedError(), "(ActorDiedError: The actor died unexpectedly"),
        (NodeDiedError("node 4f is gone"), "(NodeDiedError: node 4f is gone)"),
        (OwnerDiedError("0" * 56, Address().SerializeToString(), ""), "(OwnerDiedError: "),
        (GetTimeoutError("no answer"), "(GetTimeoutError: no answer)"),
        (ObjectStoreFullError("Failed to put object 00ff"), "Ray's object store is full (Failed to put"),
        (carried(OutOfDiskError("Local disk is full")), "to which it moves what doesn't fit"),
        (carried(KeyError("text")), "KeyError: 'text')"),
        (carried(UserCodeException(UNTIDY)), "UserCodeException: KeyError: 'text')"),
        (carried(UserError("the disk is too slow")), "the disk is too slow"),
        (wrapped(UserError("the database is gone")), "the database is gone"),
    ],
)
def test_what_ray_raises_is_one_sentence(problem, words):
    """Of a kill for memory, a death or a job; of what was raised elsewhere, its sentence or its last line."""
    sentence = explain_failure(problem)
    assert words in sentence and "\n" not in sentence and "Traceback" not in sentence


def test_only_a_cluster_of_others_can_be_given_a_larger_store(monkeypatch):
    """No flag of a command says how large that of its own Ray is."""
    for address, told in (("10.0.0.1:6379", True), ("", False)):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert ("--object-store-memory" in explain_failure(ObjectStoreFullError("full"))) is told


@pytest.mark.parametrize("problem", [UserError("bad input"), KeyError("x"), wrapped(KeyError("x"))])
def test_other_errors_stay_what_they_are(problem):
    """A sentence is one already, and a mistake of the program keeps its traceback."""
    assert explain_failure(problem) == ""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "\nThe last 20 lines of /tmp/ray/logs/dashboard.log (it contains the error message): \nINFO",
            "dashboard can't be started on this machine, as /tmp/ray/logs/dashboard.log says: give --no-",
        ),
        (
            "no raylet.\nINFO",
            r"Ray can't be started on this machine \(no raylet\): end what else .*/logs$",
        ),
    ],
)
def test_what_keeps_ray_from_starting_is_named(said, words):
    """Of the dashboard Ray's own error has nothing but lines of its log."""
    with pytest.raises(UserError, match=words), explain_no_start():
        raise Exception(said)
