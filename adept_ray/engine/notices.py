"""What a run says to those who watch it, as a plain object: progress, trials' rows, remarks, metrics."""

from __future__ import annotations

from collections.abc import Mapping

from adept_ray.engine.job import JobProgress, Metrics
from adept_ray.engine.metrics import RunNumbers

Row = Metrics
"""A trial as the live table and trials.csv show it."""


class Notices:
    """The latest that jobs, trials and stages have said."""

    def __init__(self) -> None:
        self.numbers = RunNumbers()
        """For who watches the run from outside."""
        self._progress: JobProgress = {}
        self._rows: dict[str, Row] = {}
        self._remarks: list[str] = []

    def record_progress(self, job: str, done: int, total: int) -> None:
        """Keep how far a job is."""
        self._progress[job] = (done, total)
        self.numbers.record_training(job, {"step": done})

    def record_row(self, row: Row) -> None:
        """Keep the latest row of a trial."""
        self._rows[row["trial"]] = row
        self.numbers.record_training(row["trial"], {"running": row["state"] == "running"})

    def read_progress(self) -> tuple[JobProgress, list[Row]]:
        """How far every job is, and the trials' rows."""
        return self._progress, list(self._rows.values())

    def add_remark(self, text: str) -> None:
        """Keep a line that the run's user should read."""
        self._remarks.append(text)

    def read_remarks(self, seen: int) -> list[str]:
        """The remarks but for the first `seen`."""
        return self._remarks[seen:]

    def record_numbers(self, training: str, numbers: Mapping[str, object]) -> None:
        """Keep the latest numbers of a training."""
        self.numbers.record_training(training, numbers)

    def record_stage_times(self, seconds: Mapping[str, float]) -> None:
        """Keep the seconds of every stage so far."""
        self.numbers.record_stages(seconds)
