"""The search for k: Ray Tune runs trials of stage 2, and stops those without hope."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from pyarrow import fs
from ray import cloudpickle, tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from adept_ray.config.errors import UnfinishedRun, find_cause
from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import ScoreWeights, SearchRun
from adept_ray.config.validation import apply_changes
from adept_ray.engine.client import find_board, follow_job
from adept_ray.engine.job import DiskFull, Job, JobFailed, is_out_of_memory
from adept_ray.method.anatomy import layer_of
from adept_ray.method.importance import LayerImportance
from adept_ray.method.placement import resolve_layers
from adept_ray.method.scores import SIDES, difference_error
from adept_ray.search.study import Proposals, Sampler, SearchClock, open_study, propose_setting, quiet_optuna
from adept_ray.search.trials import LayersFor, describe_trial, final_state, title_trial
from adept_ray.storage.files import delete_folder, open_filesystem, read_json, store_json
from adept_ray.storage.results import TRIALS
from adept_ray.training.work import TrainWork

TRIAL_MEMORY = 2**20  # bytes that are set aside for a trial's process, which only waits
HOPELESS = 2  # paired standard errors behind the best at the same report, twice in a row
EXPERIMENT = "search"
VERDICTS = "verdicts.json"


class Verdicts(FIFOScheduler):
    """Never ends a trial itself: it posts its decision for the trial's workers to act on.

    A trial that Tune ends from outside would leave the crew at work on it; one that returns from its own
    loop leaves it free for the next. Workers wait for the verdict on each report, so
    when a trial stops doesn't depend on timing. Until `judge_after` others have come as far a trial goes
    on whatever its worth, else the first one alone would be the measure. And it is ended only if it lies
    more than two standard errors behind the best that had seen as many tokens, now and at the report before:
    no single reading ends a trial. The error is that of the difference, paired over the validation documents
    that both were scored on: what is hard for one is hard for the other. A trial that may still be
    chosen (within one such error, see :func:`~adept_ray.search.choice.choose_k`) goes on.

    Tune doesn't keep a scheduler's state, so readings and decisions are written to `memory` (a path or URI),
    and read back when a search is resumed.
    """

    def __init__(self, run: str, memory: str, judge_after: float, weights: ScoreWeights) -> None:
        super().__init__()
        self._run, self._memory, self._judge_after = run, memory, judge_after
        self._weights = weights
        self._decided: dict[str, bool] = {}  # "trial/report" → stop
        self._behind: dict[str, bool] = {}  # "trial/report" → beyond chance below the best
        self._best: dict[str, dict[str, Any]] = {}  # report → what was measured of the best so far

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report = result["report"]
        name = trial_name(trial)
        key, before = f"{name}/{report}", f"{name}/{report - 1}"
        if key not in self._decided:  # a resumed trial repeats its last report
            others = sum(seen.endswith(f"/{report}") for seen in self._decided)
            self._behind[key] = self._beyond_noise(str(report), {**pick_measures(result), "trial": name})
            hopeless = self._behind[key] and self._behind.get(before, False)
            self._decided[key] = hopeless and others >= self._judge_after
            self._remember()
        find_board(self._run).give_verdict(name, report, self._decided[key])
        return TrialScheduler.CONTINUE

    def _beyond_noise(self, report: str, found: dict[str, Any]) -> bool:
        """Whether what was measured lies beyond chance below the best one before it, of as many tokens."""
        best = self._best.get(report)
        if math.isfinite(found["worth"]) and (best is None or found["worth"] > best["worth"]):
            self._best[report] = found
        if best is None or best["tokens"] != found["tokens"]:
            return False
        behind = best["worth"] - found["worth"]
        return bool(behind > HOPELESS * difference_error(best, found, self._weights))

    def _remember(self) -> None:
        store_json(self._memory, {"decided": self._decided, "behind": self._behind, "best": self._best})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called when Tune restores a search: take up what was remembered since it was pickled."""
        self.__dict__.update(state)
        if memory := read_json(self._memory):
            self._decided, self._behind, self._best = (memory[name] for name in ("decided", "behind", "best"))


