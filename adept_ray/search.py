"""The search for k: Ray Tune and Optuna over trials of stage 2, and the rule that chooses among them."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
import ray
from pyarrow import fs
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from adept_ray.anatomy import layer_of
from adept_ray.config import SEARCHABLE, Range, SearchRun, SearchSpace, TrainingSpec, UserError, overlay
from adept_ray.crew import Task, TaskFailed, board_name, out_of_memory, reports
from adept_ray.expansion import check_depth
from adept_ray.importance import LayerImportance
from adept_ray.placement import check_placement, placed, ranks_needed
from adept_ray.train import TrainJob

STARTUP_TRIALS = 4  # proposed at random (after the settings under `first`) before TPE models the score
HALVING = 2  # a report below the better half of its rung ends the trial
EXPERIMENT = "search"
LayersFor = Callable[[Mapping[str, Any]], tuple[int, ...]]  # a trial's settings → the layers it copies


class Verdicts(ASHAScheduler):
    """ASHA that never ends a trial itself: it posts its decision for the trial's workers to act on.

    A trial that Tune ends from outside would leave the crew at work on it; one that returns from its own
    loop leaves it free for the next. Workers wait for the verdict on each report, so
    when a trial stops doesn't depend on timing. Until `judge_after` others have come as far a trial goes
    on whatever its score, else the first one alone would be the measure. And it goes on while it lies
    within one standard error of the best that came as far: such a trial may still be chosen, by the rule of
    :func:`choose`, so ending it could change the answer. Tune doesn't keep a scheduler's
    state, so scores and decisions are written to `memory` (a path or URI), and read back when a search
    is resumed.
    """

    def __init__(self, board: str, memory: str, judge_after: int, **options: Any) -> None:
        super().__init__(**options)
        self._board, self._memory, self._judge_after = board, memory, judge_after
        self._decided: dict[str, bool] = {}  # "trial id/report" → stop
        self._best: dict[str, list[float]] = {}  # report → score and standard error of the best so far

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        key = f"{trial.trial_id}/{result['report']}"
        if key not in self._decided:  # a resumed trial repeats its last report
            decision = super().on_trial_result(tune_controller, trial, result)
            others = sum(seen.endswith(f"/{result['report']}") for seen in self._decided)
            hopeless = self._beyond_noise(result) and others >= self._judge_after
            self._decided[key] = decision == TrialScheduler.STOP and hopeless
            self._remember()
        board = ray.get_actor(self._board)
        board.decide.remote(trial_name(trial), result["report"], self._decided[key])
        return TrialScheduler.CONTINUE

    def _beyond_noise(self, result: Mapping[str, Any]) -> bool:
        """Whether a report lies more than one standard error below the best one before it."""
        report, score, error = str(result["report"]), result["score"], result["score_se"]
        best, noise = self._best.get(report, (-math.inf, 0.0))
        if score > best:
            self._best[report] = [score, error if math.isfinite(error) else 0.0]
        return bool(score < best - noise)

    def _remember(self) -> None:
        rungs = [[scores for _, scores in bracket._rungs] for bracket in self._brackets]
        filesystem, path = fs.FileSystem.from_uri(self._memory)
        with filesystem.open_output_stream(f"{path}.new") as file:
            memory = {"rungs": rungs, "decided": self._decided, "best": self._best}
            file.write(json.dumps(memory).encode())
        filesystem.move(f"{path}.new", path)  # so that a kill can't leave half of it

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called when Tune restores a search: take up what was remembered since it was pickled."""
        self.__dict__.update(state)
        filesystem, path = fs.FileSystem.from_uri(self._memory)
        if filesystem.get_file_info(path).type != fs.FileType.File:
            return
        with filesystem.open_input_file(path) as file:
            memory = json.loads(file.read())
        self._decided, self._best = memory["decided"], memory["best"]
        for bracket, rungs in zip(self._brackets, memory["rungs"], strict=True):
            for (_, scores), remembered in zip(bracket._rungs, rungs, strict=True):
                scores.update(remembered)


