"""The board: the run's one actor, between its commands, its trials and its workers.

It joins the plain objects (the queue of jobs, the crews' health, verdicts, notices) and lets callers wait for
what they hold. Other processes speak to it through :class:`~adept_ray.engine.client.BoardClient`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from adept_ray.config.errors import find_point
from adept_ray.engine.health import CrewHealth, MemoryLimit, WorkerMemory
from adept_ray.engine.job import CrewLost, JobProgress, Metrics, Outcome
from adept_ray.engine.job_queue import JobQueue
from adept_ray.engine.metrics import serve_metrics
from adept_ray.engine.notices import Notices, Row
from adept_ray.engine.verdicts import TrialVerdicts


class Board:
    """Jobs, their reports and verdicts, progress, and trials' rows, of one run.

    `memory` is the path or URI of a folder for what a resumed run has to know; `workers` says what fits into
    the workers of its `crews`. A job is kept as it came, as a reference in a list, so this process needn't
    import what the job is made of.
    """

    def __init__(self, memory: str = "", workers: WorkerMemory | None = None, crews: int = 1) -> None:
        self._queue = JobQueue()
        self._health = CrewHealth(workers.memory if workers else 0)
        self._limit = MemoryLimit(memory, workers)
        self._verdicts = TrialVerdicts()
        self._notices = Notices()
        self._crews = crews
        self._changed = asyncio.Condition()

    async def lead(self, run: str, keep: Callable[[int], None]) -> None:
        """Keep the crews of the run of that name running; when all are gone for good, end all jobs.

        `keep` keeps the crew of a number running until the board is closed. This is done here and not in the
        run's own process, where it would take a thread: a thread that still waits for Ray when the run is
        interrupted ends the process with Ray's status in place of ours.
        """
        serving = asyncio.create_task(serve_metrics(self._notices.numbers, run))
        leaders = ThreadPoolExecutor(self._crews)
        errors: list[str] = []

        async def lead_crew(number: int) -> None:
            try:
                await asyncio.get_running_loop().run_in_executor(leaders, keep, number)
            except Exception as error:
                why = find_point(error)  # Ray's has many lines more
                errors.append(f"the workers can't be kept running: {why}")
                await self.give_back_jobs(number)
                if self._crews > 1:
                    await self.add_remark(f"crew {number + 1} of {self._crews} is gone for good: {why}")

        await asyncio.gather(*(lead_crew(number) for number in range(self._crews)))
        await self.close(errors[-1] if errors else "the workers went home")
        serving.cancel()

    async def count_crews(self) -> int:
        """How many crews take jobs."""
        return self._crews

    # -------------------------------------------------------- jobs, for those who hand them in

    async def submit_job(self, name: str, slip: object) -> int:
        """See :meth:`JobQueue.submit_job`."""
        number = self._queue.submit_job(name, slip)
        await self._announce_change()
        return number

    async def reports(self, number: int, seen: int) -> tuple[list[Metrics], Outcome | None]:
        """Wait for more than `seen` reports of a job, or its end: what is new, and how it ended."""
        await self._wait_until(lambda: self._queue.has_news(number, seen))
        return self._queue.read_news(number, seen)

    async def close(self, why: str) -> None:
        """Send the crews home; what is unfinished, and what is still handed in, ends with `why`."""
        self._queue.close(why)
        await self._announce_change()

    async def explain_closing(self) -> str:
        """Why there will be no more jobs; empty while there may be some."""
        return self._queue.closed

    # -------------------------------------------------------- jobs, for workers

    async def claim_job(self, crew: int, done: int) -> int:
        """Wait for a crew's next job: see :meth:`JobQueue.claim_next`."""
        await self._wait_until(lambda: self._queue.has_next(crew, done))
        return self._queue.claim_next(crew, done)

    async def begin_job(self, crew: int, turn: int, node: str = "", kills: int = 0) -> tuple[int, object]:
        """Number and slip of the job of a crew's turn, to begin with it.

        The kernel has killed so many processes on that node before.
        """
        if node:
            self._health.record_kills(crew, node, kills)
        return self._queue.read_claim(crew, turn)

    async def give_back_jobs(self, crew: int) -> None:
        """Free what a crew had claimed: it has no workers."""
        self._queue.give_back_jobs(crew)
        self._health.forget_places(crew)
        await self._announce_change()

    async def add_report(self, number: int, metrics: Metrics) -> None:
        """Add a report to a job; one that comes further than all before gives it its attempts back."""
        if self._queue.add_report(number, metrics):
            self._health.forgive_deaths(number)
        await self._announce_change()

    async def end_job(self, number: int, outcome: Outcome) -> None:
        """Say how a job ended; the first word holds."""
        self._queue.end_job(number, outcome)
        await self._announce_change()

    # -------------------------------------------------------- the crews' health

    async def record_fault(self, number: int, error: str) -> None:
        """See :meth:`CrewHealth.record_fault`."""
        self._health.record_fault(number, error)

    async def record_death(self, crew: int, error: str) -> None:
        """Say what a worker of a crew died of: the job that it was at is free again, or given up."""
        number = self._queue.find_current(crew)
        if number is None:
            return
        if outcome := self._health.record_death(number, error):
            self._queue.end_job(number, outcome)
            if outcome.kind is CrewLost:  # every other job would end so, too
                self._queue.close(outcome.error)
        await self.give_back_jobs(crew)

    async def take_kills(self, crew: int) -> dict[str, int]:
        """See :meth:`CrewHealth.take_kills`."""
        return self._health.take_kills(crew)

    async def record_size(self, crew: int, job: str, size: int, full: int) -> None:
        """Say with how many of its workers a crew is at a job; a change is a remark."""
        if self._health.change_size(crew, size, full):
            await self.add_remark(f"{job} goes on with {size} of {full} workers")

    async def record_place(self, crew: int, node: str, workers: int) -> int:
        """See :meth:`CrewHealth.record_place`."""
        return self._health.record_place(crew, node, workers)

    async def lower_limit(self, k: int) -> None:
        """Say that a worker ran out of memory at that k."""
        self._limit.lower_limit(k)
        await asyncio.to_thread(self._limit.store_limit)

    async def read_limit(self) -> int | None:
        """Smallest k at which a worker ran out of memory."""
        return self._limit.k

    # -------------------------------------------------------- verdicts

    async def give_verdict(self, trial: str, report: int, stop: bool) -> None:
        """Say whether a trial stops after that report; the first word holds."""
        self._verdicts.give_verdict(trial, report, stop)
        await self._announce_change()

    async def wait_for_verdict(self, trial: str, report: int) -> bool | None:
        """Wait for the verdict on a trial's report: whether to stop."""
        await self._wait_until(lambda: self._verdicts.find_verdict(trial, report) is not None)
        return self._verdicts.find_verdict(trial, report)

    # -------------------------------------------------------- notices

    async def record_progress(self, job: str, done: int, total: int) -> None:
        """Say how far the job of that name is."""
        self._notices.record_progress(job, done, total)

    async def record_row(self, row: Row) -> None:
        """Keep the latest row of a trial."""
        self._notices.record_row(row)

    async def read_progress(self) -> tuple[JobProgress, list[Row]]:
        """How far every job is, and the trials' rows."""
        return self._notices.read_progress()

    async def add_remark(self, text: str) -> None:
        """Keep a line that the run's user should read."""
        self._notices.add_remark(text)

    async def read_remarks(self, seen: int) -> list[str]:
        """The remarks but for the first `seen`."""
        return self._notices.read_remarks(seen)

    async def record_numbers(self, training: str, numbers: Mapping[str, object]) -> None:
        """Keep the latest numbers of a training, for who watches the run from outside."""
        self._notices.record_numbers(training, numbers)

    async def read_readings(self, seen: int) -> list[Metrics]:
        """What trainings have reported, but for the first `seen` readings."""
        return self._notices.read_readings(seen)

    async def record_stage_times(self, seconds: Mapping[str, float]) -> None:
        """Keep the seconds of every stage so far, for who watches the run from outside."""
        self._notices.record_stage_times(seconds)

    # -------------------------------------------------------- waiting

    async def _wait_until(self, is_ready: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(is_ready)

    async def _announce_change(self) -> None:
        async with self._changed:
            self._changed.notify_all()
