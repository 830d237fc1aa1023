"""Backbones: found by name, folder, file or hub id; named by content; refused in one sentence."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from common import (
    local_backbone,
    logits,
    random_ids,
    save_backbone_with_code,
    save_tiny_backbone,
    tiny_model,
    tiny_tokenizer,
)
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from adept_ray.config.errors import UserError
from adept_ray.config.places import default_cache
from adept_ray.data import assets, backbones, hub, loading
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.gguf import MANIFEST
from adept_ray.data.loading import (
    borrow,
    build_outline,
    check_tokenizer,
    check_weights,
    load_config,
    load_model,
    load_tokenizer,
)
from adept_ray.method.anatomy import layers_of
from adept_ray.method.expansion import expand, export


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_backbone(tmp_path_factory.mktemp("tiny") / "backbone")


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of the tiny backbone to break."""
    return Path(shutil.copytree(tiny, tmp_path / "backbone"))


def refused(name: Path | str, tmp_path: Path) -> str:
    """What the user is told about a backbone that can't be used: one sentence, and nothing is left behind."""
    with pytest.raises(UserError) as caught:
        resolve_backbone(str(name), tmp_path / "cache")
    assert "\n" not in str(caught.value) and not list((tmp_path / "cache").rglob("*.safetensors"))
    return str(caught.value)


def write_gguf(path: Path, architecture: str = "llama", ending: str = "") -> torch.nn.Module:
    """Write a tiny Llama and its tokenizer as a GGUF file; returns the model."""
    tokenizer = tiny_tokenizer()
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    plain = dict(attention_bias=False, mlp_bias=False, vocab_size=len(vocab), tie_word_embeddings=False)
    model, writer = tiny_model("llama", layers=2, **plain), gguf.GGUFWriter(path, architecture)
    config = model.config
    writer.add_block_count(2)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocab)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in model.state_dict().items():
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:  # GGUF keeps the two halves of a rotary pair side by side
                tensor = tensor.view(heads, 2, -1, config.hidden_size).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight",)) + ending, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_is_named_by_its_content(tiny, folder, tmp_path):
    """A copy has the same fingerprint; another weight, config or tokenizer gives another; notes don't."""
    name = resolve_backbone(str(tiny), tmp_path).fingerprint
    (folder / "README.md").write_text("notes")
    assert resolve_backbone(str(folder), tmp_path).fingerprint == name
    seen = {name}
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        before = (folder / file).read_bytes()
        if file == "model.safetensors":
            weights = load_file(folder / file)
            weights["model.norm.weight"][0] += 1
            save_file(weights, folder / file, {"format": "pt"})
        else:
            (folder / file).write_bytes(before + b" ")
        seen.add(resolve_backbone(str(folder), tmp_path).fingerprint)
        (folder / file).write_bytes(before)
    assert len(seen) == 4


def test_a_folder_is_found_from_any_working_directory(folder, tmp_path, monkeypatch):
    """Workers start elsewhere: the source of a folder is absolute."""
    monkeypatch.chdir(tmp_path)
    backbone = resolve_backbone("backbone", tmp_path / "cache")
    assert backbone.source == str(folder) and backbone.revision is None


def test_a_missing_config_is_named(folder, tmp_path):
    """A folder of something else is refused."""
    (folder / "config.json").unlink()
    assert refused(folder, tmp_path).endswith("no config.json; give a folder made with save_pretrained")


def test_a_broken_config_is_named(folder, tmp_path):
    """JSON that doesn't parse is found before anything is loaded."""
    (folder / "config.json").write_text('{"model_type": ')
    assert "config.json: not valid JSON" in refused(folder, tmp_path)


def test_pickled_weights_are_refused(folder, tmp_path):
    """Pickles can run code, so they don't count as weights, and the sentence says so."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "must be *.safetensors, pytorch_model.bin is a pickle, which can run code" in refused(
        folder, tmp_path
    )
    (folder / "pytorch_model.bin").unlink()
    assert "must be *.safetensors, there are none" in refused(folder, tmp_path)


def test_truncated_weights_are_named(folder, tmp_path):
    """A copy that stopped half-way is found without loading it."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors: truncated or damaged" in refused(folder, tmp_path)


