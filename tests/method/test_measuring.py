"""What is measured on a tiny model of a family is what is known of it."""

import pytest
import torch
from causal_types import tiny_config
from common import tiny_model
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method import anatomy
from adept_ray.method.anatomy import family_of_config, keep_family
from adept_ray.method.expansion import expand
from adept_ray.method.families import FAMILIES, Family, is_named
from adept_ray.method.layer_entries import extend_config
from adept_ray.method.measuring import Obstacle, find_layers, measure_family
from adept_ray.method.proof import find_obstacle, prove_expansion
from adept_ray.method.twins import LENGTH, VOCABULARY, build_twin, draw_tokens, shrink_config


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_is_measured_is_what_the_table_says(family):
    """Layers, output projections, closing norms and their offset, lists of the config, numbers of layers."""
    config = tiny_model(family, layers=5).config
    known, found = FAMILIES[family], measure_family(config)
    assert (found.layers, found.passed, found.numbers) == (known.layers, known.passed, known.numbers)
    for names in ("outputs", "closing_norms", "normed"):
        assert set(getattr(found, names)) == set(getattr(known, names)), names
    assert found.norm_offset == known.norm_offset
    lists = {name for name in known.per_layer_config if getattr(config, name, None) is not None}
    assert set(found.per_layer_config) == lists
    changed = any(getattr(config, name, None) not in (None, 1) for name in known.logits_changed_by)
    assert (found.logits_changed_by is None) == changed


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("gpt2", {"attn.c_proj", "mlp.c_proj"}),
        ("mamba", {"mixer.out_proj"}),
        ("ctrl", {"multi_head_attention.dense", "ffn.2"}),
        ("qwen3_moe", {"self_attn.o_proj", "mlp.experts.down_proj"}),
        (
            "qwen3_5_moe_text",
            {
                "linear_attn.out_proj",
                "self_attn.o_proj",
                "mlp.experts.down_proj",
                "mlp.shared_expert.down_proj",
            },
        ),
    ],
)
def test_outputs_of_all_kinds_of_layers_are_found(kind, outputs):
    """Attention, state spaces, fused and shared experts, and kinds mixed in one stack."""
    assert set(measure_family(tiny_config(kind)).outputs) == outputs


def test_a_name_stands_for_all_experts_of_a_list():
    """And for a module's parameters, but not for what merely begins alike."""
    assert is_named("moe.experts.3.down.weight", ["moe.experts.*.down"])
    assert is_named("ffn.2.bias", ["ffn.2"]) and not is_named("ffn.0.bias", ["ffn.2"])
    assert not is_named("mlp.down_proj_norm.weight", ["mlp.down_proj"])


def test_a_twin_has_the_layers_of_its_model_and_small_widths():
    """Ids of special tokens stay within its vocabulary, and its text is longer than its windows."""
    config = tiny_model("qwen3", layers=7, hidden_size=96, num_attention_heads=6, eos_token_id=120).config
    small = shrink_config(config)
    assert small.layer_types == config.layer_types and small.num_hidden_layers == 7
    assert (small.vocab_size, small.hidden_size, small.num_key_value_heads) == (VOCABULARY, 64, 2)
    assert small.sliding_window == 8 < LENGTH and small.eos_token_id < VOCABULARY


def test_a_copy_inherits_what_a_config_says_of_its_source():
    """Lists of layers' numbers, counts of first layers and of last ones follow, by their sources."""
    config = tiny_config("gpt2")
    config.mlp_only_layers, config.first_k_dense_replace, config.num_kv_shared_layers = [0, 2], 1, 2
    extend_config(config, (), [0, 0, 1, 2, 2, 3])
    assert config.num_hidden_layers == 6 and config.mlp_only_layers == [0, 1, 3, 4]
    assert (config.first_k_dense_replace, config.num_kv_shared_layers) == (2, 3)


def test_a_rule_for_every_so_manyeth_layer_is_refused():
    """Copies would shift which layers attend, and no field of the config could say so."""
    config = tiny_config("jamba")
    family_of_config(config)
    with pytest.raises(UserError, match="says by a rule of which kind a layer is"):
        prove_expansion(config)


def test_a_layer_that_depends_on_its_number_is_refused():
    """GPT-2 may divide its attention by the number of a layer."""
    config = tiny_config("gpt2")
    assert find_obstacle(config, (0, 2)) == ""
    config.scale_attn_by_inverse_layer_idx = True
    for layers in ((0, 2), (3,)):  # of the last one the copy alone would do something else
        assert "says by a rule what a layer does" in find_obstacle(config, layers)


def test_weights_with_which_a_copy_is_no_identity_are_refused(monkeypatch):
    """Whatever was measured: the logits of the model itself have the last word."""
    model = tiny_model("llama")
    monkeypatch.setitem(anatomy.FAMILIES, "llama", Family(outputs=("mlp.down_proj",)))
    with pytest.raises(UserError, match="computes other logits than its backbone"):
        expand(model, (1,))


def test_a_family_is_measured_once_for_a_config(monkeypatch):
    """And the expanded model is of its backbone's family, without another look."""
    model = build_twin(tiny_config("gpt_neox"))
    family = family_of_config(model.config)
    expand(model, (1,))
    monkeypatch.setattr(anatomy, "measure_family", lambda config: pytest.fail("measured again"))
    assert family_of_config(model.config) is family is not None
    keep_family(model, family)


def test_a_stream_that_no_list_passes_is_refused():
    """A model whose layers don't follow each other has none that could be copied."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, input_ids, use_cache):
            stream = torch.ones(*input_ids.shape, 4)
            return self.layers[0](stream) + self.layers[1](stream)

    with pytest.raises(Obstacle, match="no list of layers is passed by one stream"):
        find_layers(Twice(), draw_tokens(1, 3))
