"""A run's training: how it is made to fit, and whether its layers are compiled."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from common import tiny_model

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec
from adept_ray.data.corpora import CorpusFiles
from adept_ray.data.loading import Backbone
from adept_ray.engine.job import CrewLost, JobFailed, JobRefused
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.memory_plan import MemoryPlan
from adept_ray.run import training as training_module
from adept_ray.run.context import Context
from adept_ray.run.host_memory import Host, Hosts
from adept_ray.run.sources import Sources
from adept_ray.run.training import choose_compiling, describe_side, plan_fit
from adept_ray.training.work import TrainWork

GIB = 2**30
SOURCES = Sources(Backbone("", ""), tiny_model().config, CorpusFiles(Path(), "", "", ""), None)


def at_work(display, memory=GIB, **settings):
    """The context of a run with those settings and so much memory a worker."""
    return Context(RunSpec(**settings), SimpleNamespace(), display, "board", memory)


@pytest.mark.slow
def test_a_plan_decides_about_activations(display):
    """Plenty of memory keeps them, too little is refused."""
    spec = TrainingSpec(k=2)
    assert not plan_fit(at_work(display), SOURCES, spec).recompute
    assert plan_fit(at_work(display, activation_checkpointing="on"), SOURCES, spec).recompute
    with pytest.raises(UserError, match="k = 2 with --micro-batch 8 takes"):
        plan_fit(at_work(display, 1000), SOURCES, spec)
    assert display.lines == ["k = 2", "k = 2"]


def test_only_copies_may_keep_what_enters_them(display, monkeypatch):
    """Other methods train the lowest layer, or change the layers themselves."""
    monkeypatch.setattr(training_module, "plan_memory", lambda *_: MemoryPlan(*(0,) * 13))
    for tunes, keeps in (("copies", True), ("all", False), ("lora", False), ("originals", False)):
        fit = plan_fit(at_work(display), SOURCES, TrainingSpec(k=1, tunes=tunes))
        assert (fit.stream_bytes > 0) == keeps
    assert plan_fit(at_work(display, gpus_per_worker=1), SOURCES, TrainingSpec()).stream_bytes > GIB


def test_a_plan_counts_the_memory_beside_gpus(display, monkeypatch):
    """A GPU may hold what its machine can't write down; workers on CPUs have one memory."""
    needs = replace(MemoryPlan(*(0,) * 13), trained=GIB)
    monkeypatch.setattr(training_module, "plan_memory", lambda *_: needs)
    small = replace(at_work(display, gpus_per_worker=1), hosts=Hosts((Host("cards", 8 * GIB, 1, 1),)))
    with pytest.raises(UserError, match=r"^k = 4: node cards has 8.0 GiB of memory beside that of its GPUs"):
        plan_fit(small, SOURCES, TrainingSpec())


def test_what_cannot_be_planned_is_trained_without_a_plan(monkeypatch, display):
    """A plan is advice: an architecture that needs data to run is trained all the same."""

    def fail(*_):
        raise RuntimeError("data-dependent\nbranch")

    monkeypatch.setattr(training_module, "plan_memory", fail)
    assert plan_fit(at_work(display), SOURCES, TrainingSpec()) == PLAIN
    every = at_work(display, activation_checkpointing="on", sharding="on", compile="on", workers=2)
    assert plan_fit(every, SOURCES, TrainingSpec(tokens_per_step=256)) == Fit(True, True, True)
    assert display.lines == 2 * ["k = 4: what it will take can't be said beforehand (data-dependent)"]


@pytest.mark.parametrize("asked", ["on", "off"])
def test_layers_are_compiled_where_that_was_asked_for(display, asked):
    """By the flag alone, without timing anything."""
    assert plan_fit(at_work(display, compile=asked), SOURCES, TrainingSpec()).compiled == (asked == "on")


WORK = TrainWork(
    Backbone("", ""), TrainingSpec(k=1), (3,), {}, {}, ScoreWeights(), 8, 1, 0, fit=Fit(recompute=True)
)
TIMES = {"fault": "", "plain": 0.5, "compiled": 0.4, "compiling": 60.0, "peak_gib": 1.0}


def compiling_of(monkeypatch, display, answer, steps=1000, work=WORK, **settings):
    """How a run is compiled whose workers answer that to the question whether it is faster."""

    def run_job(board, job):
        assert (board, job.kind, job.work, job.blocks) == ("board", "time_compiling", work, "blocks")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(training_module, "run_job", run_job)
    monkeypatch.setattr(training_module, "store_blocks", lambda blocks: blocks)
    monkeypatch.setattr(Context, "show_jobs", lambda *_: nullcontext())
    prepared = SimpleNamespace(blocks="blocks")
    return choose_compiling(at_work(display, **settings), prepared, work, steps)


@pytest.mark.parametrize(
    ("answer", "compiled", "words"),
    [
        (TIMES, True, "0.5 s, by torch.compile 0.4 s, which took 60 s; 1,000 steps: trained with it"),
        (TIMES | {"compiled": 0.49}, False, "trained without it"),
        ({"fault": "InductorError: no C"}, False, "which a worker can't use: InductorError: no C"),
        (JobFailed("Traceback\nOutOfMemoryError: out"), False, "timing it failed (OutOfMemoryError: out)"),
    ],
)
def test_layers_are_compiled_where_that_pays(monkeypatch, display, answer, compiled, words):
    """By the workers' own times, however they come; the display says what was decided."""
    fit = compiling_of(monkeypatch, display, answer)
    assert fit == Fit(recompute=True, compiled=compiled)
    assert words in display.lines[-1]


def test_what_is_decided_or_not_worth_the_question_is_not_asked(monkeypatch, display):
    """Nor is it an answer when the workers are gone, or a person has to do something."""
    unasked, untrained = AssertionError("asked"), replace(WORK, layers=())
    for settings in ({"steps": 999}, {"compile": "off"}, {"compile": "on"}, {"work": untrained}):
        assert compiling_of(monkeypatch, display, unasked, **settings) == WORK.fit
    for problem in (CrewLost("nobody is there"), JobRefused("no such folder")):
        with pytest.raises(type(problem)):
            compiling_of(monkeypatch, display, problem)


@pytest.mark.parametrize(("by_tasks", "measure"), [(False, "bpb"), (True, "accuracy")])
def test_a_side_names_the_measure_of_its_delta(by_tasks, measure):
    """Where it has tasks, both measures are written down, and the delta is of the one that counts."""
    found = {"domain_delta": 2.0, "domain_delta_se": 0.5}
    for name in ("bpb", "accuracy"):
        found |= {f"domain_{name}": 1.0, f"domain_{name}_before": 3.0}
    assert describe_side(found, "domain", by_tasks) == {
        "measure": measure,
        **{"before_bpb": 3.0, "after_bpb": 1.0, "before_accuracy": 3.0, "after_accuracy": 1.0},
        **{"delta": 2.0, "standard_error": 0.5},
    }
