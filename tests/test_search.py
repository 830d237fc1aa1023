"""Choosing k, proposing trials and stopping them, without a cluster: what Ray and Optuna are told."""

import math
import pickle
import tempfile
import traceback
from contextlib import nullcontext
from types import SimpleNamespace

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from adept_ray import search
from adept_ray.config import Range, ScoreWeights, SearchRun, SearchSpace, TrainingSpec, UserError, overlay
from adept_ray.crew import TaskFailed, out_of_memory
from adept_ray.importance import LayerImportance
from adept_ray.placement import placed
from adept_ray.search import Proposals, Rows, Verdicts, check_space, choose, describe, distribution, final_row
from adept_ray.train import TrainJob

SPACE = {
    "k": Range(int=(0, 6)),
    "base_lr": Range(log=(0.001, 0.01)),
    "warmup": Range(float=(0.0, 0.5)),
    "normalization": Range(choice=("rank", "none")),
    "clip": Range(fixed=1.0),
}
IMPORTANCE = LayerImportance((0.3, 0.1, 0.2, 0.5, 0.4, 0.6), (0.01,) * 6, 3.0)


def layers_for(config):
    return placed(IMPORTANCE, overlay(TrainingSpec(), config), seed=0)


# --- choosing k -----------------------------------------------------------------------------------


def row(k, score, error=1.0, state="finished", trial=None):
    return {"trial": trial or f"trial of {k}", "k": k, "score": score, "score_se": error, "state": state}


def test_the_smallest_k_within_one_standard_error():
    """Of the k whose best score reaches the best minus its standard error, the smallest is taken."""
    rows = [
        row(1, 7.9),
        row(2, 9.1),
        row(2, 3.0),
        row(4, 8.0),
        row(6, 10.0, error=1.0),
        row(6, 9.95, error=5.0),
    ]
    found = choose(rows)
    assert (found.k, found.score, found.best_k, found.best_score) == (2, 9.1, 6, 10.0)
    assert found.threshold == 9.0
    assert all(part in found.reason for part in ("k = 2", "9.10", "1.00", "10.00", "k = 6"))


rows_of_trials = st.lists(
    st.builds(
        row,
        st.integers(0, 5),
        st.integers(-8, 8).map(float) | st.just(math.nan),
        st.floats(0, 5) | st.just(math.nan),
        st.sampled_from(["finished", "finished", "stopped", "failed"]),
    ),
    min_size=1,
)


@given(rows_of_trials)
def test_the_choice_can_be_justified(rows):
    """What is chosen was finished, comes within the error of the best, and no smaller k does."""
    able = [r for r in rows if r["state"] == "finished" and not math.isnan(r["score"])]
    if not able:
        failed = all(r["state"] == "failed" for r in rows)
        with pytest.raises(UserError, match="trials failed" if failed else "no trial was trained to its end"):
            choose(rows)
        return
    found = choose(rows)
    best = max(r["score"] for r in able)
    errors = [r["score_se"] for r in able if r["score"] == best]
    assert best - max((e for e in errors if e == e), default=0) <= found.threshold <= best == found.best_score
    assert found.k == min(r["k"] for r in able if r["score"] >= found.threshold)
    assert any((found.trial, found.score) == (r["trial"], r["score"]) for r in able)


def test_trials_that_did_not_finish_do_not_count():
    """A stopped, failed or interrupted trial saw fewer tokens, so its score is not compared."""
    rows = [row(1, 50.0, state=state) for state in ("stopped", "failed", "interrupted")]
    assert choose([*rows, row(5, 1.0)]).k == 5
    assert choose([*rows, row(1, -40.0, error=0.5), row(5, 1.0, error=0.5)]).k == 5
    with pytest.raises(UserError, match="run more trials"):
        choose(rows)


def test_among_equals_the_smaller_k_is_the_best():
    """A tie goes to fewer layers, also when no error could be measured."""
    for error in (0.0, math.nan):
        found = choose([row(4, 2.0, error), row(3, 2.0, error), row(5, 2.0, error)])
        assert (found.k, found.best_k, found.threshold) == (3, 3, 2.0)


# --- the space ------------------------------------------------------------------------------------


def test_k_beyond_the_backbone_is_refused():
    """The message names the k asked for and the number of layers, for ranges, choices and first trials."""
    for k in (Range(int=(1, 7)), Range(choice=(2, 7)), Range(fixed=7)):
        with pytest.raises(UserError, match=r"k is 7: .* layers, 6"):
            check_space(SearchSpace(parameters={"k": k}), 6, TrainingSpec())
    check_space(SearchSpace(parameters={"k": Range(int=(0, 6))}, first=({"k": 6},)), 6, TrainingSpec())
    both = {"k": Range(int=(0, 3)), "placement": Range(choice=("guided", "stratified"))}
    deepest, ranks = check_space(SearchSpace(parameters={"k": Range(int=(0, 3))}), 6, TrainingSpec(offset=1))
    assert (deepest.k, deepest.offset, ranks) == (3, 1, 4)
    assert check_space(SearchSpace(parameters=both), 6, TrainingSpec())[1] == 6


