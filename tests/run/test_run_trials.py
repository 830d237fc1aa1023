"""The trials of a search: how many are to come, and what is written and deleted as they end."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from adept_ray.config.specs import ScoreWeights, SearchRun, TrainingSpec
from adept_ray.data.loading import Backbone
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.run.context import Context
from adept_ray.run.trials import count_trials_left, fit_work
from adept_ray.search import upkeep
from adept_ray.search.trials import Trial
from adept_ray.search.upkeep import TrialFiles
from adept_ray.storage.results import Results
from adept_ray.training.work import TrainWork


@pytest.mark.parametrize(
    ("settings", "over", "crews", "each"),
    [
        ({}, None, 1, 8),
        ({"concurrent": "auto"}, None, 5, 2),
        ({"resume": True}, 6, 1, 2),
        ({"strategy": "grow"}, None, 1, 1),
    ],
)
def test_what_is_over_is_not_to_come(tmp_path, display, settings, over, crews, each):
    """Each of the crews that there really are has its share of the others."""
    results = Results(str(tmp_path), "x")
    if over:
        rows = [{"state": state} for state in ("untouched", *["finished"] * over)]
        results.write_json("trials.json", {"trials": rows})
    board = SimpleNamespace(count_crews=lambda: crews)
    run = SearchRun(name="x", **settings)
    assert count_trials_left(Context(run, results, display, board, 0)) == each


def test_room_on_the_real_layers_is_said(monkeypatch, display):
    """Once they are known a plan may change, and only then is there a word of it."""
    fit = Fit(recompute=True)
    work = TrainWork(Backbone("", ""), TrainingSpec(k=1), (3,), {}, {}, ScoreWeights(), 8, 1, 0, fit=fit)
    context = Context(SearchRun(), SimpleNamespace(), display, "board", 0)
    for fitted, lines in ((work, 0), (replace(work, fit=PLAIN), 1)):
        monkeypatch.setattr(Context, "fit_to_layers", lambda *_, fitted=fitted: fitted)
        assert fit_work(context, work) is fitted and len(display.lines) == lines
    assert display.lines[0].startswith("k = 1 on layers 3 leaves room for its activations")


def row(number, state="finished"):
    """What the table says of a trial."""
    saved = None if state == "running" else f"at-{number}"
    return Trial(f"trial-{number}", 1, state=state, saved=saved).as_row()


@pytest.fixture
def files(monkeypatch):
    """The files of a search, the tables that were written, and whose weights were looked at to be deleted.

    The weights of every trial but the last are deleted.
    """
    written, looked_at = [], []

    def delete_checkpoints(trials, weights, pareto):
        looked_at.append([trial.saved for trial in trials])
        return [trial.saved for trial in trials][:-1]

    monkeypatch.setattr(upkeep, "write_trials", lambda _, trials, weights: written.append([*trials]))
    monkeypatch.setattr(upkeep, "delete_checkpoints", delete_checkpoints)
    space = SimpleNamespace(weights="weights")
    return TrialFiles(None, space, False, Trial("untouched", 0)), written, looked_at


def test_the_table_is_written_when_a_trial_ends_and_only_then(files):
    """The untouched backbone goes first, and a trial that runs isn't in it."""
    files, written, _ = files
    files.update([row(1, "running")])
    files.update([row(1), row(2, "running")])
    files.update([row(1), row(2, "running"), row(3, "running")])
    files.update([row(1), row(2, "failed"), row(3, "running")])
    names = [[trial.name for trial in trials] for trials in written]
    assert names == [["untouched", "trial-1"], ["untouched", "trial-1", "trial-2"]]


def test_weights_are_deleted_once(files):
    """Those that are gone are not looked for again, and the table still holds their trials."""
    files, written, looked_at = files
    one, two, three = (Trial.from_row(row(number)) for number in (1, 2, 3))
    files.write([one, two])
    files.write([one, two, three])
    assert looked_at == [["at-1", "at-2"], ["at-2", "at-3"]]
    assert len(written[-1]) == 4
