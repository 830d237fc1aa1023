"""How fast workers are: measured in a backbone's shapes, without its weights."""

import dataclasses
from pathlib import Path

import pytest
from trainings import BLOCKS, CPU

from adept_ray.data.loading import borrow
from adept_ray.training import speed as speed_module
from adept_ray.training.learner import prepare_learner
from adept_ray.training.speed import measure_speed, time_kept_streams
from adept_ray.training.work import SpeedWork


@pytest.fixture
def weightless(backbone, tmp_path):
    """A backbone of which there is nothing but its config."""
    config = Path(backbone.source) / "config.json"
    (tmp_path / "config.json").write_bytes(config.read_bytes())
    return dataclasses.replace(backbone, source=str(tmp_path), random=True)


def test_speed_is_measured_without_weights(work, weightless):
    """Every second is there for one worker that doesn't compile, of a model that nobody could load."""
    training = dataclasses.replace(work, backbone=weightless)
    told = []
    found = measure_speed(SpeedWork(training, False), BLOCKS, CPU, lambda done, of: told.append((done, of)))
    measured = ("step", "remeasure", "validation", "forward", "product_flops")
    assert all(found[name] > 0 for name in measured) and found["bypass"] >= 0
    assert (found["validated"], found["probed"]) == (len(BLOCKS["general"]), work.micro_batch)
    layer = sum(p.numel() for p in borrow(weightless).model.layers[0].parameters())
    assert (found["reduced"], found["reducing"]) == (4 * len(work.layers) * layer, 0.0)
    assert "compiled" not in found and told[-1][0] == told[-1][1]


def test_what_is_kept_is_measured_where_it_will_be(work, weightless):
    """Layers below the lowest copy run in the first step and validation alone, which don't count."""
    training = dataclasses.replace(work, backbone=weightless)
    learner = prepare_learner(training, BLOCKS, CPU)
    assert time_kept_streams(learner, BLOCKS["general"]) == {}
    keeping = dataclasses.replace(training, fit=dataclasses.replace(work.fit, stream_bytes=2**24))
    learner, runs = dataclasses.replace(learner, work=keeping), []
    lowest = learner.tuning.model.model.layers[0].self_attn
    lowest.register_forward_pre_hook(lambda *_: runs.append(1))
    found = time_kept_streams(learner, BLOCKS["general"])
    assert found["kept_step"] > 0 and found["kept_validation"] > 0
    size = work.micro_batch
    assert len(runs) == -(-work.blocks_per_step // size) + -(-len(BLOCKS["general"]) // size)


def test_a_random_backbone_is_not_taken_for_the_real_one(backbone):
    """A process that measured speed loads the weights before it trains."""
    drawn = borrow(dataclasses.replace(backbone, random=True))
    real = borrow(backbone)
    name, weight = next(iter(real.named_parameters()))
    assert not (dict(drawn.named_parameters())[name] == weight).all()


@pytest.mark.parametrize("fault", ["", "no compiler"])
def test_steps_are_timed_though_nothing_compiles(monkeypatch, work, weightless, fault):
    """Where it compiles, the plain steps were timed beside; where it doesn't, they are timed alone."""
    times = {"fault": "", "plain": 2.0, "compiled": 1.0, "compiling": 9.0} if not fault else {"fault": fault}
    monkeypatch.setattr(speed_module, "time_compiling", lambda *_: dict(times))
    monkeypatch.setattr(speed_module, "time_steps", lambda *_: (5.0, 3.0))
    monkeypatch.setattr(speed_module, "time_learner", lambda *_: {})
    monkeypatch.setattr(speed_module, "time_probe", lambda *_: {})
    found = measure_speed(SpeedWork(work, True), BLOCKS, CPU)
    assert found["step"] == (3.0 if fault else 2.0) and found["fault"] == fault
    assert found.get("compiled") == (None if fault else 1.0)
