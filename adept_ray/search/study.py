"""Optuna in a search: where a study is kept, what it proposes and hears, which parameters mattered."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from sqlalchemy.exc import DBAPIError, OperationalError

from adept_ray.config.errors import UserError
from adept_ray.config.places import mask_password
from adept_ray.config.search_space import Range, SearchSpace
from adept_ray.config.specs import ScoreWeights
from adept_ray.config.validation import fingerprint
from adept_ray.method.scores import count_general, value_or_nan
from adept_ray.search.trials import Facts, Setting, Trial, Value

STARTUP_TRIALS = 4  # that begin, the settings under `first` among them, before TPE models the score
# Module of a database's driver → the package that brings it, where their names differ.
DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
MOST_PROPOSALS = 20  # for one trial, until there is one that fits into memory
BETTER_HALF = 0.5  # the share of trials whose settings are compared with those of all


@dataclass
class SearchClock:
    """The time that a search may take, over all commands that continue it."""

    hours: float | None = None
    seconds_before: float = 0.0
    """Seconds that earlier commands searched."""
    longest_seconds: float | None = None
    """Length of the longest trial so far."""
    is_over: bool = False
    """Whether a trial wasn't begun for want of time."""
    _start: float = field(default_factory=lambda: time.monotonic())
    _trial_starts: dict[str, float] = field(default_factory=dict)

    def try_begin(self, trial: str) -> bool:
        """Begin a trial if it is the first, or if one as long as the longest so far would end in time."""
        now = time.monotonic()
        is_first = not self._trial_starts and self.longest_seconds is None
        end = self.seconds_before + now - self._start + (self.longest_seconds or 0.0)
        if self.hours is not None and not is_first and end > 3600 * self.hours:
            self.is_over = True
            return False
        self._trial_starts[trial] = now
        return True

    def end_trial(self, trial: str) -> None:
        """Say that a trial ended."""
        if trial in self._trial_starts:
            self.record_length(time.monotonic() - self._trial_starts.pop(trial))

    def record_length(self, seconds: float) -> None:
        """Say how long a trial was."""
        self.longest_seconds = max(self.longest_seconds or 0.0, seconds)


