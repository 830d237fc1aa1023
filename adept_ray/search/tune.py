"""The search for k: Ray Tune runs trials of stage 2, and stops those without hope."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ray import cloudpickle, tune

from adept_ray.config.errors import UnfinishedRun, UserError
from adept_ray.engine.client import find_board
from adept_ray.search.restoring import (
    describe_begun,
    is_restorable,
    keep_files,
    mend_files,
    mend_generator,
)
from adept_ray.search.setup import EXPERIMENT, SearchSetup
from adept_ray.search.study import Proposals, Sampler, SearchClock, open_study, propose_setting, quiet_optuna
from adept_ray.search.trial_process import TrialErrand, run_trial
from adept_ray.search.trials import Facts, Trial, name_end, title_trial
from adept_ray.search.upkeep import forget_trials, has_trials
from adept_ray.search.verdicts import VERDICTS, Verdicts, name_trial

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.tune.experiment import Trial as TuneTrial

TRIAL_MEMORY = 2**20  # bytes that are set aside for a trial's process, which only waits


class TrialPoster(tune.Callback):
    """Posts each trial's latest row to the board, and keeps a whole copy of what Tune saves."""

    experiment: ClassVar[str] = ""
    """Where Tune keeps its records of the search."""
    _saved: Path | None = None  # Tune's folder on this machine

    def __init__(self, run: str, describe: Callable[[TuneTrial, Facts | None, str], Trial]) -> None:
        self._run, self._describe = run, describe

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: object) -> None:
        if trials and trials[0].storage:
            self._saved = Path(trials[0].storage.experiment_driver_staging_path)

    def get_state(self) -> None:
        """Nothing; Tune asks for it when it has saved all else, before it copies that to the results."""
        if self._saved:
            keep_files(self._saved, self.experiment)

    def _post(self, trial: TuneTrial, metrics: Facts | None, state: str) -> None:
        find_board(self._run).record_row(self._describe(trial, metrics, state).as_row())

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        self._post(trial, trial.last_result, "running")

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: Facts, **info: object
    ) -> None:
        self._post(trial, result, "running")

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        self._post(trial, trial.last_result, name_end(trial.last_result))

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        self._post(trial, trial.last_result, "failed")


def title_tune_trial(trial: TuneTrial) -> str:
    """``trial-007 k=4 lr=3e-4``: a trial as persons read it in Ray's dashboard and logs."""
    return title_trial(name_trial(trial), trial.config)