def test_a_missing_shard_is_named(folder, tmp_path):
    """Every file that the index promises must be there."""
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors is missing, which model.safetensors.index.json names" in refused(
        folder, tmp_path
    )


# --- loading --------------------------------------------------------------------------------------


def test_an_adapter_is_told_as_one(folder, tmp_path):
    """transformers would load it with the weights, and save it in their place; alone it is no model."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    told = r"it holds an adapter of some/base \(adapter_config\.json\).* merge_and_unload"
    with pytest.raises(UserError, match=told):
        resolve_backbone(str(folder), tmp_path)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("not JSON")
    with pytest.raises(UserError, match=r"it holds an adapter \(adapter_config\.json\)"):
        resolve_backbone(str(folder), tmp_path)


def test_settings_of_generation_are_part_of_a_backbone(folder, tmp_path):
    """They are exported with it: others make another one, and broken ones are named."""
    before = resolve_backbone(str(folder), tmp_path).fingerprint
    (folder / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    assert resolve_backbone(str(folder), tmp_path).fingerprint != before
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json: not valid JSON"):
        resolve_backbone(str(folder), tmp_path)


def edit_config(folder, **changes):
    """Change a folder's config."""
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def test_weights_that_no_layer_takes_are_refused(folder):
    """transformers would pass them over: of a model of four layers three would be left."""
    edit_config(folder, num_hidden_layers=3)
    with pytest.raises(
        UserError, match=r"has no place for \d+ tensors of the weights, such as model\.layers\.3\."
    ):
        check_weights(local_backbone(folder))


def test_weights_of_other_shapes_are_refused_unread(folder):
    """What is wrong is in the sentence, both shapes among it."""
    edit_config(folder, intermediate_size=64)
    with pytest.raises(
        UserError, match=r"_proj\.weight has the shape \d+ × \d+ in the weights and .*64.* by config"
    ):
        check_weights(local_backbone(folder))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"rms_norm_eps": 1},
            "rms_norm_eps of config.json is 1, but it must be a number with a decimal point",
        ),
        ({"hidden_size": "32"}, 'hidden_size of config.json is "32", but it must be a whole number'),
        ({"attention_bias": "no"}, 'attention_bias of config.json is "no", but it must be true or false'),
        ({"eos_token_id": [1, "x"]}, r'is \[1, "x"\], but it must be a whole number .* or a list .* or null'),
        ({"num_attention_heads": 5}, "breaks a rule: The hidden size .* is not a multiple"),
    ],
)
def test_a_config_with_a_wrong_value_is_one_sentence(folder, changes, told):
    """It says which setting has which value and what it must be, and names no type of Python."""
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=f"its config can't be read: .*{told}") as refused:
        load_config(local_backbone(folder))
    assert "\n" not in str(refused.value)
    assert not re.search(r"\b(int|float|bool|str|list\[|NoneType|TypeError)\b", str(refused.value))


