"""Expansion: an identity at birth, a plain Hugging Face model afterwards."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from common import logits, random_ids, shake, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import layer_parameters, layers_of
from adept_ray.method.copies import RECORD, added_layers
from adept_ray.method.expansion import expand, export, select_layers
from adept_ray.method.families import FAMILIES
from adept_ray.method.importance import LayerImportance
from adept_ray.method.loss import next_token_nats
from adept_ray.method.rates import parameter_groups

every_family = pytest.mark.parametrize("family", FAMILIES)
IDS = random_ids(2, 20)


def reloaded(model, folder):
    return AutoModelForCausalLM.from_pretrained(export(model, folder), trust_remote_code=False).eval()


def shake_copies(model, added, size=0.1):
    """Stands for training: the copies get a say in the logits, each a different one."""
    shake(layer_parameters(model, added).values(), size, seed=1)


@every_family
@pytest.mark.parametrize("chosen", [(), (0,), (3,), (0, 2, 3), (0, 1, 2, 3)], ids=str)
def test_expansion_is_the_identity(family, chosen):
    """Logits are bit-identical to the backbone's, whichever layers are copied; none is the identity too."""
    model = tiny_model(family)
    before = logits(model, IDS)
    added = expand(model, chosen)
    assert torch.equal(logits(model, IDS), before)
    assert len(added) == len(chosen) and model.config.num_hidden_layers == 4 + len(chosen)


@every_family
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
def test_export_loads_without_remote_code(family, trained, tmp_path):
    """The exported folder gives the expanded model's logits, before and after the copies have learnt."""
    model = tiny_model(family)
    before = logits(model, IDS)
    added = expand(model, (0, 1, 3))
    if trained:
        shake_copies(model, added)
        assert not torch.allclose(logits(model, IDS), before, atol=1e-2)
    assert torch.equal(logits(reloaded(model, tmp_path), IDS), logits(model, IDS))


@every_family
def test_generation_with_cache_equals_without(family):
    """Every layer has its own place in the cache: layer numbers follow the expansion."""
    model = tiny_model(family)
    shake_copies(model, expand(model, (0, 1, 3)))
    options = dict(max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
    options |= dict(attention_mask=torch.ones_like(IDS), eos_token_id=None)
    cached = model.generate(IDS, use_cache=True, **options)
    plain = model.generate(IDS, use_cache=False, **options)
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), atol=1e-4, rtol=1e-4)


@every_family
def test_every_list_with_an_entry_per_layer_follows(family):
    """No list of the config keeps the old number of layers, and each copy has its source's entries."""
    layers = 7  # a length that no other list of the config has
    model = tiny_model(family, layers)
    before = {n: v for n, v in model.config.to_dict().items() if isinstance(v, list) and len(v) == layers}
    expand(model, (1, 6))
    for name, entries in before.items():
        assert getattr(model.config, name) == [*entries[:2], entries[1], *entries[2:], entries[6]], name


def test_a_copy_keeps_its_source_s_kind_of_attention():
    """Sliding and full attention mixed without a pattern: a copy attends like its source."""
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    model = tiny_model("qwen3", layer_types=kinds)
    expand(model, (1, 3))
    assert model.config.layer_types == [*kinds[:2], kinds[1], kinds[2], kinds[3], kinds[3]]
    windows = [layer.self_attn.sliding_window for layer in layers_of(model)]
    assert windows == [8, None, None, None, 8, 8]


def test_a_list_longer_than_the_model_is_cut(tmp_path):
    """A no_rope_layers with more entries than layers, as after dropping layers, still expands and reloads."""
    model = tiny_model("smollm3", no_rope_layers=[1, 0, 0, 1, 0, 1, 1])
    before = logits(model, IDS)
    added = expand(model, (0, 2))
    assert torch.equal(logits(model, IDS), before)
    assert model.config.no_rope_layers == [1, 1, 0, 0, 0, 1]
    shake_copies(model, added)
    assert torch.equal(logits(reloaded(model, tmp_path), IDS), logits(model, IDS))