class Proposals(OptunaSearch):
    """Optuna that hears "pruned", with the value reached, of a trial that stopped before its end."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        # Tune counts a resumed trial's iterations from 1 again; our reports go on where they were.
        super().on_trial_result(trial_id, {**result, "training_iteration": result["report"]})

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        finished = bool(result and result.get("complete"))
        super().on_trial_complete(trial_id, result if finished else None, error)


class Rows(tune.Callback):
    """Posts each trial's latest row to the board."""

    def __init__(self, board: str, describe: Any) -> None:
        self._board, self._describe = board, describe

    def _post(self, trial: Any, state: str) -> None:
        row = self._describe(trial_name(trial), trial.config, trial.last_result or {}, state)
        ray.get_actor(self._board).note.remote(row)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._post(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        row = self._describe(trial_name(trial), trial.config, result, "running")
        ray.get_actor(self._board).note.remote(row)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._post(trial, ended(trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._post(trial, "failed")


def trial_name(trial: Any) -> str:
    """trial-001, trial-002, … in the order in which they were proposed."""
    return f"trial-{int(trial.experiment_tag.partition('_')[0]):03d}"


def ended(metrics: Mapping[str, Any] | None) -> str:
    """State of a trial that ended without an error."""
    return "finished" if metrics and metrics.get("complete") else "stopped"


def describe(
    name: str, config: Mapping[str, Any], metrics: Mapping[str, Any], state: str, layers_for: LayersFor
) -> dict[str, Any]:
    """A row of trials.csv; numbers are None before the first report."""
    names = (
        "general_bpb",
        "domain_bpb",
        "general_accuracy",
        "domain_accuracy",
        "general_delta",
        "domain_delta",
        "score",
        "score_se",
        "tokens",
        "seconds",
    )
    return {
        "trial": name,
        "k": config["k"],
        "layers": " ".join(map(str, layers_for(config))),
        **{key: value for key, value in config.items() if key != "k"},
        **{key: metrics.get(key) for key in names},
        "state": state,
    }


def check_space(space: SearchSpace, layers: int, base: TrainingSpec) -> tuple[TrainingSpec, int]:
    """A deepest training of the space, and how many of the least important layers it needs in order.

    Raises :class:`UserError` when k leaves 0 … number of layers, or a placement can't be made.

    What holds for the largest k and offset of the ranges holds for the others.
    """

    def values(name: str) -> tuple[Any, ...]:
        ranges = space.parameters
        return ranges[name].values if name in ranges else (getattr(base, name),)

    for k in values("k"):
        check_depth(k, layers)
    extreme = {"k": max(values("k")), "offset": max(values("offset"))}
    extreme["tokens_per_step"] = min(values("tokens_per_step"))
    deepest = [overlay(base, {**extreme, "placement": placement}) for placement in values("placement")]
    for training in deepest:
        check_placement(training, layers)
    return deepest[0], max(ranks_needed(training, layers) for training in deepest)


def distribution(searched: Range) -> optuna.distributions.BaseDistribution:
    """Optuna's form of a range; a fixed value is a choice of one."""
    if searched.kind == "int":
        return optuna.distributions.IntDistribution(*searched.values)
    if searched.kind in ("float", "log"):
        low, high = searched.values
        return optuna.distributions.FloatDistribution(low, high, log=searched.kind == "log")
    return optuna.distributions.CategoricalDistribution(searched.values)


def trial(
    config: dict[str, Any],
    run: SearchRun,
    job: TrainJob,
    importance: LayerImportance,
    blocks: tuple[Any],
    storage: str,
) -> None:
    """One trial, in a process of Tune's: stage 2 on the crew, its reports passed on to Tune.

    `blocks` holds an object reference in a tuple, since Tune would fetch a bare one here.
    Raises :class:`TaskFailed`, without trying, for a k at which or below which a worker ran out of memory.
    """
    training = overlay(job.training, config)
    board: Any = ray.get_actor(board_name(run))
    limit = ray.get(board.limit.remote())
    if limit is not None and training.k >= limit:
        raise TaskFailed(f"k = {training.k} was not tried: a worker ran out of memory at k = {limit}")
    layers = placed(importance, training, job.seed)
    job = replace(
        job,
        training=training,
        layers=layers,
        units={name: value for name, value in job.units.items() if layer_of(name) in layers},
    )
    name = tune.get_context().get_trial_name()
    try:
        for metrics in reports(board, Task(name, "train", job, blocks[0], storage, judged=True)):
            tune.report(metrics)
    except TaskFailed as problem:
        if out_of_memory(str(problem)):
            ray.get(board.exceeded.remote(training.k))
        raise


def search(
    run: SearchRun,
    space: SearchSpace,
    job: TrainJob,
    importance: LayerImportance,
    blocks: Any,
    storage: str,
) -> list[dict[str, Any]]:
    """Run (or continue) the trials; returns one row a trial: see :func:`final_row`.

    `job` holds what all trials share; `blocks` is an object reference. Raises KeyboardInterrupt when
    the search was interrupted.
    """
    # A failed trial is a row with its state; its traceback is kept in its folder, not shown in between.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainable = tune.with_resources(
        tune.with_parameters(
            trial, run=run, job=job, importance=importance, blocks=(blocks,), storage=f"{storage}/trials"
        ),
        {"CPU": 0.01},
    )

    def layers_for(config: Mapping[str, Any]) -> tuple[int, ...]:
        return placed(importance, overlay(job.training, config), job.seed)

    experiment = f"{storage}/{EXPERIMENT}"
    if run.resume and tune.Tuner.can_restore(experiment):
        tuner = tune.Tuner.restore(experiment, trainable, resume_unfinished=True)
    else:
        tuner = new_tuner(run, space, job.report_steps, layers_for, trainable, storage)
    tuner.fit()
    ran = sorted(tune.ExperimentAnalysis(experiment).trials, key=trial_name)
    rows = [final_row(each, layers_for) for each in ran]
    if sum(row["state"] != "interrupted" for row in rows) < run.trials:
        raise KeyboardInterrupt
    return rows


def new_tuner(
    run: SearchRun,
    space: SearchSpace,
    report_steps: Sequence[int],
    layers_for: LayersFor,
    trainable: Any,
    storage: str,
) -> tune.Tuner:
    """The tuner of a search that begins."""
    board = board_name(run)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=run.trials,
            max_concurrent_trials=1,
            reuse_actors=True,
            search_alg=Proposals(
                space={name: distribution(searched) for name, searched in space.parameters.items()},
                metric="score",
                mode="max",
                points_to_evaluate=[dict(setting) for setting in space.first],
                sampler=optuna.samplers.TPESampler(seed=run.seed, n_startup_trials=STARTUP_TRIALS),
            ),
            scheduler=Verdicts(
                board,
                memory=f"{storage}/verdicts.json",
                judge_after=space.judge_after,
                time_attr="report",
                grace_period=1,
                max_t=len(report_steps),
                reduction_factor=HALVING,
                stop_last_trials=False,
            ),
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=storage,
            verbose=0,
            callbacks=[Rows(board, functools.partial(describe, layers_for=layers_for))],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )


def final_row(trial: Any, layers_for: LayersFor) -> dict[str, Any]:
    """The row of a trial after the search, with the place of what it ``saved`` last and its ``error``."""
    metrics = trial.last_result or {}
    state = {"ERROR": "failed", "TERMINATED": ended(metrics)}.get(trial.status, "interrupted")
    row = describe(trial_name(trial), trial.config, metrics, state, layers_for)
    error = cause(trial) if state == "failed" else None
    return {**row, "saved": metrics.get("saved"), "error": error}


def cause(trial: Any) -> str:
    """The innermost line of a failed trial's error, which came through several processes."""
    lines = [line.strip() for line in str(trial.get_error()).splitlines() if line.strip()]
    return lines[-1] if lines else "an error without a message"


@dataclass(frozen=True)
class Choice:
    """The chosen trial and why."""

    k: int
    trial: str
    score: float
    best_k: int
    best_score: float
    threshold: float
    reason: str


def choose(rows: Sequence[Mapping[str, Any]]) -> Choice:
    """The smallest k whose best score lies within one standard error of the best (the 1-SE rule).

    Only finished trials count, since others saw fewer tokens. The standard error is the best
    trial's, over validation blocks, paired with the untouched backbone. An added layer costs
    inference time for ever, so a larger k must earn it. Raises :class:`UserError` without a finished trial.
    """
    if all(row["state"] == "failed" for row in rows):
        raise UserError(f"all {len(rows)} trials failed; the first with: {rows[0].get('error')}")
    finished = [row for row in rows if row["state"] == "finished" and math.isfinite(row["score"])]
    if not finished:
        raise UserError("no trial was trained to its end, so there is no k to choose: run more trials")
    per_k: dict[int, Mapping[str, Any]] = {}
    for row in finished:
        if row["k"] not in per_k or row["score"] > per_k[row["k"]]["score"]:
            per_k[row["k"]] = row
    best = max(per_k.values(), key=lambda row: (row["score"], -row["k"]))
    error = best["score_se"] if math.isfinite(best["score_se"]) else 0.0
    threshold = best["score"] - error
    chosen = per_k[min(k for k, row in per_k.items() if row["score"] >= threshold)]
    if chosen is best:
        reason = (
            f"k = {best['k']} has the best score, {best['score']:.2f} ± {error:.2f}, and no smaller k that "
            f"was trained to its end comes within one standard error of it."
        )
    else:
        reason = (
            f"k = {chosen['k']} scores {chosen['score']:.2f}, within one standard error ({error:.2f}) of the "
            f"best, {best['score']:.2f} at k = {best['k']}, and it adds fewer layers."
        )
    return Choice(chosen["k"], chosen["trial"], chosen["score"], best["k"], best["score"], threshold, reason)


def training_of(row: Mapping[str, Any], base: TrainingSpec) -> TrainingSpec:
    """The training specification of a trial's row (whose ``layers`` are the placed ones)."""
    return overlay(base, {name: row[name] for name in SEARCHABLE if name in row})
