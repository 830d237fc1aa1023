"""What Optuna does in a search: where a study is kept, what it proposes and hears, what mattered in it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from sqlalchemy.exc import DBAPIError, OperationalError

from adept_ray.config.errors import UserError
from adept_ray.config.places import mask_password
from adept_ray.config.search_space import Range, SearchSpace
from adept_ray.config.specs import ScoreWeights
from adept_ray.config.validation import fingerprint
from adept_ray.method.scores import count_general

STARTUP_TRIALS = 4  # begun, the settings under `first` among them, before TPE models the score
# Module of a database's driver → the package that brings it, for those of another name.
DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
TRIES = 20  # proposals, at most, until there is one that fits into memory
HALF = 0.5  # of all trials, those whose settings are compared with all


@dataclass
class SearchClock:
    """The time that a search may take, over all commands that go on with it."""

    hours: float | None = None
    spent: float = 0.0
    """Seconds that earlier commands took of it."""
    longest: float | None = None
    """Seconds of the longest trial so far."""
    over: bool = False
    """Whether a trial wasn't begun for want of time."""
    _since: float = field(default_factory=lambda: time.monotonic())
    _begun: dict[str, float] = field(default_factory=dict)

    def begins(self, trial: str) -> bool:
        """Whether a trial as long as the longest so far ends in time, or is the first; then it begins."""
        now = time.monotonic()
        first = not self._begun and self.longest is None
        end = self.spent + now - self._since + (self.longest or 0.0)
        if self.hours is not None and not first and end > 3600 * self.hours:
            self.over = True
            return False
        self._begun[trial] = now
        return True

    def ends(self, trial: str) -> None:
        """Say that a trial ended."""
        if trial in self._begun:
            self.took(time.monotonic() - self._begun.pop(trial))

    def took(self, seconds: float) -> None:
        """Say how long a trial took."""
        self.longest = max(self.longest or 0.0, seconds)


def is_starting(study: Any, trial: Any) -> bool:
    """Whether a trial is one of the first; those that failed, or were lost with a process, taught nothing."""
    failed = optuna.trial.TrialState.FAIL
    every = study.get_trials(deepcopy=False)
    return sum(each.number < trial.number and each.state != failed for each in every) < STARTUP_TRIALS


class Sampler(optuna.samplers.TPESampler):
    """TPE after STARTUP_TRIALS trials that were *begun*; Optuna itself counts those that ended.

    Of trials that run at the same time many more would be random. Where others' trials are in the study, too,
    they count: what they found is known. Searches that share one have an `owner` each, else those that begin
    together would propose the same.
    """

    def __init__(self, seed: int, several: bool = False, owner: str = "") -> None:
        seed = int(fingerprint(seed, owner)[:8], 16) if owner else seed
        # Of several at the same time those that run are taken for poor ones, else they would be alike.
        super().__init__(seed=seed, n_startup_trials=1, constant_liar=several)
        self._startup = optuna.samplers.RandomSampler(seed)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {} if is_starting(study, trial) else super().infer_relative_search_space(study, trial)

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        if is_starting(study, trial):
            return self._startup.sample_independent(study, trial, name, distribution)
        return super().sample_independent(study, trial, name, distribution)