def is_starting(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether a trial is one of the first; those that failed, or were lost with a process, taught nothing."""
    every = study.get_trials(deepcopy=False)
    earlier = [each for each in every if each.number < trial.number and each.state != TrialState.FAIL]
    return len(earlier) < STARTUP_TRIALS


class Sampler(optuna.samplers.TPESampler):
    """TPE after STARTUP_TRIALS trials that were *begun*; Optuna itself counts those that ended.

    By its count, many more would be random where trials run at the same time. Other searches' trials in the
    same study count, too: their scores are known. Searches that share a study have an `owner` each, else
    those that begin together would propose the same.
    """

    def __init__(self, seed: int, several: bool = False, owner: str = "") -> None:
        seed = int(fingerprint(seed, owner)[:8], 16) if owner else seed
        # TPE takes trials that still run for poor ones, else those that run together would be alike.
        super().__init__(seed=seed, n_startup_trials=1, constant_liar=several)
        self._startup = optuna.samplers.RandomSampler(seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {} if is_starting(study, trial) else super().infer_relative_search_space(study, trial)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Value:
        sample = self._startup.sample_independent if is_starting(study, trial) else super().sample_independent
        value: Value = sample(study, trial, param_name, param_distribution)
        return value


@dataclass(frozen=True)
class BegunTrial:
    """What Tune has records of, of a trial that began."""

    id: str
    setting: Setting
    result: Facts
    """Its last report; empty before the first."""
    is_over: bool
    """Whether it ended without an error."""


class Proposals(OptunaSearch):
    """Optuna that hears "pruned", with the value reached, of a trial that stopped before its end.

    The settings to be tried first are kept here, not in the study's queue: that gives them to any search that
    asks. So each of the searches that share a study begins with its own. `owner` tells its trials from those
    of others.

    After a kill the state that is restored, a study that isn't in this process's memory, and Tune's records
    may each be of another moment. Tune's count. Trials that it has lost are given up, and their settings are
    proposed again; what it knows and the state doesn't is proposed and told once more.
    """

    begun: ClassVar[Sequence[BegunTrial] | None] = None
    """What Tune has records of, in the order in which it began, where a search is restored."""
    clock: ClassVar[SearchClock] = SearchClock()
    find_limit: ClassVar[Callable[[], int | None]] = staticmethod(lambda: None)
    """Gives the smallest k at which a worker ran out of memory: no such k is proposed again."""
    explain_end: ClassVar[Callable[[], str]] = staticmethod(lambda: "")
    """Says why no trial can be trained any more: then none is proposed, which would be without the scores
    of those that were cut off."""

    def __init__(
        self,
        owner: str = "",
        weights: ScoreWeights | None = None,
        points_to_evaluate: Iterable[Setting] = (),
        **options: Any,
    ) -> None:
        self._owner, self._weights = owner, weights or ScoreWeights()
        self._queue = [dict(setting) for setting in points_to_evaluate]
        self._repeated: set[int] = set()  # numbers of trials that ended without Tune hearing, seen to
        super().__init__(**options)

    @property
    def _study(self) -> optuna.Study:
        """Optuna's study, which is there from the first proposal on."""
        study: Any = self._ot_study
        return cast("optuna.Study", study)

    def give_up_lost(self) -> None:
        """Give up what an earlier command began and nobody will end: it died before Tune had any record.

        It would count as begun. For a search that begins, not for one that is restored.
        """
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("search") == self._owner:
                self._study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def suggest(self, trial_id: str) -> Any:  # a setting, or the word that there is none any more
        if Proposals.explain_end() or not self.clock.try_begin(trial_id):
            return Searcher.FINISHED
        setting, limit = self._propose(trial_id), Proposals.find_limit()
        for _ in range(MOST_PROPOSALS):  # where the range holds nothing smaller, the trial will say so
            if limit is None or setting["k"] < limit:
                break
            self._study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
            setting = self._propose(trial_id)
        return setting

    def _propose(self, trial_id: str) -> Any:
        """The next setting of the queue, or of the sampler; a trial that has a setting keeps it."""
        if self._queue and trial_id not in self._ot_trials:
            self._ot_trials[trial_id] = self._begin_trial(self._queue.pop(0))
        setting: Any = super().suggest(trial_id)
        self._ot_trials[trial_id].set_user_attr("search", self._owner)
        return setting

    def _begin_trial(self, setting: Setting) -> optuna.Trial:
        """A trial of that setting, as if it came from Optuna's queue; it runs from its beginning.

        Another process could take one that waited, however shortly.
        """
        frozen = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            system_attrs={"fixed_params": setting},
            user_attrs={"search": self._owner},
        )
        study = self._study
        return optuna.Trial(study, study._storage.create_new_trial(study._study_id, frozen))

    def on_trial_result(self, trial_id: str, result: Facts) -> None:
        # Tune counts a resumed trial's iterations from 1 again; our count of reports continues.
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # the study outlived Tune's own records
            super().on_trial_result(trial_id, {**result, "training_iteration": result["report"]})

    def on_trial_complete(self, trial_id: str, result: Facts | None = None, error: bool = False) -> None:
        self.clock.end_trial(trial_id)
        values = dict(result) if result and result.get("complete") else None
        if values and "general_delta" in values:
            values["general_delta"] = count_general(values["general_delta"], self._weights)
        super().on_trial_complete(trial_id, values, error)

    def restore(self, checkpoint_path: str) -> None:
        super().restore(checkpoint_path)
        begun = self.begun
        if begun is not None:
            self._give_up({trial.id for trial in begun})
        study = self._study
        own_numbers = {trial.number for trial in self._ot_trials.values()} | self._repeated
        unheard = []  # what ended without Tune hearing
        for trial in study.get_trials():
            if trial.user_attrs.get("search") != self._owner or trial.number in own_numbers:
                continue
            if not trial.state.is_finished():
                study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            elif trial.state != TrialState.FAIL:
                unheard.append(trial)
        for known in begun or ():
            self._take_up(known, unheard)
        for trial in unheard:
            if trial.number not in self._repeated and "fixed_params" not in trial.system_attrs:
                # Nobody waits for its result any more, so it is run again. The first settings are kept here.
                self._queue.append(trial.params)
                self._repeated.add(trial.number)

    def _give_up(self, begun: Collection[str]) -> None:
        """Give up the trials of which Tune has no record: their settings go before those that wait."""
        lost = [trial_id for trial_id in self._ot_trials if trial_id not in begun]
        trials = [self._ot_trials.pop(trial_id) for trial_id in lost]
        self._completed_trials.difference_update(lost)
        storage = self._study._storage
        for trial in trials:
            if storage.get_trial(trial._trial_id).state.is_finished():
                self._repeated.add(trial.number)
            else:
                storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        self._queue[:0] = [trial.params for trial in trials]

    def _take_up(self, begun: BegunTrial, unheard: Iterable[FrozenTrial]) -> None:
        """Know a trial of Tune's and, if it is over, its end, though this state is of an earlier moment."""
        if begun.id not in self._ot_trials and begun.id not in self._completed_trials:
            left = (trial for trial in unheard if trial.number not in self._repeated)
            if ended := next((trial for trial in left if trial.params == begun.setting), None):
                self._repeated.add(ended.number)
                self._completed_trials.add(begun.id)
            else:
                self._propose_again(begun)
        if not begun.is_over and self._has_failed(begun.id):
            # Tune runs it again, and its end is to be heard: a crew or a disk may have failed, not the trial.
            self._completed_trials.discard(begun.id)
            self._ot_trials[begun.id] = self._begin_trial(begun.setting)
            self._propose(begun.id)
        if begun.is_over and begun.id not in self._completed_trials:
            self.on_trial_result(begun.id, begun.result)
            self.on_trial_complete(begun.id, begun.result)

    def _has_failed(self, trial_id: str) -> bool:
        """Whether Optuna was told that a trial failed."""
        known = self._ot_trials.get(trial_id)
        return known is not None and self._study._storage.get_trial(known._trial_id).state == TrialState.FAIL

    def _propose_again(self, begun: BegunTrial) -> None:
        """Propose what was proposed, so that what follows is what would have followed."""
        queue = list(self._queue)
        for _ in range(1 if Proposals.find_limit() is None else MOST_PROPOSALS):
            if self._propose(begun.id) == begun.setting:
                return
            self._study.tell(self._ot_trials.pop(begun.id), state=TrialState.FAIL)
        self._queue = [dict(begun.setting), *(setting for setting in queue if setting != begun.setting)]
        self._propose(begun.id)


