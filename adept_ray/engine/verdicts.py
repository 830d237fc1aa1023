"""The verdicts on trials' reports, as a plain object."""

from __future__ import annotations


class TrialVerdicts:
    """Whether a trial stops after a report; the first word on a report holds."""

    def __init__(self) -> None:
        self._stops: dict[tuple[str, int], bool] = {}

    def give_verdict(self, trial: str, report: int, stop: bool) -> None:
        """Say whether a trial stops after that report."""
        self._stops.setdefault((trial, report), stop)

    def find_verdict(self, trial: str, report: int) -> bool | None:
        """Whether the trial stops after that report; None while nobody has said."""
        return self._stops.get((trial, report))