def test_tied_and_untied_heads_survive_export(tmp_path):
    """Whether the head shares the embedding's weights makes no difference to the reloaded logits."""
    for tied in (True, False):
        model = tiny_model("llama", tie_word_embeddings=tied)
        shake_copies(model, expand(model, (2,)))
        assert torch.equal(logits(reloaded(model, tmp_path / str(tied)), IDS), logits(model, IDS))


def test_copies_share_the_model_s_config():
    """A later change of the model's attention implementation reaches the copies too."""
    model = tiny_model("llama")
    expand(model, (1,))
    model.set_attn_implementation("eager")
    assert {layer.self_attn.config._attn_implementation for layer in layers_of(model)} == {"eager"}


def test_expanding_twice_is_still_the_identity():
    """An expanded model is a model like any other: it can be expanded again, copies of copies included."""
    model = tiny_model("gemma2")
    shake_copies(model, expand(model, (1, 2)))
    before = logits(model, IDS)
    expand(model, (2, 5))
    assert torch.equal(logits(model, IDS), before)


@every_family
def test_only_the_copies_are_trainable(family):
    """After expansion exactly the parameters of the copies require gradients."""
    model = tiny_model(family)
    added = expand(model, (0, 3))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(layer_parameters(model, added))


@every_family
def test_training_moves_the_copies_and_nothing_else(family):
    """After several optimizer steps frozen parameters are bit-identical; the copies all moved."""
    model = tiny_model(family)
    added = expand(model, (0, 3))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1))
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for step in range(3):
        next_token_nats(model, {"input_ids": random_ids(2, 20, seed=step)})[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    copies = layer_parameters(model, added)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name not in copies)
    # a bias of the keys moves all scores of a query alike, which softmax ignores
    moved = {n for n in copies if not torch.equal(after[n], before[n])}
    assert {n for n in copies if not n.endswith("k_proj.bias")} <= moved


def test_a_copy_shares_no_memory_with_its_source():
    """Training a copy can't reach the original through a shared tensor."""
    model = tiny_model()
    expand(model, (0, 1, 2, 3))
    addresses = [p.data_ptr() for p in layer_parameters(model, range(8)).values()]
    assert len(addresses) == len(set(addresses))


@pytest.mark.parametrize(
    ("layers", "words"), [((4,), "layer 4 does not exist"), ((-1,), "layer -1"), ((1, 1), "copied once")]
)
def test_bad_layers_are_refused(layers, words):
    """An unknown or repeated layer is an error, and the model stays as it was."""
    model = tiny_model()
    with pytest.raises(UserError, match=words):
        expand(model, layers)
    assert len(layers_of(model)) == 4 and all(p.requires_grad for p in model.parameters())


def test_a_layer_that_can_be_no_identity_is_refused():
    """One sentence names the type and says what is in the way."""
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_layer=2, n_embd=16, n_head=2, vocab_size=32))
    with pytest.raises(UserError) as refusal:
        expand(model, (0,))
    message = str(refusal.value)
    assert "'openai-gpt'" in message and "ends in a norm" in message and "\n" not in message


def test_code_of_no_known_family_is_refused():
    """What isn't transformers' own isn't tried out: the sentence names the families that it may come from."""

    class Own(GPT2Config):
        model_type = "own"

    model = GPT2LMHeadModel(Own(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=32))
    with pytest.raises(UserError, match="'own' are not supported") as refusal:
        expand(model, (0,))
    assert all(family in str(refusal.value) for family in FAMILIES)


def test_the_record_lies_beside_the_weights(tmp_path):
    """The added layers are stored, never guessed from weights."""
    model = tiny_model()
    added = expand(model, (1, 3))
    export(model, tmp_path, record={"added": added})
    assert json.loads((tmp_path / RECORD).read_text())["added"] == [2, 5]


