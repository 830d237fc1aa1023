"""A command in the test's own process, whose workers are this process as well: all of it but Ray Train."""

import gc
import io
import os
import runpy
import sys
from contextlib import chdir, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest
import torch
from processes import ROOT

from adept_ray.engine import cluster, job_kinds
from adept_ray.engine.client import BoardClient
from adept_ray.engine.job import DONE, describe_error
from adept_ray.engine.job_kinds import perform_job
from adept_ray.engine.notices import Notices
from adept_ray.engine.voice import JobVoice
from adept_ray.run import context


class CrewHere(BoardClient):
    """A board and a crew in one: a job is done while it is handed in."""

    def __init__(self):
        super().__init__(None)
        self.reports, self.outcomes, self.notices = [], [], Notices()

    def submit_job(self, job):
        number = len(self.reports)
        self.reports.append([])
        outcome = DONE
        try:
            perform_job(job, JobVoice(self, number, True, torch.device("cpu")), torch.device("cpu"))
        except Exception as problem:
            outcome = describe_error(problem, job)
        self.outcomes.append(outcome)
        return number

    def count_crews(self):
        return 1

    def wait_for_reports(self, number, seen, title):
        return self.reports[number][seen:], self.outcomes[number]

    def add_report(self, number, metrics):
        self.reports[number].append(metrics)

    def read_progress(self):
        return {}, []

    def record_numbers(self, training, numbers):
        self.notices.record_numbers(training, numbers)

    def read_readings(self, seen):
        return self.notices.read_readings(seen)

    def ignore_notice(self, *what):
        """Nobody watches."""

    record_progress = record_stage_times = ignore_notice


@contextmanager
def start_crew_here(*_):
    gc.freeze()  # as a worker does
    yield CrewHere()


def fetch_here(blocks, voice):
    """Fetch what this process needs, which waits for no other."""
    for each in blocks.values():
        each.fetch(voice.add_remark)


def call_script(script, flags, folder, env):
    """Run a script to its end, in this process, which is connected to Ray; returns what it printed."""
    printed, argv = io.StringIO(), [str(ROOT / "scripts" / script), *flags]
    with (
        patch.object(context, "start_crews", start_crew_here),
        patch.object(cluster, "connect_cluster", lambda *_: nullcontext("")),
        patch.object(job_kinds, "is_preempted", lambda: False),  # which only Ray Train's workers may ask
        patch.object(job_kinds, "fetch_blocks", fetch_here),  # as may they alone wait for each other
        patch.dict(os.environ, env),
        patch.object(sys, "argv", argv),
        chdir(folder),
        redirect_stdout(printed),
        redirect_stderr(printed),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(argv[0], run_name="__main__")
    assert ended.value.code == 0, printed.getvalue()
    return printed.getvalue()
