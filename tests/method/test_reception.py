"""How readily a copy would take up the domain: the gradient that a real copy has before its first step."""

import pytest
import torch
from common import random_ids, tiny_model

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import layers_of, list_outputs
from adept_ray.method.expansion import expand
from adept_ray.method.loss import next_token_nats
from adept_ray.method.reception import measure_layer_reception

BATCHES = [{"input_ids": random_ids(2, 16, 1)}, {"input_ids": random_ids(3, 16, 2)}]


def plainly(family, layer):
    """Expand a model behind one layer and take the gradient of the mean loss at the zeroed projections."""
    model = tiny_model(family)
    (added,) = expand(model, [layer])
    losses, tokens = zip(*(next_token_nats(model, batch) for batch in BATCHES), strict=True)
    (torch.cat(losses).sum() / torch.cat(tokens).sum()).backward()
    outputs = list_outputs(model, layers_of(model)[added]).values()
    gradients = [parameter.grad.abs().flatten() for parameter in outputs]
    return float(torch.cat(gradients).mean())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "granite", "smollm3"])
def test_reception_is_the_gradient_of_a_real_copy(family):
    """For each layer alone, in families with windows, biases and norms of a block's output."""
    found = measure_layer_reception(tiny_model(family), BATCHES)
    assert found == pytest.approx([plainly(family, layer) for layer in range(4)], rel=1e-4)
    assert len(set(found)) == 4


def test_measuring_leaves_the_model_as_it_was():
    """Weights, what requires gradients, hooks and layers: all the same, and no gradient is left behind."""
    model = tiny_model("qwen3").requires_grad_(False).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    first = measure_layer_reception(model, BATCHES)
    assert model.training and len(layers_of(model)) == 4
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and not parameter.requires_grad and parameter.grad is None
    assert not any(layer._forward_hooks for layer in layers_of(model))
    assert measure_layer_reception(model, BATCHES[::-1]) == pytest.approx(first, rel=1e-5)


def test_text_without_a_token_to_predict_is_refused():
    """One token has nothing behind it."""
    with pytest.raises(UserError, match="predicts no token"):
        measure_layer_reception(tiny_model(), [{"input_ids": random_ids(2, 1)}])
