"""Compiled layers: the same training, timed before it, in any thread."""

import threading
from dataclasses import replace
from functools import partial

import pytest
import torch
from common import (
    random_ids,
    tiny_model,
)
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from trainings import BLOCKS, CPU, Run, changed, keeping, same

from adept_ray.data.blocks import BlockOrder
from adept_ray.method.anatomy import layers_of
from adept_ray.method.fit import Fit
from adept_ray.method.loss import (
    MAX_COMPILED_CODES,
    ComputePolicy,
    compile_forward,
    next_token_nats,
    set_compute_policy,
)
from adept_ray.training import pace as pace_module
from adept_ray.training.callbacks import Callbacks
from adept_ray.training.export import score_and_export
from adept_ray.training.learner import take_step
from adept_ray.training.pace import compiling_pays, time_compiling


def compiling(monkeypatch, backend="aot_eager"):
    """Have torch.compile do all but make machine code, which takes minutes; returns the counts of it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compile_forward.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    return counters["stats"]


@pytest.mark.parametrize(("tunes", "recompute"), [("copies", False), ("copies", True), ("lora", False)])
def test_compiled_layers_train_alike(work, tmp_path, monkeypatch, tunes, recompute):
    """The same losses and weights, names and export; and what was compiled once serves every other training.

    The steps have micro-batches of two blocks and of one, and importance is measured again on others.
    """
    done = compiling(monkeypatch)
    own = {"tunes": tunes} | ({"k": 0, "layers": ()} if tunes == "lora" else {})
    plain = changed(work, **own, tokens=work.count_tokens(4), reports=2, fit=Fit(recompute=recompute))
    compiled = replace(plain, fit=Fit(recompute=recompute, compiled=True))
    without = Run(tmp_path / "plain", plain)
    assert not done
    run = Run(tmp_path / "compiled", compiled)
    codes = done["unique_graphs"]
    assert 0 < codes <= 12
    for name in ("loss", "general_bpb", "domain_bpb"):
        assert run.metrics[-1][name] == pytest.approx(without.metrics[-1][name], rel=1e-5)
    assert run.weights().keys() == without.weights().keys()
    for name, weight in without.weights().items():
        torch.testing.assert_close(run.weights()[name], weight, atol=1e-5, rtol=1e-4)
    again = Run(tmp_path / "again", compiled, resume=run.folders[0])
    assert same(again.weights(), run.weights()) and done["unique_graphs"] == codes
    models = []
    for made, folder in ((plain, "plain"), (compiled, "compiled")):
        saved = run.folders[-1]
        score_and_export(made, BLOCKS, CPU, saved, {}, Callbacks(keeping(tmp_path / folder / "end")))
        models.append(load_file(tmp_path / folder / "end" / "model" / "model.safetensors"))
    assert same(*models) and done["unique_graphs"] == codes


def test_steps_are_timed_with_and_without_compiled_layers(work, whole, tmp_path, monkeypatch):
    """Those without compile nothing; of what was trained nothing is left, the text is that of a training."""
    done, told, texts = compiling(monkeypatch), [], []
    monkeypatch.setattr(pace_module, "find_compiler_fault", lambda device: "")
    monkeypatch.setattr(pace_module, "take_step", lambda *args: texts.append(args[3]) or take_step(*args))
    found = time_compiling(
        work, BLOCKS, CPU, lambda at, of: told.append((at, of, bool(done["unique_graphs"])))
    )
    assert told == [(1, 2, False), (2, 2, True)]
    assert not found.pop("fault") and min(found.values()) > 0
    order = BlockOrder((len(BLOCKS["train"]),), work.seed)
    steps = pace_module.FIRST + pace_module.TIMED
    assert texts == 2 * [order.list_batch(step, work.blocks_per_step) for step in range(steps)]
    assert same(Run(tmp_path, work).weights(), whole.weights())


def test_nothing_is_timed_where_nothing_can_be_compiled(work, monkeypatch):
    monkeypatch.setattr(pace_module, "find_compiler_fault", lambda device: f"no compiler for a {device}")
    monkeypatch.setattr(pace_module, "time_steps", lambda *_: pytest.fail("steps were made"))
    assert time_compiling(work, BLOCKS, CPU) == {"fault": "no compiler for a cpu"}


@pytest.mark.parametrize(
    ("compiled", "compiling", "expected"),
    [
        (0.6, 0, False),
        (0.499, 0, False),
        (0.48, 0, False),
        (0.47, 0, True),
        (0.4, 99, True),
        (0.4, 101, False),
    ],
)
def test_compiling_pays_where_it_saves_more_than_chance_and_than_it_took(compiled, compiling, expected):
    """Over a thousand steps of half a second."""
    assert compiling_pays({"plain": 0.5, "compiled": compiled, "compiling": compiling}, 1000) == expected


def test_every_thread_may_compile_as_many_codes(monkeypatch):
    """How many torch takes for too many is set for one thread, and a process may train in several."""
    compiling(monkeypatch)
    model = tiny_model().requires_grad_(True)
    set_compute_policy(model, ComputePolicy(compiled=tuple(layers_of(model))))
    limits = []

    def passing():
        before = torch._dynamo.config.recompile_limit
        next_token_nats(model, {"input_ids": random_ids()})
        limits.append((before, torch._dynamo.config.recompile_limit))

    for _ in range(2):
        thread = threading.Thread(target=passing)
        thread.start()
        thread.join()
    assert len(limits) == 2 and all(before < after == MAX_COMPILED_CODES for before, after in limits)