@pytest.mark.parametrize("name", SPACE)
def test_both_ends_of_a_range_are_proposed(name):
    """A range covers its ends and nothing outside; every choice can come up."""
    searched, found = SPACE[name], distribution(SPACE[name])
    for value in searched.values:
        assert found._contains(found.to_internal_repr(value))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = [study.ask({name: found}).params[name] for _ in range(60)]
    assert all(value in searched for value in values)
    if searched.kind in ("int", "choice", "fixed"):
        assert set(values) == (set(range(7)) if name == "k" else set(searched.values))
    else:
        low, high = searched.values
        middle = math.sqrt(low * high) if searched.kind == "log" else (low + high) / 2
        assert 15 < sum(value < middle for value in values) < 45  # uniform on the scale asked for


# --- proposals ------------------------------------------------------------------------------------


def proposals(seed=0, first=()):
    return Proposals(
        space={name: distribution(searched) for name, searched in SPACE.items()},
        metric="score",
        mode="max",
        points_to_evaluate=[dict(setting) for setting in first],
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=2),
    )


def run(algorithm, numbers):
    """Propose trials one after the other, each scored by its settings; every third is stopped early."""
    settings = []
    for number in numbers:
        name = f"t{number}"
        settings.append(algorithm.suggest(name))
        score = settings[-1]["k"] - 100 * settings[-1]["base_lr"]
        result = {"score": score, "report": 1, "complete": number % 3 != 2}
        algorithm.on_trial_result(name, result)
        algorithm.on_trial_complete(name, result)
    return settings


def test_same_seed_same_proposals():
    """The seed decides what is proposed, beyond the random start too; another seed proposes otherwise."""
    assert run(proposals(), range(8)) == run(proposals(), range(8))
    assert run(proposals(1), range(8)) != run(proposals(), range(8))


def test_first_settings_come_first():
    """The settings of the file are tried before the sampler's own, as they are written."""
    first = [{"k": k, "base_lr": 0.002, "warmup": 0.0, "normalization": "none", "clip": 1.0} for k in (6, 0)]
    assert run(proposals(first=first), range(3))[:2] == first


def test_a_restored_search_goes_on_with_the_same_proposals(tmp_path):
    """Saved half-way and restored into a new process's object, it proposes what it would have proposed."""
    straight = run(proposals(), range(8))
    half = proposals()
    assert run(half, range(4)) == straight[:4]
    half.save(str(tmp_path / "state"))
    restored = proposals(seed=5)
    restored.restore(str(tmp_path / "state"))
    assert run(restored, range(4, 8)) == straight[4:]


def test_optuna_hears_how_each_trial_ended():
    """A complete trial has its score, a stopped one is pruned with the value it reached, an error fails."""
    algorithm = proposals()
    reports = {
        "whole": ([1.0, 2.0], True, False),
        "stopped": ([3.0], False, False),
        "broken": ([4.0], False, True),
        "silent": ([], False, True),
    }
    for name, (scores, complete, error) in reports.items():
        algorithm.suggest(name)
        results = [{"score": s, "report": i + 1, "complete": False} for i, s in enumerate(scores)]
        for result in results:
            algorithm.on_trial_result(name, result)
        last = {**results[-1], "complete": complete} if results else None
        algorithm.on_trial_complete(name, None if error else last, error)
    told = [(t.state, t.value) for t in algorithm._ot_study.get_trials()]
    assert told[:2] == [(TrialState.COMPLETE, 2.0), (TrialState.PRUNED, 3.0)]
    assert [state for state, _ in told[2:]] == [TrialState.FAIL, TrialState.FAIL]


# --- verdicts and rows ----------------------------------------------------------------------------


@pytest.fixture
def board(monkeypatch):
    """A stand-in for the actor: what was posted to it, by method."""
    posted = {"decide": [], "note": []}

    def method(name):
        return SimpleNamespace(remote=lambda *args: posted[name].append(args))

    actor = SimpleNamespace(decide=method("decide"), note=method("note"))
    monkeypatch.setattr(search.ray, "get_actor", lambda name: {"board x": actor}[name])
    return posted


def fake_trial(number, **fields):
    values = {"config": {"k": 2, "base_lr": 0.01}, "last_result": None, "status": "RUNNING"}
    return SimpleNamespace(trial_id=f"id{number}", experiment_tag=f"{number}_k=2", **values | fields)


