"""What every tracker of experiments can do for a run; each library has one module that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

Setting = int | float | str | bool
MAIN = "main"  # key of the search itself, or of the one training of train.py


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it: a search, one of its trials, or a training at full length."""

    key: str
    """Names it among those of this command: :data:`MAIN`, or the trial's name."""
    name: str
    """What it is called there."""
    group: str = ""
    """Name of the search that it belongs to; empty for a training of its own."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    id: str = ""
    """By which the tracker knows it; empty as long as it hasn't begun there."""

    @property
    def is_trial(self) -> bool:
        """Whether it is one of many in a search."""
        return self.key != MAIN


@dataclass(frozen=True)
class TrackerFolder:
    """Where a tracker that writes files does so."""

    path: Path
    store: Callable[[str], None] = lambda name: None
    """Brings the sub-folder of a name to where the results are kept, if that is another place."""


class Tracker(Protocol):
    """A library that keeps runs; any call may raise any error, and is made again later.

    All calls come from one thread.
    """

    def begin_run(self, run: TrackedRun, parent: str) -> str:
        """Begin a run, or go on with the one that has its id; returns the id.

        `parent` is the id of the search that a trial belongs to, empty for any other run.
        """
        ...

    def log_values(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Add values at an optimizer step to the curves of a run; steps only ascend."""
        ...

    def put_numbers(self, key: str, numbers: Mapping[str, float]) -> None:
        """Give a run numbers that belong to no step."""
        ...

    def put_note(self, key: str, text: str) -> None:
        """Give a run a text in Markdown."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Keep a copy of a file with a run, where the tracker can keep files."""
        ...

    def end_run(self, key: str, state: str) -> None:
        """Say that a run is over: finished, stopped, failed or interrupted."""
        ...

    def close(self) -> None:
        """Bring what is still on its way to its place; nothing is called afterwards."""
        ...
