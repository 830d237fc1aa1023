"""Checkpoints: what is loaded is what was saved, only into the model it was saved from, never a pickle."""

import json

import pytest
import torch
from common import random_ids, shake, tiny_model, write_files
from safetensors.torch import load_file

from adept_ray.config.errors import UserError
from adept_ray.config.specs import TrainingSpec
from adept_ray.method.anatomy import layer_parameters
from adept_ray.method.expansion import expand
from adept_ray.method.rates import parameter_groups
from adept_ray.storage.checkpoints import Checkpoint
from adept_ray.training.learner import build_optimizer
from adept_ray.training.state import OPTIMIZER, STATE, WEIGHTS, TrainState
from adept_ray.training.tensor_file import write_tensors


def fresh(layers=(0, 2), fused=True):
    """An expanded model and its optimizer, as a training begins."""
    model = tiny_model(layers=3)
    added = expand(model, layers)
    if fused:
        return model, added, build_optimizer(model, TrainingSpec(weight_decay=0.1), torch.device("cpu"))
    return model, added, torch.optim.AdamW(parameter_groups(model, 0.1))


def save(state, folder, model, optimizer):
    """The checkpoint that a state and its model make, in `folder`."""
    return write_files(Checkpoint(state.step, state.take_files(model, optimizer)), folder)


def step(model, optimizer, seed):
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    ids = random_ids(seed=seed)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint after three steps, with the model, optimizer and state it was made from."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model, added, optimizer = fresh()
    shake(layer_parameters(model, added).values(), 0.05)
    for seed in range(3):
        step(model, optimizer, seed)
    importance = {name: 1 / (3 + i) for i, name in enumerate(layer_parameters(model, added))}
    rates = [{"step": 0, "unit": "model.layers.1.mlp.up_proj", "importance": 0.1 + 0.2, "scale": 1 / 3}]
    state = TrainState((0, 2), added, 3, 1, importance, rates)
    save(state, folder, model, optimizer)
    return folder, model, optimizer, state


def test_everything_comes_back(saved):
    """Weights, every tensor of AdamW, rates, importances in their order and counters return bit for bit."""
    folder, model, optimizer, state = saved
    other, added, other_optimizer = fresh()
    assert TrainState.load(folder, other, other_optimizer) == state
    assert list(TrainState.load(folder, other).importance) == list(state.importance)
    parameters, others = layer_parameters(model, added), layer_parameters(other, added)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, others[name])
        had, has = optimizer.state[parameter], other_optimizer.state[others[name]]
        assert had.keys() == has.keys() >= {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(had[key], has[key]) and had[key].dtype == has[key].dtype for key in had)


def test_the_next_step_is_the_same(saved):
    """A restored optimizer makes the step that the saved one makes, bit for bit."""
    folder, model, optimizer, _ = saved
    other, _, other_optimizer = fresh()
    TrainState.load(folder, other, other_optimizer)
    step(model, optimizer, 9)
    step(other, other_optimizer, 9)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    TrainState.load(folder, model, optimizer)  # as the other tests expect it


def test_one_kernel_or_many_make_the_same_steps():
    """AdamW in one kernel, which a training has on CPUs and GPUs, moves weights as tensor by tensor."""
    (model, added, fused), (other, _, plain) = fresh(), fresh(fused=False)
    assert fused.defaults["fused"] and not plain.defaults["fused"]
    for each in (model, other):
        shake(layer_parameters(each, added).values(), 0.05)
    before = [parameter.clone() for parameter in model.parameters()]
    for seed in range(5):
        step(model, fused, seed)
        step(other, plain, seed)
    moved = [(a - b).abs().max() for a, b in zip(model.parameters(), before, strict=True)]
    assert max(moved) > 1e-3
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_a_checkpoint_of_one_kind_of_adamw_goes_on_with_the_other(tmp_path, fused):
    """Of one kernel to tensor by tensor and the other way round: each stays what it is, as do its steps."""
    (model, added, optimizer), (other, _, others) = fresh(fused=fused), fresh(fused=not fused)
    shake(layer_parameters(model, added).values(), 0.05)
    for seed in range(3):
        step(model, optimizer, seed)
    save(TrainState((0, 2), added, 3), tmp_path, model, optimizer)
    TrainState.load(tmp_path, other, others)
    assert all(group["fused"] == (None if fused else True) for group in others.param_groups)
    step(model, optimizer, 9)
    step(other, others, 9)
    for a, b in zip(
        layer_parameters(model, added).values(), layer_parameters(other, added).values(), strict=True
    ):
        assert optimizer.state[a]["step"] == others.state[b]["step"] == 4
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_what_is_to_be_written_stays_as_it_was(tmp_path):
    """Files that are written later hold the state of the moment when they were taken, whatever came after."""
    model, added, optimizer = fresh()
    shake(layer_parameters(model, added).values(), 0.05)
    step(model, optimizer, 0)
    state = TrainState((0, 2), added, 1, importance={"a": 1.0})
    taken = Checkpoint(1, state.take_files(model, optimizer))
    now = save(state, tmp_path / "now", model, optimizer)
    step(model, optimizer, 1)
    state.step, state.importance["a"] = 2, 2.0
    later = write_files(taken, tmp_path / "later")
    assert {path.name: path.read_bytes() for path in now.iterdir()} == {
        path.name: path.read_bytes() for path in later.iterdir()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_of_tensors_is_one_of_safetensors(tmp_path, dtype):
    """The library that defines the format reads back every bit: scalars, slices, nothing at all."""
    drawn = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    for tensors in ({"matrix": drawn, "slice": drawn.T[1:3], "é": drawn.sum(), "none": drawn[:0]}, {}):
        with (tmp_path / "file").open("wb") as stream:
            write_tensors(tensors, stream)
        found = load_file(tmp_path / "file")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
        assert all(found[name].dtype == dtype for name in tensors)


def test_nothing_is_pickled(saved):
    """A checkpoint is safetensors and JSON, files that can't run code, and holds the added layers alone."""
    folder, _, _, state = saved
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, OPTIMIZER, STATE}
    layers = {int(name.split(".")[2]) for name in load_file(folder / WEIGHTS)}
    assert layers == set(state.added)
    assert {name.rpartition(":")[0] for name in load_file(folder / OPTIMIZER)} == set(state.importance)
    assert json.loads((folder / STATE).read_text())["step"] == 3


@pytest.mark.parametrize("layers", [(0, 1), (1,), (), (0, 1, 2)])
def test_a_checkpoint_of_other_layers_is_refused(saved, layers):
    """Layers that the model didn't add stay untouched, and the message names those of the checkpoint."""
    model, _, optimizer = fresh(layers) if layers else (tiny_model(layers=3).requires_grad_(False), (), None)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match=r"\[1, 4\], copies of \[0, 2\]"):
        TrainState.load(saved[0], model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_final_checkpoint_loads(saved, tmp_path):
    """The last checkpoint has no optimizer and still gives the weights, with an optimizer at hand or not."""
    _, model, _, state = saved
    save(state, tmp_path, model, None)
    assert not (tmp_path / OPTIMIZER).exists()
    for has_optimizer in (False, True):
        other, _, optimizer = fresh()
        assert TrainState.load(tmp_path, other, optimizer if has_optimizer else None) == state
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_no_added_layer_is_a_checkpoint_too(tmp_path):
    """k = 0 saves and loads like any other."""
    model = tiny_model(layers=2)
    state = TrainState((), expand(model, ()), 5, 2)
    save(state, tmp_path, model, None)
    assert TrainState.load(tmp_path, model) == state