def new_scheduler(folder, reports=3, judge_after=1):
    """A scheduler as a search has it, with its memory in `folder`."""
    asha = {"metric": "score", "mode": "max", "time_attr": "report", "max_t": reports, "reduction_factor": 2}
    return Verdicts("board x", f"{folder}/verdicts.json", judge_after, stop_last_trials=False, **asha)


def test_no_trial_is_stopped_before_enough_others_came_as_far(board, tmp_path):
    """With judge_after 3 the second and third go on however bad; the fourth is judged."""
    scheduler = new_scheduler(tmp_path, judge_after=3)
    for number, score in enumerate([5.0, 1.0, 2.0, 1.5], 1):
        scheduler.on_trial_add(None, fake_trial(number))
        scheduler.on_trial_result(None, fake_trial(number), {"score": score, "score_se": 0.5, "report": 1})
    assert [stop for _, _, stop in board["decide"]] == [False, False, False, True]


def test_a_trial_that_may_still_be_chosen_is_not_stopped(board, tmp_path):
    """Within one standard error of the best at the same report it goes on, though it is in the worse half."""
    scheduler = new_scheduler(tmp_path)
    for number, (score, error) in enumerate([(9.0, 3.0), (10.0, 1.0), (9.1, 1.0), (8.9, 5.0)], 1):
        scheduler.on_trial_add(None, fake_trial(number))
        report = {"score": score, "score_se": error, "report": 1}
        scheduler.on_trial_result(None, fake_trial(number), report)
    assert [stop for _, _, stop in board["decide"]] == [False, False, False, True]


def test_a_restored_scheduler_judges_as_the_lost_one(board, tmp_path):
    """Tune restores a scheduler as it was at the start: scores and verdicts come back from its memory."""
    lost = new_scheduler(tmp_path)
    beginning = pickle.dumps(lost)
    for number, score in enumerate([5.0, 1.0], 1):
        lost.on_trial_add(None, fake_trial(number))
        lost.on_trial_result(None, fake_trial(number), {"score": score, "score_se": 0.5, "report": 1})
    restored = pickle.loads(beginning)
    for number in (2, 3):
        restored.on_trial_add(None, fake_trial(number))
    restored.on_trial_result(
        None, fake_trial(2), {"score": 9.0, "score_se": 0.5, "report": 1}
    )  # said before: judged before
    restored.on_trial_result(
        None, fake_trial(3), {"score": 2.0, "score_se": 0.5, "report": 1}
    )  # worse than trial 1's 5.0
    assert board["decide"][1:] == [("trial-002", 1, True), ("trial-002", 1, True), ("trial-003", 1, True)]


def judged(board, scores, reports=3):
    """Run trials of these scores one after the other, each until it is stopped; trial → its verdicts."""
    with tempfile.TemporaryDirectory() as folder:
        scheduler = new_scheduler(folder, reports)
        for number, score in enumerate(scores, 1):
            trial = fake_trial(number)
            scheduler.on_trial_add(None, trial)
            for report in range(1, reports + 1):
                result = {"score": score, "score_se": 0.0, "report": report}
                assert scheduler.on_trial_result(None, trial, result) == Verdicts.CONTINUE
                if board["decide"][-1][2]:
                    break
            scheduler.on_trial_complete(None, trial, result)
    verdicts = {}
    for name, report, stop in board["decide"]:
        verdicts.setdefault(name, []).append((report, stop))
    return verdicts


def test_the_worst_trial_is_told_to_stop(board):
    """Tune is always told to go on; the trial behind the others gets its verdict through the board."""
    verdicts = judged(board, [5.0, 7.0, 8.0, 1.0, 9.0])
    assert verdicts["trial-004"] == [(1, True)]
    for name in ("trial-001", "trial-002", "trial-003", "trial-005"):
        assert verdicts[name] == [(1, False), (2, False), (3, False)]