def make_distribution(searched: Range) -> BaseDistribution:
    """Optuna's form of a range; a fixed value is a choice of one."""
    if searched.kind == "int":
        return optuna.distributions.IntDistribution(*searched.values)
    if searched.kind in ("float", "log"):
        low, high = searched.values
        return optuna.distributions.FloatDistribution(low, high, log=searched.kind == "log")
    return optuna.distributions.CategoricalDistribution(searched.values)


def propose_setting(space: SearchSpace, trial: optuna.Trial) -> None:
    """Ask Optuna for a value of each parameter that is there, in the order of the file."""
    setting: dict[str, Value] = {}
    for name, searched in space.parameters.items():
        if name not in space.list_active(setting):
            continue
        if searched.kind == "int":
            setting[name] = trial.suggest_int(name, *searched.values)
        elif searched.kind in ("float", "log"):
            setting[name] = trial.suggest_float(name, *searched.values, log=searched.kind == "log")
        else:
            setting[name] = trial.suggest_categorical(name, searched.values)


def quiet_optuna() -> None:
    """Keep Optuna to its errors."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_study(study: str) -> optuna.storages.BaseStorage | None:
    """Where Optuna keeps its trials: a database by its URL, or a file; None for this process's memory.

    Raises :class:`UserError` for a place that can't be opened, and for a driver that has to be installed.
    Neither sentence says a password.
    """
    quiet_optuna()
    shown = mask_password(study)
    if not study:
        return None
    try:
        if "://" in study:
            return open_database(study)
        if Path(study).suffix in (".db", ".sqlite", ".sqlite3"):
            return open_database(f"sqlite:///{Path(study).absolute()}")
        return JournalStorage(JournalFileBackend(study))
    except ImportError as problem:
        module = getattr(problem.__cause__ or problem, "name", "") or str(problem)
        raise UserError(
            f"--study {shown} needs the database's driver, {module}: pip install "
            f"{DRIVERS.get(module, module)}"
        ) from None
    except Exception as problem:  # drivers raise errors of their own
        reason = " ".join(str(getattr(problem, "orig", None) or problem).split()).replace(study, shown)
        if study.count("@") > shown.count("@"):  # the driver took the rest of the password for a host
            reason = "an @ in a password is written %40"
        raise UserError(
            f"--study {shown} can't be opened ({reason[:200]}): give sqlite:///FILE, "
            "postgresql://USER@HOST/NAME or the path of a file"
        ) from None


def open_database(url: str) -> RDBStorage:
    """Optuna's tables in a database; where there are none, they are made.

    The first try fails where another search makes them at the same time. Afterwards they are there.
    """
    try:
        return RDBStorage(url)
    except DBAPIError as problem:
        if isinstance(problem, OperationalError) and "already exists" not in str(problem):
            raise  # nobody answers there
    return RDBStorage(url)


def rank_hyperparameters(space: SearchSpace, trials: Iterable[Trial]) -> dict[str, float]:
    """How much each searched parameter has to do with a trial being in the better half, largest share first.

    By PED-ANOVA (arXiv 2304.10255), which takes conditional parameters, too. With fewer than four trials it
    is empty.
    """
    finished = [trial for trial in trials if trial.is_comparable]
    searched = {name: each for name, each in space.parameters.items() if each.kind != "fixed"}
    if len(finished) < 2 / BETTER_HALF or not searched:
        return {}
    study = optuna.create_study(direction="maximize")
    for trial in finished:
        params = {name: trial.config[name] for name in searched if name in trial.config}
        ranges = {name: make_distribution(searched[name]) for name in params}
        score = value_or_nan(trial.score)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, value=score))
    with warnings.catch_warnings(action="ignore"):  # our own words say how little few trials mean
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BETTER_HALF)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items() if math.isfinite(share)}
