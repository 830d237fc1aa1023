"""What a run says to those who watch it, as a plain object: progress, trials' rows, remarks, metrics."""

from __future__ import annotations

from collections.abc import Mapping

from adept_ray.engine.job import JobProgress, Metrics
from adept_ray.engine.metrics import RunNumbers

Row = Metrics
"""A trial as the live table and trials.csv show it."""
READING = (
    *("k", "step", "tokens", "loss"),
    *(f"{side}_{what}" for side in ("general", "domain") for what in ("bpb", "accuracy", "delta")),
    *("score", "score_se", "dial", "plain_score", "tokens_per_second", "seconds", "scales"),
)
"""What is passed on of a report, as far as it has it; the rest is as long as the held-out text."""


class Notices:
    """The latest that jobs, trials and stages have said."""

    def __init__(self) -> None:
        self.numbers = RunNumbers()
        """For who watches the run from outside."""
        self._progress: JobProgress = {}
        self._rows: dict[str, Row] = {}
        self._remarks: list[str] = []
        self._readings: list[Metrics] = []

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
        """Keep the latest numbers of a training; those of a report are a reading, which stays."""
        self.numbers.record_training(training, numbers)
        if "report" in numbers:
            known = {"k": self.numbers.find_k(training), **numbers}
            self._readings.append(
                {"trial": training, **{name: known[name] for name in READING if name in known}}
            )

    def read_readings(self, seen: int) -> list[Metrics]:
        """What trainings have reported, but for the first `seen` readings."""
        return self._readings[seen:]

    def record_stage_times(self, seconds: Mapping[str, float]) -> None:
        """Keep the seconds of every stage so far."""
        self.numbers.record_stages(seconds)