@settings(max_examples=30)  # each writes the scheduler's memory many times
@pytest.mark.filterwarnings("ignore:All-NaN slice")
@given(scores=st.lists(st.integers(-5, 5).map(float) | st.just(math.nan), min_size=1, max_size=8))
def test_every_report_gets_one_verdict_and_the_best_go_on(scores):
    """Workers wait for a verdict on each report: none is missing; a trial that nothing beats goes on."""
    posted = {"decide": [], "note": []}
    actor = SimpleNamespace(decide=SimpleNamespace(remote=lambda *args: posted["decide"].append(args)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.ray, "get_actor", lambda name: actor)
        verdicts = judged(posted, scores)
    for found in verdicts.values():
        assert [report for report, _ in found] == list(range(1, len(found) + 1))
    best = -math.inf
    for score, found in zip(scores, verdicts.values(), strict=True):
        if not score < best:
            assert not any(stop for _, stop in found) and len(found) == 3
            best = max(best, score) if score == score else best


def test_rows_follow_a_trial_from_start_to_end(board):
    """The board hears a trial's row when it starts, reports and ends; a stopped one isn't called finished."""
    rows = Rows("board x", lambda *args: describe(*args, layers_for=layers_for))
    trial = fake_trial(7)
    rows.on_trial_start(0, [], trial)
    rows.on_trial_result(0, [], trial, {"score": 2.5, "complete": False})
    for complete in (False, True):
        trial.last_result = {"score": 3.5, "complete": complete}
        rows.on_trial_complete(0, [], trial)
    rows.on_trial_error(0, [], trial)
    found = [row for (row,) in board["note"]]
    assert [(row["state"], row["score"]) for row in found] == [
        ("running", None), ("running", 2.5), ("stopped", 3.5), ("finished", 3.5), ("failed", 3.5)
    ]  # fmt: skip
    assert {(row["trial"], row["k"], row["layers"], row["base_lr"]) for row in found} == {
        ("trial-007", 2, "1 2", 0.01)
    }


def test_final_states_say_how_trials_ended():
    """Only a trial that reached its last step is finished; one that Tune left running was interrupted."""
    complete, partly = {"complete": True, "score": 1.0, "saved": "c"}, {"complete": False}
    ends = [
        ("TERMINATED", complete),
        ("TERMINATED", partly),
        ("ERROR", partly),
        ("RUNNING", partly),
        ("PENDING", {}),
    ]
    error = RuntimeError("Traceback:\n  some/file.py\nFloatingPointError: the loss is nan at step 2 of 6\n")
    trials = [fake_trial(1, status=s, last_result=m, get_error=lambda: error) for s, m in ends]
    rows = [final_row(trial, layers_for) for trial in trials]
    assert [row["state"] for row in rows] == ["finished", "stopped", "failed", "interrupted", "interrupted"]
    assert [row["saved"] for row in rows[:2]] == ["c", None]
    assert [row["error"] for row in rows[1:3]] == [None, "FloatingPointError: the loss is nan at step 2 of 6"]


def test_when_every_trial_failed_the_first_reason_is_given():
    """The sentence counts the trials and quotes the innermost line of the first error."""
    rows = [{**row(k, math.nan, state="failed"), "error": f"reason {k}"} for k in (2, 3)]
    with pytest.raises(UserError, match="all 2 trials failed; the first with: reason 2"):
        choose(rows)


def test_a_row_gives_back_its_training():
    """The settings of a row make the specification it was trained with, at the search's token budget."""
    base = TrainingSpec(tokens=999)
    row = describe("trial-001", {"k": 2, "base_lr": 0.004}, {"tokens": 500}, "finished", layers_for)
    assert search.training_of(row, base) == base.model_copy(update={"k": 2, "base_lr": 0.004})


def test_a_memory_that_is_too_small_is_told_from_other_errors():
    """By what torch really says, on a CPU and on a GPU."""
    for raised, expected in (
        (lambda: torch.empty(10**15), True),
        (lambda: exec("raise torch.OutOfMemoryError('CUDA out of memory')", {"torch": torch}), True),
        (lambda: torch.zeros(2, 3) @ torch.zeros(2, 3), False),
    ):
        with pytest.raises(RuntimeError) as problem:
            raised()
        assert out_of_memory("".join(traceback.format_exception(problem.value))) == expected


def test_what_ran_out_of_memory_is_not_tried_larger(monkeypatch):
    """The trial fails alone; the same k and larger ones fail at once, smaller ones are trained."""
    begun = []

    def train(board, task):
        begun.append(task.job.training.k)
        if task.job.training.k >= 5:
            raise TaskFailed("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
        yield {"score": 1.0}

    board = BoardHere()
    monkeypatch.setattr(search, "reports", train)
    monkeypatch.setattr(search.ray, "get_actor", lambda _: board)
    monkeypatch.setattr(search.ray, "get", lambda value: value)
    monkeypatch.setattr(search.tune, "get_context", lambda: SimpleNamespace(get_trial_name=lambda: "trial"))
    monkeypatch.setattr(search.tune, "report", lambda _: None)
    layers = LayerImportance(tuple(map(float, range(8))), (0.0,) * 8, 1.0)
    job = TrainJob("", None, TrainingSpec(), (), {}, {}, ScoreWeights(), 8, 1, 0)
    for k, words in (
        (5, "Tried to allocate"),
        (6, "k = 6 was not tried: .* at k = 5$"),
        (4, None),
        (5, "not tried"),
    ):
        with pytest.raises(TaskFailed, match=words) if words else nullcontext():
            search.trial({"k": k}, SearchRun(name="x"), job, layers, (None,), "")
    assert begun == [5, 4]


class BoardHere:
    """The board's word on memory, in this process."""

    def __init__(self):
        self.limit = SimpleNamespace(remote=lambda: self.least)
        self.exceeded = SimpleNamespace(remote=lambda k: setattr(self, "least", k))
        self.least = None
