"""What a worker says of the job it is at, and what it is told."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adept_ray.engine.client import BoardClient
from adept_ray.engine.job import Metrics
from adept_ray.engine.memory import read_peak_memory

if TYPE_CHECKING:
    import torch

PROGRESS_EVERY_S = 0.5  # seconds between two reports of progress


class JobVoice:
    """What a worker says of its job; only the `first` worker of a group speaks of progress and results."""

    def __init__(self, board: BoardClient, number: int, first: bool, device: torch.device) -> None:
        self._board, self._number, self._device = board, number, device
        self.first = first
        self._last_progress = 0.0  # when progress was last reported

    def show_progress(self, name: str, done: int, total: int) -> None:
        """Say how far a job is, now and then."""
        due = time.monotonic() - self._last_progress > PROGRESS_EVERY_S
        if self.first and (done == total or due):
            self._last_progress = time.monotonic()
            self._board.record_progress(name, done, total)

    def show_numbers(self, name: str, numbers: Mapping[str, object]) -> None:
        """Let who watches the run from outside see numbers of a training."""
        if self.first:
            self._board.record_numbers(name, numbers)

    @contextmanager
    def show_running(self, name: str, k: int) -> Iterator[None]:
        """Let who watches the run from outside see that a training runs, and when it no longer does."""
        self.show_numbers(name, {"k": k, "running": True})
        try:
            yield
        finally:
            self.show_numbers(name, {"running": False})

    def add_report(self, metrics: Metrics) -> Metrics:
        """Pass a report on, with the memory that it took; returns it as it was passed on."""
        if self.first:
            metrics = {**metrics, "peak_gib": read_peak_memory(self._device)}
            self._board.add_report(self._number, metrics)
        return metrics

    def add_remark(self, text: str) -> None:
        """Say a line that the run's user should read; any worker may."""
        self._board.add_remark(text)

    def ask_for_stop(self, name: str, report: int) -> bool:
        """Wait for the verdict on a report: whether to stop.

        The first worker asks for all, so the time that it has to come begins when the report was made.
        """
        stop = self.first and self._board.wait_for_verdict(name, report)
        return bool(self.agree_on_largest(int(stop)))

    def agree_on_largest(self, number: int) -> int:
        """The largest `number` that any worker of the group has."""
        from adept_ray.method.ranks import agree_on_largest

        return agree_on_largest(number, self._device)
