"""Whom a worker's loop talks to, and where it begins: Ray, the command line and the tests have their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adept_ray.method.scores import Metrics

Report = Callable[[Metrics, Path | None], None]
Progress = Callable[[int, int], None]


def ignore_progress(done: int, of: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Callbacks:
    """What a loop calls; every rank calls each of them equally often."""

    report: Report
    """Gets the metrics and, on rank 0, a folder with what was saved."""
    progress: Progress = ignore_progress
    """Gets the number of steps done, and of all."""
    should_stop: Callable[[int], bool] = lambda reports: False
    """Is asked after each report but the last, with the number of reports."""
    asked_to_save: Callable[[], bool] = lambda: False
    """Is asked after each step without a report; all ranks get the same answer."""
    keep: Callable[[int, Path | None], None] = lambda step, folder: None
    """Gets the step and, on rank 0, a folder with the checkpoint, where `asked_to_save` says so."""


@dataclass(frozen=True)
class ResumePoint:
    """What a training goes on from; the backbone if from nothing."""

    checkpoint: Path | None = None
    """Folder that this training reported or kept."""
    grown_from: Path | None = None
    """Such a folder of a training with fewer of the layers; a `checkpoint` goes before it."""


FROM_BACKBONE = ResumePoint()