def pick_measures(result: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`~adept_ray.method.scores.difference_error` asks for, of a result that Tune has flattened."""
    names = ("worth", "score_se", "general_delta", "tokens")
    pulls = {side: result[f"pulls/{side}"] for side in SIDES if f"pulls/{side}" in result}
    return {**{name: result.get(name) for name in names}, "pulls": pulls}


class Rows(tune.Callback):
    """Posts each trial's latest row to the board."""

    def __init__(self, run: str, describe: Any) -> None:
        self._run, self._describe = run, describe

    def _post(self, trial: Any, state: str) -> None:
        row = self._describe(trial_name(trial), trial.config, trial.last_result or {}, state)
        find_board(self._run).record_row(row)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._post(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        row = self._describe(trial_name(trial), trial.config, result, "running")
        find_board(self._run).record_row(row)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._post(trial, final_state(trial.last_result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._post(trial, "failed")


def trial_name(trial: Any) -> str:
    """trial-001, trial-002, … in the order in which they were proposed."""
    return f"trial-{int(trial.experiment_tag.partition('_')[0]):03d}"


def trial_title(trial: Any) -> str:
    """``trial-007 k=4 lr=3e-4``: a trial as persons read it in Ray's dashboard and logs."""
    return title_trial(trial_name(trial), trial.config)


def run_trial(
    config: dict[str, Any],
    run: SearchRun,
    work: TrainWork,
    importance: LayerImportance,
    blocks: tuple[Any],
    storage: str,
) -> None:
    """One trial, in a process of Tune's: stage 2 on the crew, its reports passed on to Tune.

    `blocks` holds an object reference in a tuple, since Tune would fetch a bare one here.
    Raises :class:`JobFailed`, without trying, for a k at which or below which a worker ran out of memory.
    """
    training = apply_changes(work.training, config)
    board = find_board(run.name)
    limit = board.read_limit()
    if limit is not None and training.k >= limit:
        raise JobFailed(f"k = {training.k} was not tried: a worker ran out of memory at k = {limit}")
    layers = resolve_layers(importance, training, work.seed)
    work = replace(
        work,
        training=training,
        layers=layers,
        units={name: value for name, value in work.units.items() if layer_of(name) in layers},
    )
    price = run.min_gain_per_layer or 0.0  # what the search is for: the score less what its layers cost
    title = tune.get_context().get_trial_name()
    name = title.partition(" ")[0]
    try:
        for metrics in follow_job(
            board, Job(name, "train", work, blocks[0], storage, judged=True, title=title)
        ):
            tune.report({**metrics, "worth": metrics["score"] - price * training.k})
    except DiskFull as problem:
        board.close(str(problem))
        raise
    except JobFailed as problem:
        if is_out_of_memory(str(problem)):
            board.lower_limit(training.k)
        raise


def run_search(
    run: SearchRun,
    space: SearchSpace,
    work: TrainWork,
    importance: LayerImportance,
    blocks: Any,
    storage: str,
    study: str = "",
    spent: float = 0.0,
) -> list[dict[str, Any]]:
    """Run (or continue, or extend) the trials; returns one row a trial: see :func:`describe_final`.

    `work` holds what all trials share; `blocks` is an object reference; `study` names the question, so that
    searches of the same one find each other's trials in a database; `spent` are the seconds that earlier
    commands searched. Raises KeyboardInterrupt when the search was interrupted, and :class:`UnfinishedRun` when
    the crew couldn't go on.
    """
    quiet_optuna()
    trainable = tune.with_resources(
        tune.with_parameters(
            run_trial,
            run=run,
            work=work,
            importance=importance,
            blocks=(blocks,),
            storage=f"{storage}/{TRIALS}",
        ),
        {"memory": TRIAL_MEMORY},  # no share of a CPU, for want of which a worker may not fit on a node
    )

    def layers_for(config: Mapping[str, Any]) -> tuple[int, ...]:
        return resolve_layers(importance, apply_changes(work.training, config), work.seed)

    experiment = f"{storage}/{EXPERIMENT}"
    Proposals.clock = SearchClock(run.max_hours, spent)
    board = find_board(run.name)
    Proposals.too_large = staticmethod(board.read_limit)
    crews = board.count_crews()
    if run.resume and tune.Tuner.can_restore(experiment):
        earlier = read_rows(experiment, layers_for)
        forget_trials(storage, {row["trial"] for row in earlier})
        extend_search(experiment, run.trials, crews)
        for row in earlier:
            if row["state"] != "interrupted":
                Proposals.clock.took(row["seconds"] or 0.0)
                board.record_row(row)
        tuner = tune.Tuner.restore(experiment, trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = build_tuner(run, space, work, layers_for, trainable, storage, study, crews)
    tuner.fit()
    if why := board.explain_closing():
        raise UnfinishedRun(why)
    rows = read_rows(experiment, layers_for)
    interrupted = any(row["state"] == "interrupted" for row in rows)
    if interrupted or (len(rows) < run.trials and not Proposals.clock.over):
        raise KeyboardInterrupt
    return rows


def forget_trials(storage: str, known: Collection[str]) -> None:
    """Delete what other trials than the `known` ones saved, their readings and the verdicts on them.

    Tune lost them in a kill. In a study that others share it may give their names to other settings.
    """
    filesystem, path = open_filesystem(f"{storage}/{TRIALS}")
    for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        if info.base_name not in known:
            delete_folder(f"{storage}/{TRIALS}/{info.base_name}")
    if memory := read_json(f"{storage}/{VERDICTS}"):
        for said in (memory["decided"], memory["behind"]):
            for key in [key for key in said if key.partition("/")[0] not in known]:
                del said[key]
        memory["best"] = {at: best for at, best in memory["best"].items() if best["trial"] in known}
        store_json(f"{storage}/{VERDICTS}", memory)


def extend_search(experiment: str, trials: int, crews: int) -> None:
    """Let a search, ended or not, go on up to so many trials in all, one at a time for each of so many crews.

    Tune keeps both numbers with the state of its generator, and takes no others when it restores that.
    """
    filesystem, path = open_filesystem(experiment)
    for file in filesystem.get_file_info(fs.FileSelector(path)):
        if file.base_name.startswith("search_gen_state-"):
            with filesystem.open_input_file(file.path) as stream:
                state = cloudpickle.loads(stream.read())
            with filesystem.open_output_stream(file.path) as stream:
                for part in (part for part in state.values() if isinstance(part, dict)):
                    part.update({"max_concurrent": crews} if "max_concurrent" in part else {})
                stream.write(cloudpickle.dumps({**state, "total_samples": trials, "finished": False}))


def read_rows(experiment: str, layers_for: LayersFor) -> list[dict[str, Any]]:
    """The rows of the trials that Tune has records of."""
    ran = sorted(tune.ExperimentAnalysis(experiment).trials, key=trial_name)
    return [describe_final(each, layers_for) for each in ran]


def build_tuner(
    run: SearchRun,
    space: SearchSpace,
    work: TrainWork,
    layers_for: LayersFor,
    trainable: Any,
    storage: str,
    study: str,
    crews: int,
) -> tune.Tuner:
    """The tuner of a search that begins, with a trial at a time for each of so many crews.

    With ``--pareto`` no trial is stopped early: one that is poor by the weights may be the best for others.
    """
    objectives: dict[str, Any] = {"metric": "worth", "mode": "max"}
    if run.pareto:
        objectives = {"metric": ["general_delta", "domain_delta"], "mode": ["max", "max"]}
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=run.trials,
            max_concurrent_trials=crews,
            reuse_actors=True,
            search_alg=Proposals(
                owner=storage,
                weights=work.weights,
                space=functools.partial(propose_setting, space),
                points_to_evaluate=[dict(setting) for setting in space.first],
                sampler=Sampler(run.seed, several=crews > 1, owner=storage if run.study else ""),
                study_name=study,
                storage=open_study(run.study),
                **objectives,
            ),
            scheduler=Verdicts(
                run.name,
                memory=f"{storage}/{VERDICTS}",
                judge_after=math.inf if run.pareto else space.judge_after,
                weights=work.weights,
            ),
            trial_name_creator=trial_title,
            trial_dirname_creator=trial_name,
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=storage,
            verbose=0,
            callbacks=[Rows(run.name, functools.partial(describe_trial, layers_for=layers_for))],
            # A trial's process that died is started again and hears all reports; one that failed, its end.
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )


def describe_final(trial: Any, layers_for: LayersFor) -> dict[str, Any]:
    """The row of a trial after the search, with its ``error``."""
    metrics = trial.last_result or {}
    state = {"ERROR": "failed", "TERMINATED": final_state(metrics)}.get(trial.status, "interrupted")
    row = describe_trial(trial_name(trial), trial.config, metrics, state, layers_for)
    return {**row, "error": find_cause(trial.get_error()) if state == "failed" else None}
