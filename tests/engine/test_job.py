"""How a job ends says what to raise, and whether it would end so again."""

import errno

import pytest

from adept_ray.config.errors import UserError
from adept_ray.engine.job import (
    DONE,
    CrewLost,
    DiskFull,
    Job,
    JobFailed,
    JobRefused,
    Outcome,
    describe_error,
)

JOB = Job("trial-001", "train", None, None, "results/ray/trials")
FULL = OSError(errno.ENOSPC, "No space left on device")


def caught(problem):
    """`problem` as one that was raised."""
    try:
        raise problem
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    ("problem", "job", "kind", "words", "repeats"),
    [
        (UserError("--backbone x: there is none"), JOB, JobRefused, "--backbone x: there is none", True),
        (FULL, JOB, DiskFull, "no space left for a checkpoint of trial-001 under results/ray/trials ", True),
        (FULL, None, JobFailed, "No space left on device", False),  # it isn't known of which job
        (RuntimeError("[enforce fail] can't allocate memory"), JOB, JobFailed, "can't allocate memory", True),
        (ZeroDivisionError("of mine"), JOB, JobFailed, "ZeroDivisionError: of mine", False),
    ],
)
def test_an_error_is_a_sentence_where_a_person_can_mend_it(problem, job, kind, words, repeats):
    """Else it is the traceback. What would end so again isn't begun again."""
    outcome = describe_error(caught(problem), job)
    assert outcome.kind is kind and outcome.would_repeat == repeats and words in outcome.error
    assert ("Traceback" in outcome.error) == (kind is JobFailed)
    with pytest.raises(kind) as raised:
        outcome.raise_error()
    assert type(raised.value) is kind and str(raised.value) == outcome.error


def test_what_ended_well_raises_nothing():
    DONE.raise_error()
    assert Outcome() == DONE and not DONE.error


def test_what_is_for_persons_is_told_from_what_failed():
    """A command shows a UserError as a sentence; a lost crew stops a comparison, a failed job doesn't."""
    assert issubclass(JobRefused, UserError) and issubclass(DiskFull, JobRefused)
    assert not issubclass(CrewLost, UserError) and issubclass(CrewLost, JobFailed)
