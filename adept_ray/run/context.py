"""What the commands share: settings made definite, a crew at work, resuming, files of a results folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, TypeVar

from adept_ray.config.specs import RunSpec
from adept_ray.engine import cluster as launch
from adept_ray.engine.crew import start_crews
from adept_ray.run.terminal import Display
from adept_ray.storage.results import Results

OUTPUT_LOG = "ray.log"
R = TypeVar("R", bound=RunSpec)


@contextmanager
def open_context(
    run: RunSpec, results: Results, display: Display, trains: bool = True
) -> Iterator[tuple[Any, int]]:
    """A cluster and a crew on it; yields the board that takes tasks, and the memory of a worker in bytes.

    Where nothing `trains` nothing is compiled either. Raises :class:`UserError` for what can't be.
    """
    with redirect_output(results), launch.connect_cluster(run) as dashboard:
        enter = launch.explain_dashboard_token() if dashboard else ""
        display.show(f"results: {results.place}   Ray dashboard: {dashboard or 'off'}{enter}")
        display.event("results", place=results.place, dashboard=dashboard, enter=enter.strip(" ()"))
        asked, run = run, launch.resolve_crews(run)
        if run != asked:
            display.say(f"trials at once: {run.crews}, what the cluster has room for")
        if trains:
            launch.check_compiler(run)
        memory = launch.measure_worker_memory(run)  # asked now: the crew may take every GPU there is
        with start_crews(run, results.ray, display.say, memory) as board, report_stage_times(display, board):
            yield board, memory


@contextmanager
def redirect_output(results: Results) -> Iterator[None]:
    """Send what Ray, Tune and Train print here, and what workers print, to a file among the results.

    What :class:`Display` writes still comes to the terminal, and so does what is printed afterwards. A run
    that goes on adds to what it printed before, behind a URI too.
    """
    results.fetch((OUTPUT_LOG,))
    file = results.folder / OUTPUT_LOG
    try:
        with (
            file.open("a", buffering=1) as log,
            redirect_stdout(log),
            redirect_stderr(log),
            redirect_logging(log),
        ):
            yield
    finally:
        results.write(OUTPUT_LOG, file.read_text(errors="replace"))


@contextmanager
def redirect_logging(log: TextIO) -> Iterator[None]:
    """Send what Ray logs to `log`: its handlers took hold of stderr when Ray was imported."""
    import ray  # so that they are there

    handlers = [
        each for each in logging.getLogger(ray.__name__).handlers if isinstance(each, logging.StreamHandler)
    ]
    before = [handler.setStream(log) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream)


@contextmanager
def report_stage_times(display: Display, board: Any) -> Iterator[None]:
    """Tell the board the seconds of every stage, those that are over already too."""

    def tell(event: str, _: object = None) -> None:
        if event == "stage_ended":
            board.timed.remote(display.seconds)

    tell("stage_ended")
    display.listeners.append(tell)
    try:
        yield
    finally:
        display.listeners.remove(tell)
