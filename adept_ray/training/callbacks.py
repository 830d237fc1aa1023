"""Whom a worker's loop talks to, and where it begins: Ray, the command line and the tests have their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adept_ray.method.scores import Metrics
from adept_ray.storage.checkpoints import Checkpoint

Report = Callable[[Metrics, Checkpoint | None], None]
Keep = Callable[[Checkpoint | None], None]
Progress = Callable[[int, int], None]


def ignore_progress(done: int, of: int) -> None:
    """Tell nobody."""


def ignore_checkpoint(checkpoint: Checkpoint | None) -> None:
    """Keep nothing."""


@dataclass(frozen=True)
class Callbacks:
    """What a loop calls; every rank calls each of them equally often. Only rank 0 has checkpoints to give."""

    report: Report
    """Gets the metrics and what is to be saved with them, at least the weights."""
    progress: Progress = ignore_progress
    """Gets the number of steps done, and of all."""
    should_stop: Callable[[int], bool] = lambda reports: False
    """Is asked after each report but the last, with the number of reports."""
    make_room: Callable[[], None] = lambda: None
    """Is called before a checkpoint is copied to memory, of which there may be room for one."""
    keep: Keep = ignore_checkpoint
    """Gets a checkpoint by the clock, between two reports."""
    keep_plateau: Keep | None = None
    """Gets the checkpoint at the end of the plateau of a wsd training, where that isn't its beginning."""
    asked_to_leave: Callable[[], bool] = lambda: False
    """Is asked every few seconds, after a step without a report; all ranks get the same answer."""
    leave: Keep = ignore_checkpoint
    """Gets a checkpoint where `asked_to_leave` says so; it may end the training by raising."""


@dataclass(frozen=True)
class ResumePoint:
    """What a training goes on from; the backbone if from nothing."""

    checkpoint: Path | None = None
    """Folder of a resumable checkpoint that this training reported or kept, or that of the plateau which a
    shorter one kept: this training comes through the same state, bit for bit."""
    grown_from: Path | None = None
    """Folder of what a training with fewer of the layers reported; a `checkpoint` goes before it."""


FROM_BACKBONE = ResumePoint()