importances = st.lists(st.sampled_from([-0.1, 0.0, 0.5, 1.0]) | st.floats(-1, 3), min_size=1, max_size=12)


@given(importances)
def test_the_choice_is_nested_ascending_and_the_least_important(means):
    """S_k ascends, is contained in S_{k+1}, and none outside it is less important; ties go by id."""
    importance = LayerImportance(tuple(means), tuple(0.0 for _ in means), 1.0)
    chosen: tuple[int, ...] = ()
    for k in range(len(means) + 1):
        wider = select_layers(importance, k)
        assert len(wider) == k and list(wider) == sorted(wider) and set(chosen) <= set(wider)
        outside = [(means[layer], layer) for layer in range(len(means)) if layer not in wider]
        assert all((means[layer], layer) < other for layer in wider for other in outside)
        chosen = wider


@pytest.mark.parametrize("k", [-1, 4])
def test_an_impossible_depth_is_refused(k):
    """k below 0 or above the number of layers is an error that names both."""
    with pytest.raises(UserError, match=f"k is {k}: .* 3"):
        select_layers(LayerImportance((0.1, 0.2, 0.3), (0.0,) * 3, 1.0), k)


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_a_copy_comes_right_behind_its_source(case):
    """In the expanded order each added id is preceded by the layer it was copied from."""
    layers, chosen = case
    order = [(layer, is_copy) for layer in range(layers) for is_copy in ((0, 1) if layer in chosen else (0,))]
    assert added_layers(tuple(chosen)) == tuple(i for i, (_, is_copy) in enumerate(order) if is_copy)


def spoil_file(change):
    """What stands for a save that goes wrong: the file is written, then changed."""

    def save(model, folder):
        type(model).save_pretrained(model, folder)
        change(folder)

    return save


def lose_a_copy(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))


def change_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def turn_positions(folder):
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 3.0
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lose_a_copy, "isn't whole: model.layers.4"),
        (
            change_a_weight,
            r"the exported model\.layers\.1\.mlp\.up_proj\.weight isn't that of the model in memory",
        ),
        (turn_positions, "computes other logits than the model in memory"),
        (lambda folder: (folder / "config.json").unlink(), r"can't be loaded again: it has no config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "can't be loaded again: OSError: "),
    ],
)
def test_what_is_not_the_model_is_no_export(change, told, tmp_path, monkeypatch):
    """The folder is loaded again before it is called one: its weights, its config, what it computes."""
    model = tiny_model()
    expand(model, (1,))
    monkeypatch.setattr(model, "save_pretrained", functools.partial(spoil_file(change), model), raising=False)
    with pytest.raises(UserError, match=told):
        export(model, tmp_path)
    assert not (tmp_path / RECORD).exists()


def test_a_model_with_an_adapter_is_no_export(tmp_path):
    """Of such a one transformers writes the adapter alone, and says nothing."""
    model = tiny_model()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UserError, match=r"can't be loaded again: .*adapters and quantised"):
        export(model, tmp_path)


def test_a_model_whose_logits_are_all_zero_is_exported(tmp_path):
    """No difference is no difference, however small the largest logit is."""
    model = tiny_model()
    model.lm_head.weight.data.zero_()
    assert not logits(reloaded(model, tmp_path), IDS).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_a_short_type_is_exported(dtype, tmp_path):
    """Trained copies may be longer than the rest: the file has the model's type."""
    model = tiny_model().to(dtype)
    added = expand(model, (1, 2))
    shake_copies(model, added)
    assert reloaded(model, tmp_path).dtype == dtype


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_layers_may_come_as_tensors_and_arrays(kind):
    """The same copies come of them, and one that is named twice is refused."""
    model, plain = tiny_model(), tiny_model()
    assert expand(model, kind([2, 0])) == expand(plain, [0, 2]) == (1, 4)
    with pytest.raises(UserError, match="each layer can be copied once"):
        expand(tiny_model(), kind([1, 1]))
