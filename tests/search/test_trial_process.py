"""A trial's process: it passes on what the crew says, knows what was too large, and is light."""

import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from adept_ray.config.specs import TrainingSpec
from adept_ray.engine.job import JobFailed
from adept_ray.search import trial_process
from adept_ray.search.trial_process import TrialErrand

CONTEXT = SimpleNamespace(get_trial_name=lambda: "trial")  # as Tune gives it


def make_errand(price=None):
    return TrialErrand("a run", "storage", TrainingSpec(), b"", 8, price or 0.0)


@pytest.mark.slow
def test_a_trials_process_loads_neither_torch_nor_optuna():
    """It is started for each trial that dies, and waits for workers who have them."""
    check = "import sys; sys.exit(bool({'torch', 'optuna', 'transformers'} & set(sys.modules)))"
    command = [sys.executable, "-c", f"import {trial_process.__name__}; {check}"]
    assert subprocess.run(command).returncode == 0


def test_what_ran_out_of_memory_is_not_tried_larger(monkeypatch):
    """The trial fails alone; the same k and larger ones fail at once, smaller ones are trained."""
    begun, errand = [], make_errand()

    def train(board, job):
        begun.append(job.work.setting["k"])
        if job.work.setting["k"] >= 5:
            raise JobFailed("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
        yield {"score": 1.0}

    board = BoardHere()
    monkeypatch.setattr(trial_process, "follow_job", train)
    monkeypatch.setattr(trial_process, "find_board", lambda run: board)
    monkeypatch.setattr(
        trial_process.tune, "get_context", lambda: SimpleNamespace(get_trial_name=lambda: "trial")
    )
    monkeypatch.setattr(trial_process.tune, "report", lambda _: None)
    for k, words in (
        (5, "Tried to allocate"),
        (6, "k = 6 was not tried: .* at k = 5$"),
        (4, None),
        (5, "not tried"),
    ):
        with pytest.raises(JobFailed, match=words) if words else nullcontext():
            trial_process.run_trial({"k": k}, errand, (None,))
    assert begun == [5, 4]


class BoardHere:
    """The board's word on memory, in this process."""

    def __init__(self):
        self.least = None

    def read_limit(self):
        return self.least

    def lower_limit(self, k):
        self.least = k


def test_a_search_wants_what_its_layers_cost_to_be_earned(monkeypatch):
    """With a price on layers Tune and Optuna hear the score less that, and nothing of the score changes."""
    heard, board = [], BoardHere()
    said = {"score": 9.0, "report": 1}
    monkeypatch.setattr(trial_process, "follow_job", lambda board, job: iter([said]))
    monkeypatch.setattr(trial_process, "find_board", lambda run: board)
    monkeypatch.setattr(
        trial_process.tune, "get_context", lambda: SimpleNamespace(get_trial_name=lambda: "trial")
    )
    monkeypatch.setattr(trial_process.tune, "report", heard.append)
    for price in (None, 1.5):
        trial_process.run_trial({"k": 4}, make_errand(price), (None,))
    assert heard == [{**said, "worth": 9.0}, {**said, "worth": 3.0}]