@pytest.mark.parametrize(
    "fault", [KeyError("fault"), AttributeError("fault"), ImportError("no fault"), Exception()]
)
def test_whatever_a_library_raises_is_input(folder, monkeypatch, fault):
    """The sentence keeps the point, and the class where there is none."""

    def stumble(*_, **__):
        raise fault

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", stumble)
    told = str(fault) or "Exception"
    with pytest.raises(UserError, match=f"its tokenizer can't be loaded: .*{told}") as refused:
        load_tokenizer(local_backbone(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("added", [{"eos_token": "<end>"}, {"additional_special_tokens": ["<drug>"]}])
def test_a_tokenizer_beyond_the_embeddings_is_refused(folder, added):
    """Whether a text has that word or not: the first one that has it would end the run."""
    tokenizer = load_tokenizer(local_backbone(folder))
    size = len(tokenizer)
    check_tokenizer(local_backbone(folder), size)
    tokenizer.add_special_tokens(added)
    tokenizer.save_pretrained(folder)
    (word,) = added.get("additional_special_tokens", [added.get("eos_token")])
    end = ", its EOS token" if "eos_token" in added else ""
    with pytest.raises(UserError, match=rf"up to number {size} \('{word}'{end}\).* end at {size - 1}: "):
        check_tokenizer(local_backbone(folder), size)


def test_a_model_comes_ready_for_measuring(tiny):
    """Eval mode, no key-value cache, the dtype asked for, the saved weights."""
    model = load_model(local_backbone(tiny))
    assert not model.training and model.dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model.model.norm.weight, load_file(tiny / "model.safetensors")["model.norm.weight"])
    assert load_model(local_backbone(tiny, dtype="bfloat16")).dtype == torch.bfloat16


def test_a_backbone_is_loaded_once_and_shared(tiny, monkeypatch):
    """Whoever borrows it gets the same weights in a structure of its own, until someone takes it away."""
    loads = []
    real = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **named: loads.append(a) or real(*a, **named))
    first, second = borrow(local_backbone(tiny)), borrow(local_backbone(tiny))
    copies = expand(first, [0, 1])
    assert len(loads) == 1 and copies == (1, 3)
    assert (len(first.model.layers), first.config.num_hidden_layers) == (6, 6)
    assert (len(second.model.layers), second.config.num_hidden_layers) == (4, 4)
    assert first.model.layers[0].mlp.up_proj.weight is second.model.layers[0].mlp.up_proj.weight
    assert [layer.self_attn.layer_idx for layer in second.model.layers] == [0, 1, 2, 3]
    assert second.model.layers[0].self_attn.config is second.config is not first.config
    assert not any(p.requires_grad for p in second.parameters())
    taken, last = borrow(local_backbone(tiny), alone=True), borrow(local_backbone(tiny))
    assert taken.model.norm.weight is second.model.norm.weight is not last.model.norm.weight
    assert len(loads) == 2 and borrow(local_backbone(tiny, dtype="bfloat16")).dtype == torch.bfloat16
    assert len(loads) == 3


def test_missing_weights_are_an_error_not_random_numbers(folder):
    """A tensor the weights lack must not be filled in silently."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"the weights lack 1 tensors of the model, such as model\.norm\.weight"
    ):
        load_model(local_backbone(folder))


def test_a_model_of_another_kind_is_one_sentence(folder):
    """A config that isn't a causal LM's is refused with transformers' reason, shortened."""
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "vit"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="can't be loaded as a causal LM: ") as caught:
        load_model(local_backbone(folder))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_comes_fast_and_with_an_end(tiny):
    """Text survives encoding and decoding, and documents can be separated."""
    tokenizer = load_tokenizer(local_backbone(tiny))
    assert tokenizer.is_fast and tokenizer.eos_token == "<|eos|>"
    assert tokenizer.decode(tokenizer("The harbour, on Sundays.")["input_ids"]) == "The harbour, on Sundays."


def test_a_tokenizer_without_an_end_is_refused(folder):
    """Without EOS, packed documents would run into each other."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="its tokenizer has no EOS token, which separates documents"):
        load_tokenizer(local_backbone(folder))


def test_a_tokenizer_of_a_newer_library_says_what_may_read_it(folder):
    """tokenizers itself names but a type of its own code."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"] = {"type": "BPE2", "merges": {"packed": True}}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"its tokenizer can't be loaded: .*a newer version of the package"):
        load_tokenizer(local_backbone(folder))


def test_a_missing_tokenizer_is_refused(folder):
    """A folder of weights alone can't be used."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"its tokenizer (can't be loaded|is a slow one|has no EOS)"):
        load_tokenizer(local_backbone(folder))


def test_loading_is_silent_and_leaves_the_settings(tiny, capfd):
    """No bars or advice reach the terminal, and what the caller set for transformers stays."""
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(local_backbone(tiny))
    load_tokenizer(local_backbone(tiny))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


# --- code that comes with a model -----------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["own", "llama"])
def test_own_code_runs_with_trust_and_never_without(tmp_path, model_type):
    """A model that needs it is refused then by naming the flag; one that needn't is loaded without it."""
    marker = tmp_path / "marker"
    plainly = local_backbone(save_backbone_with_code(tmp_path / "own", marker, model_type))
    trusted = replace(plainly, trusted=True)
    if model_type == "own":
        for load in (load_config, load_model):
            with pytest.raises(UserError, match="read that code, and give --trust-remote-code") as caught:
                load(plainly)
            assert "\n" not in str(caught.value)
    else:
        load_config(plainly)
        plain = load_model(plainly)
    load_tokenizer(plainly)
    apart = resolve_backbone(plainly.source, tmp_path)
    assert not marker.exists() and not apart.trusted
    model = load_model(trusted)
    assert marker.exists() and type(model).__module__.endswith("modeling_own")
    assert type(build_outline(trusted)).__name__ == "OwnForCausalLM"
    if model_type == "llama":
        assert torch.equal(logits(model, random_ids()), 2 * logits(plain, random_ids()))
        assert type(build_outline(plainly)).__name__ == "LlamaForCausalLM"


