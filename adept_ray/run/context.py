"""A command at work: its run, results folder and terminal, and the workers that take its jobs."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TextIO, TypeVar

from adept_ray.config.errors import UnfinishedRun, UserError
from adept_ray.config.specs import RunSpec
from adept_ray.engine import cluster
from adept_ray.engine.client import BoardClient, NewReadings, watch_board
from adept_ray.engine.crew import start_crews
from adept_ray.engine.failures import explain_failure
from adept_ray.engine.job import JobProgress, Metrics
from adept_ray.engine.layout import Load
from adept_ray.engine.ray_internals import redirect_native_code
from adept_ray.run.host_memory import NO_HOSTS, Hosts, find_hosts
from adept_ray.run.terminal import Display
from adept_ray.search.setup import fit_to_layers
from adept_ray.storage.files import is_disk_full
from adept_ray.storage.results import OUTPUT_LOG, Results
from adept_ray.training.work import TrainWork

R = TypeVar("R", bound=RunSpec)
OfRun = TypeVar("OfRun", bound=RunSpec, covariant=True)


@dataclass(frozen=True)
class Session(Generic[OfRun]):
    """What a command has from its beginning."""

    run: OfRun
    """Its settings."""
    results: Results
    """The folder that it writes."""
    display: Display
    """The terminal."""


@dataclass(frozen=True)
class Context(Session[OfRun]):
    """A session with workers."""

    board: BoardClient
    """Takes jobs for the workers."""
    memory: int
    """Bytes that a worker may use."""
    hosts: Hosts = NO_HOSTS
    """The machines of workers on GPUs, whose memory is beside that."""

    def fit_to_layers(self, work: TrainWork) -> TrainWork:
        """`work`, made to fit on the lowest layers, as it fits on its own ones into these workers."""
        return fit_to_layers(work, self.run.machine, self.memory)

    @contextmanager
    def show_jobs(self, stage: str, what: str, *jobs: str) -> Iterator[None]:
        """Show a stage with the progress of the `jobs` that the crew does in it one after the other."""
        with self.display.show_stage(stage, what) as update:

            def show(progress: JobProgress, _: object) -> None:
                shares = [done / of for done, of in (progress.get(job, (0, 1)) for job in jobs)]
                update(round(1000 * sum(shares)), 1000 * len(jobs))

            with self.watch_jobs(show):
                yield

    @cached_property
    def readings(self) -> NewReadings:
        """What the trainings report."""
        return NewReadings(self.board)

    @contextmanager
    def watch_jobs(self, show: Callable[[JobProgress, Sequence[Metrics]], None]) -> Iterator[None]:
        """Call `show` about once a second, and emit what trainings report.

        All that a trial reported comes before the row that says that it is over.
        """

        def look(progress: JobProgress, rows: Sequence[Metrics]) -> None:
            for reading in self.readings.take():
                self.display.emit("reading", **reading)
            show(progress, rows)

        with watch_board(self.board, look):
            yield


def open_session(run: R, continues: bool = False) -> Session[R]:
    """Open the results folder of a run: a new one, or that of a run that it `continues`.

    Raises :class:`UserError` for a folder that is there already, is missing, can't be written to, or is being
    written by another command.
    """
    results, display = Results(run.storage, run.name), Display(run.json_lines)
    results.open(continues, display.say)
    return Session(run, results, display)


@contextmanager
def open_context(
    session: Session[R], load: Load, examine: Callable[[], None], trains: bool = True
) -> Iterator[Context[R]]:
    """Connect to a cluster, start crews on it for that `load` and yield the session with them.

    `examine` is called once the cluster is there, before anything is started on it. Where nothing `trains`,
    nothing is compiled and no compiler is asked for. Raises :class:`UserError` for what the cluster can't
    do, and :class:`UnfinishedRun` where Ray loses a part of the run.
    """
    results, display = session.results, session.display
    with (
        take_back_refused(results),
        redirect_output(results),
        explain_failures(),
        cluster.connect_cluster(session.run, display.say) as dashboard,
    ):
        token = cluster.explain_dashboard_token() if dashboard else ""
        display.show(f"results: {results.place}   Ray dashboard: {dashboard or 'off'}{token}")
        display.emit("results", place=results.place, dashboard=dashboard, enter=token.strip(" ()"))
        examine()
        with start_work(session, load, trains) as context:
            yield context


@contextmanager
def start_work(session: Session[R], load: Load, trains: bool = True) -> Iterator[Context[R]]:
    """Start crews on the cluster that this process is connected to; see :func:`open_context`.

    The run of the context has numbers where the session's has auto. They aren't recorded: who resumes the run
    may have another cluster.
    """
    results, display = session.results, session.display
    run = cluster.resolve_layout(session.run, load, display.say, display.warn)
    if trains:
        cluster.check_compiler(run, display.say)
    memory = cluster.measure_worker_memory(run, display.say)  # before the crew takes every GPU there is
    hosts = find_hosts(run)
    with start_crews(run, results.ray, display.say, memory) as board, report_stage_times(display, board):
        yield Context(run, results, display, board, memory, hosts)


@contextmanager
def take_back_refused(results: Results) -> Iterator[None]:
    """Take a run back that is refused before it has anything to go on with; see :meth:`Results.withdraw`."""
    try:
        yield
    except UnfinishedRun:
        raise
    except UserError:
        results.withdraw()
        raise


@contextmanager
def explain_failures() -> Iterator[None]:
    """Turn errors of Ray's and of jobs into :class:`UnfinishedRun`; what they say at length is printed.

    What is printed goes to the results (see :func:`redirect_output`).
    """
    try:
        yield
    except Exception as problem:
        sentence = "" if is_disk_full(problem) else explain_failure(problem)
        if not sentence:
            raise
        traceback.print_exc()
        raise UnfinishedRun(f"{sentence}; {OUTPUT_LOG} among the results has the whole report") from problem


@contextmanager
def redirect_output(results: Results) -> Iterator[None]:
    """Send what Ray, Tune and Train print here, and what workers print, to a file among the results.

    What :class:`Display` writes still comes to the terminal, and so does what is printed afterwards. A
    resumed run adds to the file, behind a URI too.
    """
    results.fetch((OUTPUT_LOG,))
    file = results.folder / OUTPUT_LOG
    try:
        with (
            file.open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as log,
            redirect_stdout(log),
            redirect_native_code(log) if is_own_stderr(sys.stderr) else nullcontext(),
            redirect_stderr(log),
            redirect_logging(log),
        ):
            yield
    finally:
        results.write(OUTPUT_LOG, file.read_text(encoding="utf-8", errors="replace"))


def is_own_stderr(stream: TextIO) -> bool:
    """Whether a stream is the stderr of this process; who calls this from Python may have another one."""
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):  # it is none of the operating system's
        return False


@contextmanager
def redirect_logging(log: TextIO) -> Iterator[None]:
    """Send what Ray logs to `log`: its handlers took hold of stderr when Ray was imported."""
    import ray  # noqa: F401  so that they are there

    before = {handler: handler.setStream(log) for handler in list_ray_handlers()}
    try:
        yield
    finally:
        for handler in list_ray_handlers():
            handler.setStream(before.get(handler) or sys.__stderr__ or log)


def list_ray_handlers() -> list[logging.StreamHandler[TextIO]]:
    """All that Ray's loggers write to a stream with; Data, Train and Tune have some of their own."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "ray"]
    handlers = {handler for name in names for handler in logging.getLogger(name).handlers}
    streams = (each for each in handlers if isinstance(each, logging.StreamHandler))
    return [handler for handler in streams if not isinstance(handler, logging.FileHandler)]


@contextmanager
def report_stage_times(display: Display, board: BoardClient) -> Iterator[None]:
    """Tell the board the seconds of every stage, those that are over already too."""

    def tell(event: str, _: object = None) -> None:
        if event == "stage_ended":
            board.record_stage_times(display.seconds)

    tell("stage_ended")
    display.listeners.append(tell)
    try:
        yield
    finally:
        display.listeners.remove(tell)
