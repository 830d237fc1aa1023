"""When a trial without hope is stopped: verdicts on every report, for the trial's workers to act on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from adept_ray.config.specs import ScoreWeights
from adept_ray.engine.client import find_board
from adept_ray.method.scores import SIDES, Pulls, difference_error
from adept_ray.search.trials import Facts
from adept_ray.storage.files import read_json, store_json

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial as TuneTrial

HOPELESS_ERRORS = 2  # paired standard errors behind the best at the same report, twice in a row
VERDICTS = "verdicts.json"


@dataclass(frozen=True)
class Report:
    """What a trial reported, as far as it is compared with others."""

    worth: float
    """What the search maximises: the score less the price of the layers."""
    score_se: float | None = None
    general_delta: float | None = None
    tokens: int | None = None
    pulls: Pulls = field(default_factory=dict)
    trial: str = ""

    @classmethod
    def from_result(cls, result: Facts, trial: str) -> Report:
        """The report in a result that Tune has flattened."""
        names = ("score_se", "general_delta", "tokens")
        pulls = {side: result[f"pulls/{side}"] for side in SIDES if f"pulls/{side}" in result}
        return cls(result["worth"], **{name: result.get(name) for name in names}, pulls=pulls, trial=trial)


class Verdicts(FIFOScheduler):
    """Never ends a trial itself: it posts its decision for the trial's workers to act on.

    A trial that Tune ends from outside would leave the crew at work on it; one that returns from its own
    loop leaves the crew free for the next. Workers wait for the verdict on each report, so timing doesn't
    decide when a trial stops. Until `judge_after` others have come as far, a
    trial goes on whatever its worth, else the first one alone would be the measure. A trial is ended only if
    it lies more than two standard errors behind the best that had seen as many tokens, now and at the report
    before: no single reading ends a trial. The error is that of the difference, paired over the validation
    documents that both were scored on: what is hard for one is hard for the other. A trial that may still be
    chosen (within one such error, see :func:`~adept_ray.search.choice.choose_k`) goes on.

    Tune doesn't keep a scheduler's state. So readings and decisions are written to `memory` (a path or URI),
    and read back when a search is resumed.
    """

    def __init__(self, run: str, memory: str, judge_after: float, weights: ScoreWeights) -> None:
        super().__init__()
        self._run, self._memory, self._judge_after = run, memory, judge_after
        self._weights = weights
        self._stops: dict[str, bool] = {}  # "trial/report" → whether it stops there
        self._behind: dict[
            str, bool
        ] = {}  # "trial/report" → whether it lies below the best by more than chance
        self._best: dict[str, Report] = {}  # number of a report → the best one so far

    def on_trial_result(self, tune_controller: TuneController, trial: TuneTrial, result: Facts) -> str:
        number = result["report"]
        name = name_trial(trial)
        key, before = f"{name}/{number}", f"{name}/{number - 1}"
        if key not in self._stops:  # a resumed trial repeats its last report
            others = sum(each.endswith(f"/{number}") for each in self._stops)
            self._behind[key] = self._lies_behind(str(number), Report.from_result(result, name))
            is_hopeless = self._behind[key] and self._behind.get(before, False)
            self._stops[key] = is_hopeless and others >= self._judge_after
            self._store()
        find_board(self._run).give_verdict(name, number, self._stops[key])
        return TrialScheduler.CONTINUE

    def _lies_behind(self, number: str, report: Report) -> bool:
        """Whether a report lies below the best one before it, at as many tokens, by more than chance."""
        best = self._best.get(number)
        if math.isfinite(report.worth) and (best is None or report.worth > best.worth):
            self._best[number] = report
        if best is None or best.tokens != report.tokens:
            return False
        distance = best.worth - report.worth
        return bool(distance > HOPELESS_ERRORS * difference_error(best, report, self._weights))

    def _store(self) -> None:
        best = {number: asdict(report) for number, report in self._best.items()}
        store_json(self._memory, {"decided": self._stops, "behind": self._behind, "best": best})

    def __setstate__(self, state: Mapping[str, object]) -> None:
        """Called when Tune restores a search: take up what was stored since it was pickled."""
        self.__dict__.update(state)
        if memory := read_json(self._memory):
            self._stops, self._behind = memory["decided"], memory["behind"]
            self._best = {number: Report(**report) for number, report in memory["best"].items()}


def name_trial(trial: TuneTrial) -> str:
    """trial-001, trial-002, … in the order in which they were proposed."""
    return f"trial-{int(trial.experiment_tag.partition('_')[0]):03d}"
