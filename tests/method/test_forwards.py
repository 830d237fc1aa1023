"""Whatever replaces a forward pass for a while leaves a model as it was."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from common import random_ids, tiny_model
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import layers_of
from adept_ray.method.forwards import replace_forward
from adept_ray.method.importance import layer_importance, unit_importance
from adept_ray.method.loss import get_compute_policy, set_compute_policy, token_nats


def test_what_replaced_a_pass_already_comes_back():
    """Also after an exception, and from within another replacement."""
    plain, patched = nn.Identity(), nn.Identity()
    patched.forward = own = lambda x: x + 1
    for module in (plain, patched):
        with pytest.raises(ZeroDivisionError), replace_forward(module, lambda x: 2):
            with replace_forward(module, lambda x: 3):
                assert module(0) == 3
            assert module(0) == 2
            raise ZeroDivisionError
    assert "forward" not in vars(plain) and vars(patched)["forward"] is own


def test_a_patched_model_computes_its_own_losses_and_keeps_its_patches():
    """A head and a layer with passes of their own, as accelerate's hooks make them: both run, and stay."""
    model, batch = tiny_model(), {"input_ids": random_ids()}
    layer, head = layers_of(model)[1], model.lm_head
    plain, usual = token_nats(model, batch)[0], head.forward
    head.forward = lambda stream: 2 * usual(stream)
    layer.forward = layer.forward  # the same pass, as a patch
    patches = head.forward, layer.forward
    set_compute_policy(model, replace(get_compute_policy(model), recomputed=(layer,)))
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    expected = -logits.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    found = token_nats(model, batch)[0]
    found.sum().backward()
    torch.testing.assert_close(found[:, :-1], expected)
    assert not torch.allclose(found, plain)
    assert (vars(head)["forward"], vars(layer)["forward"]) == patches


def describe_model(model):
    """All of a model that somebody may have set: passes, hooks, modes, flags, gradients and use_cache."""
    modules = [
        (
            id(vars(each).get("forward")),
            list(each._forward_hooks),
            list(each._forward_pre_hooks),
            each.training,
        )
        for each in model.modules()
    ]
    return modules, [(p.requires_grad, p.grad) for p in model.parameters()], model.config.use_cache


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("measure", ["layers", "units"])
def test_a_measured_model_is_left_as_it_was(measure, fails):
    """With accelerate's hooks, modes and flags of somebody's own; also where a pass raises half-way."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    model, batch = tiny_model(), {"input_ids": random_ids()}
    calls = []

    class Counted(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            if fails and len(calls) == 6:
                raise ZeroDivisionError
            return args, kwargs

    for layer in layers_of(model):
        add_hook_to_module(layer, Counted())
    model.lm_head.requires_grad_(False)
    layers_of(model)[1].train()
    before = describe_model(model)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        if measure == "layers":
            layer_importance(model, [batch])
        else:
            unit_importance(model, [batch, batch], [1, 2])
    assert calls and describe_model(model) == before


def test_a_model_spread_by_a_device_map_is_left_as_it_was():
    """Measured with accelerate's hooks on every module it gives the plain model's numbers, and keeps them."""
    from accelerate import dispatch_model

    batch = {"input_ids": random_ids()}
    expected = layer_importance(tiny_model(), [batch])
    model = dispatch_model(tiny_model(), {"": "cpu"}, main_device="cpu", force_hooks=True)
    hooks = [vars(module).get("_hf_hook") for module in model.modules()]
    assert any(hooks)
    before = describe_model(model)
    assert layer_importance(model, [batch]) == expected
    assert describe_model(model) == before
    assert [vars(module).get("_hf_hook") for module in model.modules()] == hooks


@pytest.fixture(scope="module")
def adapted():
    """A model in PEFT's wrapper, whose adapters change what it computes, and drop some of it in training."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    how = LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False, target_modules=["q_proj", "down_proj"])
    return get_peft_model(tiny_model(), how)


def test_a_model_with_adapters_is_measured_with_them_and_left_as_it_was(adapted):
    """Its importance is that of the merged model; adapters, modes and flags stay."""
    model, batch = adapted.get_base_model(), {"input_ids": random_ids()}
    expected = layer_importance(deepcopy(adapted).merge_and_unload(), [batch])
    before = describe_model(model)
    found = layer_importance(model, [batch])
    assert describe_model(model) == before
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-3, atol=1e-5)
    assert found.mean != pytest.approx(layer_importance(tiny_model(), [batch]).mean, rel=1e-2)


def test_a_wrapped_model_is_refused_with_what_to_give(adapted):
    """A wrapper may add a prompt of its own; the sentence names the call that gives the model in it."""
    before = describe_model(adapted)
    with pytest.raises(UserError, match=r"PeftModel wraps a model: give its get_base_model\(\)"):
        layer_importance(adapted, [{"input_ids": random_ids()}])
    assert describe_model(adapted) == before
