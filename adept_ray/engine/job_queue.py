"""The queue of a run's jobs, as a plain object: who does which, what was reported of it, how it ended."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from adept_ray.engine.job import CrewLost, Metrics, Outcome

NO_MORE = 2**31 - 1  # turn without a job: there will be no more


@dataclass
class QueuedJob:
    """What the queue knows of one job."""

    name: str
    slip: object
    """The job as it came; the queue never looks into it."""
    reports: list[Metrics] = field(default_factory=list)
    outcome: Outcome | None = None
    """None until it is over."""

    @property
    def furthest(self) -> int:
        """Number of the furthest report so far."""
        return max((report.get("report", 0) for report in self.reports), default=0)


class JobQueue:
    """Jobs in the order in which they came; each is claimed by one crew, and by all workers of that crew.

    A job goes by its number. A crew counts the jobs that it claimed as its turns, from 0. Workers that were
    started anew count from the beginning, and so find the job that the lost ones were at.
    """

    def __init__(self) -> None:
        self.closed = ""
        """Why there will be no more jobs; empty while there may be some."""
        self._jobs: list[QueuedJob] = []
        self._claims: dict[int, list[int]] = {}  # crew → its jobs, as they were claimed

    def submit_job(self, name: str, slip: object) -> int:
        """Take in a job; returns its number.

        A job of that name that isn't over yet, or that failed, is the same one: who waited for it is gone.
        """
        for number, job in enumerate(self._jobs):
            if job.name == name and (job.outcome is None or job.outcome.error):
                job.slip = slip  # what the old one refers to went with the one who handed it in
                return number
        outcome = Outcome(self.closed, CrewLost) if self.closed else None
        self._jobs.append(QueuedJob(name, slip, outcome=outcome))
        return len(self._jobs) - 1

    def has_next(self, crew: int, done: int) -> bool:
        """Whether :meth:`claim_next` has an answer for a crew."""
        return bool(self.closed) or self._find_next(crew, done) is not None

    def claim_next(self, crew: int, done: int) -> int:
        """Claim a crew's next job; returns its turn, above the turn `done`, or NO_MORE.

        A job that the crew has claimed and that isn't over comes first, then one that nobody has claimed.
        """
        number = self._find_next(crew, done)
        if self.closed or number is None:
            return NO_MORE
        claims = self._claims.setdefault(crew, [])
        if number not in claims[done + 1 :]:
            claims.append(number)
        return claims.index(number, done + 1)

    def _find_next(self, crew: int, done: int) -> int | None:
        claimed = set(itertools.chain.from_iterable(self._claims.values()))
        free = (number for number in range(len(self._jobs)) if number not in claimed)
        wanted = itertools.chain(self._claims.get(crew, [])[done + 1 :], free)
        return next((number for number in wanted if not self._is_over(number)), None)

    def _is_over(self, number: int) -> bool:
        return self._jobs[number].outcome is not None

    def read_claim(self, crew: int, turn: int) -> tuple[int, object]:
        """Number and slip of the job of a crew's turn."""
        number = self._claims[crew][turn]
        return number, self._jobs[number].slip

    def find_current(self, crew: int) -> int | None:
        """The job that a crew is at, if it is at one."""
        return next((number for number in self._claims.get(crew, []) if not self._is_over(number)), None)

    def give_back_jobs(self, crew: int) -> None:
        """Free what a crew had claimed, for whoever has workers first."""
        self._claims.pop(crew, None)

    def add_report(self, number: int, metrics: Metrics) -> bool:
        """Add a report to a job; returns whether it comes further than all before."""
        job = self._jobs[number]
        further = metrics.get("report", 0) > job.furthest
        job.reports.append(metrics)
        return further

    def has_news(self, number: int, seen: int) -> bool:
        """Whether a job has more than `seen` reports, or is over."""
        return len(self._jobs[number].reports) > seen or self._is_over(number)

    def read_news(self, number: int, seen: int) -> tuple[list[Metrics], Outcome | None]:
        """The reports of a job but for the first `seen`, and how it ended, if it has."""
        job = self._jobs[number]
        return job.reports[seen:], job.outcome

    def end_job(self, number: int, outcome: Outcome) -> None:
        """Keep how a job ended; the first word holds."""
        self._jobs[number].outcome = self._jobs[number].outcome or outcome

    def close(self, why: str) -> None:
        """End what is unfinished, and what is still handed in, with the first `why` that is given."""
        self.closed = self.closed or why
        for number in range(len(self._jobs)):
            self.end_job(number, Outcome(self.closed, CrewLost))