class Proposals(OptunaSearch):
    """Optuna that hears "pruned", with the value reached, of a trial that stopped before its end.

    The settings to be tried first are kept here, not in the study's queue, from which whoever asks next
    takes: of searches that share a study each begins with its own. `owner` tells its trials from those of
    others.

    A study that isn't in this process's memory may know more than Tune does after a kill: what Tune has lost
    of it is given up, and what had been asked for first is asked for again.
    """

    clock: ClassVar[SearchClock] = SearchClock()
    too_large: ClassVar[Callable[[], int | None]] = staticmethod(lambda: None)
    """Says the smallest k at which a worker ran out of memory: no such k is proposed again."""

    def __init__(
        self,
        owner: str = "",
        weights: ScoreWeights | None = None,
        points_to_evaluate: Iterable[Mapping[str, Any]] = (),
        **options: Any,
    ) -> None:
        self._owner, self._weights = owner, weights or ScoreWeights()
        self._next = [dict(setting) for setting in points_to_evaluate]
        self._repeated: set[int] = set()  # numbers of trials that ended without Tune hearing
        super().__init__(**options)

    def suggest(self, trial_id: str) -> Any:
        if not self.clock.begins(trial_id):
            return Searcher.FINISHED
        setting, limit = self._proposed(trial_id), Proposals.too_large()
        study: Any = self._ot_study
        for _ in range(TRIES):  # where the range holds nothing smaller the trial will say so
            if limit is None or setting["k"] < limit:
                break
            study.tell(self._ot_trials.pop(trial_id), state=optuna.trial.TrialState.FAIL)
            setting = self._proposed(trial_id)
        return setting

    def _proposed(self, trial_id: str) -> Any:
        """The next setting of the list, or of the sampler; of a trial that is known, its own."""
        if self._next and trial_id not in self._ot_trials:
            self._ot_trials[trial_id] = self._begun_with(self._next.pop(0))
        setting: Any = super().suggest(trial_id)
        self._ot_trials[trial_id].set_user_attr("search", self._owner)
        return setting

    def _begun_with(self, setting: dict[str, Any]) -> optuna.Trial:
        """A trial of that setting, as Optuna has it of one that was queued; it runs from its beginning.

        One that waited, however shortly, could be taken by another process.
        """
        study: Any = self._ot_study
        begun = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            system_attrs={"fixed_params": setting},
            user_attrs={"search": self._owner},
        )
        return optuna.Trial(study, study._storage.create_new_trial(study._study_id, begun))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        # Tune counts a resumed trial's iterations from 1 again; our reports go on where they were.
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # the study outlived Tune's own records
            super().on_trial_result(trial_id, {**result, "training_iteration": result["report"]})

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.clock.ends(trial_id)
        if not (result and result.get("complete")):
            result = None
        elif "general_delta" in result:
            result = {**result, "general_delta": count_general(result["general_delta"], self._weights)}
        super().on_trial_complete(trial_id, result, error)

    def restore(self, checkpoint_path: str) -> None:
        super().restore(checkpoint_path)
        study: Any = self._ot_study
        failed = optuna.trial.TrialState.FAIL
        known = {trial.number for trial in self._ot_trials.values()} | self._repeated
        for trial in study.get_trials():
            if trial.user_attrs.get("search") != self._owner or trial.number in known:
                continue
            if not trial.state.is_finished():
                study._storage.set_trial_state_values(trial._trial_id, failed)
            elif trial.state != failed and "fixed_params" not in trial.system_attrs:
                # Nobody waits for its result any more: it is run again. The first settings are still ours.
                self._next.append(trial.params)
                self._repeated.add(trial.number)


def make_distribution(searched: Range) -> optuna.distributions.BaseDistribution:
    """Optuna's form of a range; a fixed value is a choice of one."""
    if searched.kind == "int":
        return optuna.distributions.IntDistribution(*searched.values)
    if searched.kind in ("float", "log"):
        low, high = searched.values
        return optuna.distributions.FloatDistribution(low, high, log=searched.kind == "log")
    return optuna.distributions.CategoricalDistribution(searched.values)


def propose_setting(space: SearchSpace, trial: Any) -> None:
    """Ask Optuna for a value of each parameter that is there, in the order of the file."""
    setting: dict[str, Any] = {}
    for name, searched in space.parameters.items():
        if name not in space.active(setting):
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
    """Where Optuna keeps its trials: a database's URL, or a file; None for this process's memory.

    Raises :class:`UserError` for what can't be opened, and for a driver that has to be installed; neither
    sentence says a password.
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
        said = " ".join(str(getattr(problem, "orig", None) or problem).split()).replace(study, shown)
        if study.count("@") > shown.count("@"):  # the driver took the rest of the password for a host
            said = "an @ in a password is written %40"
        raise UserError(
            f"--study {shown} can't be opened ({said[:200]}): give sqlite:///FILE, "
            "postgresql://USER@HOST/NAME or the path of a file"
        ) from None


def open_database(url: str) -> RDBStorage:
    """Optuna's tables in a database; they are made where there are none.

    Another search that makes them at the same time is in the way once: afterwards they are there.
    """
    try:
        return RDBStorage(url)
    except DBAPIError as problem:
        if isinstance(problem, OperationalError) and "already exists" not in str(problem):
            raise  # nobody answers there
    return RDBStorage(url)


def rank_hyperparameters(space: SearchSpace, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """How much each searched parameter has to do with a trial being in the better half, largest share first.

    By PED-ANOVA (arXiv 2304.10255), which takes conditional parameters, too; empty for less than four trials.
    """
    finished = [row for row in rows if row["state"] == "finished" and math.isfinite(row["score"])]
    searched = {name: each for name, each in space.parameters.items() if each.kind != "fixed"}
    if len(finished) < 2 / HALF or not searched:
        return {}
    study = optuna.create_study(direction="maximize")
    for row in finished:
        params = {name: row[name] for name in searched if name in row}
        ranges = {name: make_distribution(searched[name]) for name in params}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=ranges, value=float(row["score"]))
        )
    with warnings.catch_warnings(action="ignore"):  # it is said in our words how little few trials mean
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=HALF)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}
