"""Whatever replaces a forward pass for a while leaves a model as it was."""

from dataclasses import replace

import pytest
import torch
from common import random_ids, tiny_model
from torch import nn

from adept_ray.method.anatomy import layers_of
from adept_ray.method.forwards import replace_forward
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