def test_trusted_code_names_the_backbone(tmp_path):
    """Other code makes another backbone, but only where it may run."""
    folder = save_backbone_with_code(tmp_path / "own", tmp_path / "marker")

    def names():
        return [resolve_backbone(str(folder), tmp_path, trusted).fingerprint for trusted in (False, True)]

    before = names()
    (folder / "modeling_own.py").write_text("raise KeyError('a fault')")
    after = names()
    assert len({*before, *after}) == 3 and before[0] == after[0]
    with pytest.raises(UserError, match="its config can't be read: KeyError 'a fault'"):
        load_config(local_backbone(folder, trusted=True))


def test_a_model_with_its_own_code_is_expanded_and_exported(tmp_path):
    """Bit-identical logits after expansion and after reload; the export takes the code along."""
    own = local_backbone(save_backbone_with_code(tmp_path / "own", tmp_path / "marker"), trusted=True)
    before = logits(load_model(own), random_ids())
    model = borrow(own)
    assert expand(model, [1, 2]) == (2, 4)
    assert torch.equal(logits(model, random_ids()), before)
    exported = local_backbone(export(model, tmp_path / "model", load_tokenizer(own)))
    with pytest.raises(UserError, match="--trust-remote-code"):
        load_model(exported)
    again = load_model(replace(exported, trusted=True))
    assert torch.equal(logits(again, random_ids()), before) and len(again.model.layers) == 6


def test_own_code_of_another_shape_is_refused(tmp_path):
    """It says that it is a llama, but has its layers elsewhere."""
    folder = save_backbone_with_code(tmp_path / "own", tmp_path / "marker")
    code = folder / "modeling_own.py"
    changed = (
        "    def __init__(self, config):\n        super().__init__(config)\n        del self.model.layers\n\n"
    )
    code.write_text(code.read_text().replace("    def forward", changed + "    def forward"))
    with pytest.raises(
        UserError, match=r"OwnForCausalLM has no 'model\.layers', which its family's models have"
    ):
        layers_of(build_outline(local_backbone(folder, trusted=True)))


