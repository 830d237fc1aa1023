"""A probe, a plan of memory and a step on the types that people use most, beside those of the table."""

import pytest
import torch
from causal_types import tiny_config
from common import shake

from adept_ray.config.errors import UserError
from adept_ray.config.specs import TrainingSpec
from adept_ray.method.anatomy import layer_parameters, layers_of
from adept_ray.method.importance import layer_importance, unit_importance
from adept_ray.method.loss import next_token_nats
from adept_ray.method.memory_plan import plan_memory
from adept_ray.method.proof import check_copies, compute_logits
from adept_ray.method.reception import measure_layer_reception
from adept_ray.method.sharding import build_skeleton
from adept_ray.method.tuning import build_tuning
from adept_ray.method.twins import build_twin, draw_tokens

KINDS = ("gpt2", "qwen3_moe", "qwen3_5_text", "gpt_oss", "olmo3", "mixtral", "glm4_moe", "lfm2", "falcon_h1")
BATCH = {"input_ids": draw_tokens(2, 12)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_type_is_probed_planned_and_trained(kind):
    """Every layer and unit has an importance, the plan knows what is trained, and a step moves all copies.

    Turned to nothing, the trained copies leave the backbone's logits.
    """
    config = tiny_config(kind)
    plan = plan_memory(build_skeleton(config, "float32"), TrainingSpec(k=2), (0, 2), 12)
    model = build_twin(config)
    before = compute_logits(model, BATCH["input_ids"])
    assert len(layer_importance(model, [BATCH]).mean) == len(layers_of(model))
    assert len(measure_layer_reception(model, [BATCH])) == len(layers_of(model))
    units = unit_importance(model, [BATCH], (0, 2))
    assert set(units) == set(layer_parameters(model, (0, 2)))
    tuning = build_tuning(model, TrainingSpec(k=2), (0, 2), units, seed=0)
    assert plan.trained == sum(p.numel() for p in tuning.parameters.values())
    assert plan.parameters == sum(p.numel() for p in model.parameters())
    next_token_nats(model, BATCH)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in tuning.parameters.values())
    shake(tuning.parameters.values(), 0.1)
    assert not torch.equal(compute_logits(model, BATCH["input_ids"]), before)
    with tuning.use_exported_weights(0.0):
        assert torch.equal(compute_logits(model, BATCH["input_ids"]), before)


def test_a_type_that_goes_by_data_is_refused_by_the_plan():
    """DBRX asks its experts in a loop over those that a token chose; without data nobody knows which."""
    skeleton = build_skeleton(tiny_config("dbrx"), "float32")
    with pytest.raises(UserError, match="what a training of models of type 'dbrx' takes can't be told"):
        plan_memory(skeleton, TrainingSpec(k=1), (1,), 12)


def test_weights_with_which_no_copy_is_an_identity_are_refused_before_a_probe():
    """What no tiny model has: a factor on all that leaves a layer, kept beside its weights."""
    model = build_twin(tiny_config("gpt2"))
    check_copies(model)
    layer = layers_of(model)[2]
    layer.register_buffer("factor", torch.tensor(1.5))
    layer.register_forward_hook(lambda layer, _, out: out * layer.factor)
    with pytest.raises(UserError, match="layer 2 of this model of type 'gpt2' can't be copied"):
        check_copies(model)