def run_search(
    setup: SearchSetup,
    blocks: ObjectRef,
    seconds_before: float = 0.0,
    warn: Callable[[str], None] = lambda text: None,
) -> list[Trial]:
    """Run (or continue, or extend) the trials of a search, and return them.

    `blocks` are what every trial trains and is judged on, `seconds_before` what earlier commands searched.
    `warn` hears of records that were lost.
    Raises KeyboardInterrupt when the search was interrupted, :class:`UnfinishedRun` when the crew couldn't go
    on, and :class:`UserError` for trials that nothing is known of any more.
    """
    quiet_optuna()
    run = setup.run
    Proposals.clock = SearchClock(run.max_hours, seconds_before)
    TrialPoster.experiment = setup.experiment
    board = find_board(run.name)
    Proposals.find_limit = staticmethod(board.read_limit)
    Proposals.explain_end = staticmethod(board.explain_closing)
    crews = board.count_crews()
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, errand=build_errand(setup), blocks=(blocks,)),
        {"memory": TRIAL_MEMORY},  # no share of a CPU, for want of which a worker may not fit on a node
    )
    begun = []
    if run.resume:
        begun = recover_trials(setup, warn)
        forget_trials(setup.storage, {name_trial(trial) for trial in begun})
    Proposals.begun = [describe_begun(trial) for trial in begun] or None
    if begun:
        mend_generator(setup.experiment, begun, run.trials, crews)
        for trial in map(setup.describe_end, begun):
            if trial.state != "interrupted":
                Proposals.clock.record_length(trial.seconds or 0.0)
                board.record_row(trial.as_row())
        tuner = tune.Tuner.restore(setup.experiment, trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = build_tuner(setup, trainable, crews)
    tuner.fit()
    if why := board.explain_closing():
        raise UnfinishedRun(why)
    trials = [setup.describe_end(trial) for trial in load_tune_trials(setup.experiment)]
    interrupted = any(trial.state == "interrupted" for trial in trials)
    if interrupted or (len(trials) < run.trials and not Proposals.clock.is_over):
        raise KeyboardInterrupt
    return trials


def recover_trials(setup: SearchSetup, warn: Callable[[str], None]) -> list[TuneTrial]:
    """The trials that a search began with before, none if it had none; `warn` hears of what was cut short.

    Raises :class:`UserError` where trials were trained and Tune's records of them can't be restored: to begin
    anew would delete them.
    """
    if broken := mend_files(setup.experiment):
        lost = f"a kill or a full disk cut {', '.join(broken)} in {setup.experiment} short"
        warn(f"{lost}: the search goes on from what was written before")
    if is_restorable(setup.experiment):
        return load_tune_trials(setup.experiment)
    if has_trials(setup.storage):
        raise UserError(
            f"{setup.experiment} holds no whole records of the search, so its trials can't be taken up: "
            "their scores stay in trials.csv and their weights where they are; search again under another "
            "--name"
        )
    return []


def build_errand(setup: SearchSetup) -> TrialErrand:
    """What the trials' processes get of a search."""
    run = setup.run
    price = run.min_gain_per_layer or 0.0
    work = setup.work
    return TrialErrand(run.name, setup.storage, work.training, cloudpickle.dumps(setup), work.seq_len, price)


def load_tune_trials(experiment: str) -> list[TuneTrial]:
    """The trials that Tune has records of, in the order in which they were proposed."""
    return sorted(tune.ExperimentAnalysis(experiment).trials, key=name_trial)


def build_tuner(setup: SearchSetup, trainable: Callable[..., object], crews: int) -> tune.Tuner:
    """The tuner of a search that begins, with a trial at a time for each of so many crews."""
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=setup.run.trials,
            max_concurrent_trials=crews,
            reuse_actors=True,
            search_alg=build_proposals(setup, crews),
            scheduler=build_verdicts(setup),
            trial_name_creator=title_tune_trial,
            trial_dirname_creator=name_trial,
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=setup.storage,
            verbose=0,
            callbacks=[TrialPoster(setup.run.name, setup.describe_trial)],
            # A trial's process that died is started again and hears all reports; one that failed, its end.
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )


def build_proposals(setup: SearchSetup, crews: int) -> Proposals:
    """What proposes settings: Optuna, which hears a trial's worth, or with ``--pareto`` both changes."""
    run, space = setup.run, setup.space
    metric: str | Sequence[str] = "worth"
    mode: str | Sequence[str] = "max"
    if run.pareto:
        metric, mode = ["general_delta", "domain_delta"], ["max", "max"]
    proposals = Proposals(
        owner=setup.storage,
        weights=setup.work.weights,
        space=functools.partial(propose_setting, space),
        points_to_evaluate=[dict(setting) for setting in space.first],
        sampler=Sampler(run.seed, several=crews > 1, owner=setup.storage if run.study else ""),
        study_name=setup.study,
        storage=open_study(run.study),
        metric=metric,
        mode=mode,
    )
    proposals.give_up_lost()
    return proposals


def build_verdicts(setup: SearchSetup) -> Verdicts:
    """What stops trials; none with ``--pareto``, where the poorest one may be the best by other weights."""
    judge_after = math.inf if setup.run.pareto else setup.space.judge_after
    return Verdicts(setup.run.name, f"{setup.storage}/{VERDICTS}", judge_after, setup.work.weights)