def test_a_tokenizer_with_its_own_code_is_refused_without_trust(folder, tmp_path):
    marker = tmp_path / "marker"
    (folder / "tokenization_own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        f"open({str(marker)!r}, 'w').close()\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    file = folder / "tokenizer_config.json"
    names = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": names}))
    load_tokenizer(local_backbone(folder))  # its class is one of transformers' own
    config = json.loads((folder / "config.json").read_text())
    needs = json.loads(file.read_text()) | {"tokenizer_class": "OwnTokenizer"}
    file.write_text(json.dumps(needs))
    assert config["model_type"] == "llama" and not marker.exists()
    assert (
        type(load_tokenizer(local_backbone(folder, trusted=True))).__name__ == "OwnTokenizer"
        and marker.exists()
    )


# --- GGUF -----------------------------------------------------------------------------------------


def test_a_gguf_file_becomes_a_plain_folder_once(tmp_path, monkeypatch, capfd):
    """The folder holds the same model without a quantization_config, and is found again by content."""
    model = write_gguf(tmp_path / "tiny.gguf")
    backbone = resolve_backbone(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
    loaded = load_model(backbone)
    assert not hasattr(loaded.config, "quantization_config")
    assert torch.equal(logits(loaded, random_ids()), logits(model, random_ids()))
    assert load_tokenizer(backbone).eos_token == "<|eos|>"
    assert capfd.readouterr().err == "dequantizing tiny.gguf (once; 15 s for 135 M parameters)\n"
    monkeypatch.setattr(backbones, "dequantize_gguf", None)
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "again.gguf")
    (tmp_path / "again.gguf").rename(tmp_path / "tiny.gguf")
    assert resolve_backbone(str(tmp_path / "tiny.gguf"), tmp_path / "cache") == backbone


def test_a_gguf_file_is_parsed_once(tmp_path, monkeypatch):
    """However often transformers asks for it; afterwards the package is as it was."""
    parsed, plain = [], gguf.GGUFReader

    def read(path):
        parsed.append(path)
        return plain(path)

    monkeypatch.setattr(gguf, "GGUFReader", read)
    write_gguf(tmp_path / "tiny.gguf")
    resolve_backbone(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
    assert len(parsed) == 1 and gguf.GGUFReader is read


def test_an_interrupted_conversion_is_never_believed(tmp_path, monkeypatch):
    """A folder without its manifest, or none at all, is made again."""
    write_gguf(tmp_path / "tiny.gguf")

    def interrupted(path, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(backbones, "dequantize_gguf", interrupted)
        resolve_backbone(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
    folder = Path(resolve_backbone(str(tmp_path / "tiny.gguf"), tmp_path / "cache").source)
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    (folder / MANIFEST).unlink()
    (folder / "config.json").unlink()
    load_model(resolve_backbone(str(tmp_path / "tiny.gguf"), tmp_path / "cache"))


def test_broken_gguf_files_are_refused(tmp_path):
    """Not GGUF, cut in the tensors, cut in the header, unknown architecture: one sentence each."""
    (tmp_path / "text.gguf").write_text("once upon a time")
    assert "text.gguf: not a GGUF file" in refused(tmp_path / "text.gguf", tmp_path)
    write_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for end in (-200, 300):
        (tmp_path / "cut.gguf").write_bytes(whole[:end])
        assert "can't be read: truncated or damaged; copy" in refused(tmp_path / "cut.gguf", tmp_path)
    write_gguf(tmp_path / "odd.gguf", architecture="abacus")
    assert "odd.gguf: this GGUF file can't be read: " in (said := refused(tmp_path / "odd.gguf", tmp_path))
    assert "abacus" in said
    # transformers alone would fill these tensors, which it doesn't know, with random numbers
    write_gguf(tmp_path / "names.gguf", ending=".x")
    assert "names.gguf: the weights lack 21 tensors of the model" in refused(
        tmp_path / "names.gguf", tmp_path
    )


@pytest.mark.slow
@pytest.mark.assets
def test_the_default_backbone_loads():
    """SmolLM2 comes out of its package as an ordinary 30-layer model that predicts English."""
    backbone = resolve_backbone("smollm2-135m", default_cache())
    assert "instruction-tuned" in backbone.note and "Apache-2.0" in backbone.note
    model, tokenizer = load_model(backbone), load_tokenizer(backbone)
    assert len(model.model.layers) == 30 and sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer("The heart pumps blood through the arteries of the body.", return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 4.5


# --- names and the hub ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"), [("smolm2", "did you mean smollm2-135m?"), ("", "known: llama3-8b, ")]
)
def test_an_unknown_name_gets_the_nearest(name, hint, tmp_path):
    """A misspelt preset is answered with the nearest names."""
    assert f"unknown backbone '{name}': {hint}" in refused(name, tmp_path)


@pytest.mark.parametrize("name", ["./models", "/no/such", "a/b/c", "model.gguf", "models/m.gguf"])
def test_a_missing_path_is_not_looked_up_on_the_hub(name, tmp_path):
    """What can only be a path is said to be missing."""
    assert refused(name, tmp_path) == f"{name}: no such folder or file"


@pytest.mark.parametrize("name", ["qwen3-1.7b", "owner/name"])
def test_without_the_hub_the_sentence_says_so(name, tmp_path, monkeypatch):
    """A hub id without network and without a cached copy is one sentence, soon."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "HF_HUB_OFFLINE keeps it from the Hugging Face hub" in refused(name, tmp_path)


def test_presets_are_hub_ids_or_pinned_assets():
    """Every preset has a source of one of the two kinds and a licence."""
    for preset in backbones.PRESETS.values():
        pinned = isinstance(preset.source, assets.Asset)
        assert (pinned or hub.HUB_ID.fullmatch(preset.source)) and preset.note
