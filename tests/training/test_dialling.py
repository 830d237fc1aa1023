"""Readings at the dial that scores best: what is read, what counts, what a later choice is told."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import one_document_each
from trainings import Run, changed

from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.search.rescoring import rescore
from adept_ray.search.trials import describe_trial
from adept_ray.storage.files import format_json
from adept_ray.training import dialling
from adept_ray.training.dialling import score_reading, take_dialled_reading
from adept_ray.training.work import DialText, TrainWork, dial_key

DOCUMENTS = 10
TEXT = {side: one_document_each(np.full((DOCUMENTS, 4), 5)) for side in ("general", "domain")}
BEFORE = {side: [10.0] * DOCUMENTS for side in TEXT}
CURVES = {"general": lambda dial: 4 * dial - 8 * dial**2, "domain": lambda dial: 12 * dial}  # percent gained


class FakeTuning:
    """A tuning whose held-out losses follow CURVES; it keeps at which dials it was read on which text."""

    def __init__(self, monkeypatch, parameters=("a weight",)):
        self.parameters = parameters
        self.model = self
        self.read = []
        monkeypatch.setattr(dialling, "measure_held_out", lambda _, work, blocks: self._measure(blocks))

    @contextmanager
    def use_exported_weights(self, dial=1.0):
        self._dial = dial
        yield
        del self._dial

    def _measure(self, blocks):
        self.read.append((self._dial, "found on" if blocks["general"] is TEXT["general"] else "judged by"))
        return {side: np.array(BEFORE[side]) * (1 - CURVES[side](self._dial) / 100) for side in CURVES}


def make_work(dial, **fields):
    spec = TrainingSpec(k=1, dial=dial)
    known = {"backbone": None, "layers": (0,), "units": {}, "seq_len": 4, "micro_batch": 2, "seed": 0}
    return TrainWork(**known, training=spec, before=BEFORE, weights=ScoreWeights(), **fields)


@pytest.mark.parametrize("ends", [False, True])
def test_a_score_that_rises_up_to_what_was_trained_takes_two_passes(monkeypatch, ends):
    """8λ - 4λ² is highest at 1: it is read half-way to see that, and no further where a training ends."""
    tuning = FakeTuning(monkeypatch)
    reading = take_dialled_reading(tuning, make_work("auto"), TEXT, ends)
    assert [dial for dial, _ in tuning.read] == [1.0, 0.5]
    assert reading.dial == 1.0 and reading.measured["domain"] == pytest.approx(reading.plain["domain"])


def test_the_end_of_a_training_finds_the_top(monkeypatch):
    """With weights that make general text dear the top lies half-way, and what is there counts."""
    tuning = FakeTuning(monkeypatch)
    work = make_work("auto")
    work = TrainWork(**{**vars(work), "weights": ScoreWeights(general=0.75, domain=0.25)})
    reading = take_dialled_reading(tuning, work, TEXT, ends=True)
    # 0.75 (4λ - 8λ²) + 0.25 · 12λ = 6λ - 6λ²
    assert [dial for dial, _ in tuning.read] == [1.0, 0.5] and reading.dial == 0.5
    metrics = score_reading(reading, work, TEXT, ends=True)
    assert metrics["score"] == pytest.approx(1.5) and metrics["plain_score"] == pytest.approx(0.0)
    assert metrics["general_delta"] == pytest.approx(0.0) and metrics["plain_general_delta"] == pytest.approx(
        -4
    )


def test_a_top_between_is_read_in_a_third_pass(monkeypatch):
    """Only where the training ends."""
    monkeypatch.setitem(CURVES, "domain", lambda dial: 5 * dial)
    for ends, dials in ((False, [1.0, 0.5]), (True, [1.0, 0.5, 0.562])):  # 4.5λ - 4λ², highest at 0.5625
        tuning = FakeTuning(monkeypatch)
        reading = take_dialled_reading(tuning, make_work("auto"), TEXT, ends)
        assert [dial for dial, _ in tuning.read] == dials and reading.dial == dials[-1]


@pytest.mark.parametrize(("dial", "read"), [("off", 1.0), (1.0, 1.0), (0.3, 0.3), (0.0, 0.0)])
def test_a_given_dial_is_read_once(monkeypatch, dial, read):
    """Nothing is looked for, and a later choice is told nothing."""
    tuning = FakeTuning(monkeypatch)
    work = make_work(dial)
    reading = take_dialled_reading(tuning, work, TEXT, ends=True)
    assert tuning.read == [(read, "found on")] and reading.dial == read
    metrics = score_reading(reading, work, TEXT, ends=True)
    assert metrics["turned"] is None and (metrics["plain_score"] is None) is (read != 1.0)


def test_where_nothing_was_trained_nothing_is_turned(monkeypatch):
    """Whatever dial was asked for: one pass, dial 1."""
    tuning = FakeTuning(monkeypatch, parameters=())
    assert take_dialled_reading(tuning, make_work(0.3), TEXT, ends=True).dial == 1.0
    assert len(tuning.read) == 1


def test_a_dial_found_on_other_text_is_judged_where_it_was_not(monkeypatch):
    """A comparison's tests: passes that find it see validation text alone, two then see the test's."""
    tuning = FakeTuning(monkeypatch)
    work = make_work("auto", dial_text=DialText(BEFORE))
    work = TrainWork(**{**vars(work), "weights": ScoreWeights(general=0.75, domain=0.25)})
    judged = {side: one_document_each(np.full((DOCUMENTS, 4), 6)) for side in TEXT}
    blocks = judged | {dial_key(side): TEXT[side] for side in TEXT}
    reading = take_dialled_reading(tuning, work, blocks, ends=True)
    assert reading.dial == 0.5
    assert tuning.read == [(1.0, "found on"), (0.5, "found on"), (1.0, "judged by"), (0.5, "judged by")]


def test_a_training_reports_what_a_choice_by_other_weights_needs(work, tmp_path):
    """A real one: rescored by its own weights a trial is what was reported, or what it was as trained."""
    run = Run(tmp_path, changed(work, reports=2))
    first, last = run.metrics
    assert first["turned"] is None and {turn["dial"] for turn in last["turned"]["turns"]} >= {0.5, 1.0}
    facts = json.loads(format_json(last))
    trial = describe_trial("trial-001", {"k": 2}, facts, "finished", work.layers)
    (same,) = rescore([trial], work.weights)
    for name in ("score", "score_se", "general_delta", "domain_delta", "dial", "plain_score"):
        assert getattr(same, name) == pytest.approx(last[name]), name
    (plain,) = rescore([trial], work.weights, dialled=False)
    assert plain.dial == 1.0 and plain.score == pytest.approx(last["plain_score"])


def test_ranks_go_by_the_answers_of_the_first(monkeypatch):
    """Where each has all of a model's answers, another rank's own don't count: all read the same dials."""
    from adept_ray.data import benchmark_tasks

    item = SimpleNamespace(numbers={"task": [0, 1]})
    sample = {"filter": "none", "doc_id": 0, "acc": 1.0}
    model = SimpleNamespace(
        training=False, train=lambda mode: None, parameters=lambda: iter([torch.zeros(1)])
    )
    for name, instead in {
        "is_sharded": lambda model: True,
        "rank": lambda: 1,
        "ask_model": lambda *_: {"task": [sample]},
        "metric_of": lambda samples: "acc",
        "sum_over_ranks": lambda values, device: values,
    }.items():
        monkeypatch.setattr(benchmark_tasks, name, instead)
    assert benchmark_tasks.answer_items(model, None, item, 1).tolist() == [0.0, 0.0]
