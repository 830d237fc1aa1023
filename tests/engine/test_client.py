"""Whoever hands in a job hears its reports as they come, and then how it ended; without Ray."""

import errno
import os
import time

import pytest

from adept_ray.engine import client
from adept_ray.engine.client import follow_job, run_job, watch_board
from adept_ray.engine.job import DONE, CrewLost, DiskFault, Job, JobFailed, JobRefused, Outcome


class ScriptedBoard:
    """A board whose answers are known beforehand."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def submit_job(self, job):
        self.asked.append(job.name)
        return 7

    def wait_for_reports(self, number, seen, title):
        self.asked.append((number, seen, title))
        return self.answers.pop(0)


def a_job(**fields):
    return Job("trial-001", "train", None, None, **fields)


def test_reports_are_yielded_once_and_in_order():
    """Each question says how many were heard; the last answer may bring both reports and the end."""
    board = ScriptedBoard(
        ([{"report": 1}], None), ([{"report": 2}, {"report": 3}], None), ([{"report": 4}], DONE)
    )
    found = list(follow_job(board, a_job(title="trial-001 k=2")))
    assert [metrics["report"] for metrics in found] == [1, 2, 3, 4]
    assert board.asked == ["trial-001", *[(7, seen, "trial-001 k=2") for seen in (0, 1, 3)]]


def test_a_job_without_a_title_goes_by_its_name():
    board = ScriptedBoard(([{"loss": 2.0}], None), ([{"loss": 1.0}], DONE))
    assert run_job(board, a_job()) == {"loss": 1.0}
    assert [title for *_, title in board.asked[1:]] == ["trial-001"] * 2


@pytest.mark.parametrize("kind", [JobFailed, JobRefused, DiskFault, CrewLost])
def test_a_job_that_failed_raises_after_its_reports(kind):
    """What was reported before isn't lost."""
    found = []
    with pytest.raises(kind, match=r"^the reason$") as raised:
        for metrics in follow_job(ScriptedBoard(([{"report": 1}], Outcome("the reason", kind))), a_job()):
            found.append(metrics)
    assert type(raised.value) is kind and found == [{"report": 1}]


class CountingBoard:
    def __init__(self, problem=None):
        self.reads, self.problem = 0, problem

    def read_progress(self):
        self.reads += 1
        if self.problem and self.reads == 1:
            raise self.problem
        return {"probe": (self.reads, 9)}, []


@pytest.mark.parametrize("full", [False, True])
def test_what_a_board_holds_is_shown_while_one_waits_and_at_the_end(monkeypatch, full):
    """A disk that is full at one look, which may write a file, doesn't end the watching."""
    monkeypatch.setattr(client.Memory, "sample", lambda: None)
    board = CountingBoard(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else None)
    shown = []
    with watch_board(board, lambda progress, rows: shown.append(progress["probe"][0])):
        deadline = time.monotonic() + 20
        while not shown and time.monotonic() < deadline:
            time.sleep(0.05)
        during = len(shown)
    assert during >= 1 and len(shown) == during + 1 and shown[0] == 1 + full
