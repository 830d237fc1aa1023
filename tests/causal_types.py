"""Every type of causal LM that transformers knows, as a tiny config; run, it writes docs/families.md anew."""

import copy
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from adept_ray.config.errors import UserError
from adept_ray.data.loading import silence_transformers
from adept_ray.method.expansion import expand, export
from adept_ray.method.layer_entries import BY_LAYER, COUNTS, DEPTHS, NUMBERS
from adept_ray.method.proof import check_expandable, prove_expansion
from adept_ray.method.twins import LENGTH, SEQUENCES, build_twin, draw_tokens, shrink_config

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
README = Path(__file__).parent.parent / "README.md"
PAGE = README.parent / "docs" / "families.md"
MARK = "## The table"
LAYERS = 4
ALL = (*DEPTHS, "n_layer", "n_layers", "num_layers", "encoder_layers", "num_encoder_layers")
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# What a default config lacks, or has otherwise than any model of its kind.
EXPLICIT: dict[str, dict[str, Any]] = {
    "bamba": dict(attn_layer_indices=[1, 3], num_hidden_layers=LAYERS),
    "blenderbot": dict(encoder_layers=12),
    "cohere_compass_text": dict(rope_parameters={"full_attention": ROPE, "sliding_attention": ROPE}),
    "dbrx": dict(attn_config={"rope_theta": 10000.0, "kv_n_heads": 8, "clip_qkv": 8}),
    "granitemoehybrid": dict(layer_types=["mamba", "attention"] * 16, num_hidden_layers=32),
    "deepseek_v2": dict(num_experts_per_tok=2, n_routed_experts=4, n_shared_experts=1),
    "dots1": dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1),
    "hunyuan_v1_dense": dict(head_dim=128),
    "hunyuan_v1_moe": dict(head_dim=128, num_experts=4, moe_topk=2),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 16),
    "ministral": dict(head_dim=128),
    "nemotron": dict(num_key_value_heads=48),
    "qwen2": dict(use_sliding_window=True, sliding_window=64, max_window_layers=2),
    "gpt_neo": dict(num_layers=LAYERS, attention_types=[[["global", "local"], LAYERS // 2]]),
}


def tiny_config(kind: str) -> Any:
    """A config of that type with few layers, of as many kinds as there are, and all widths small."""
    with silence_transformers():
        config = AutoConfig.for_model(kind, **EXPLICIT.get(kind, {}))
        return shrink_config(type(config).from_dict(cut_layers(config.to_dict())))


def cut_layers(values: dict[str, Any]) -> dict[str, Any]:
    """What a config says, with LAYERS of its layers: the first ones, but one of each kind there is."""
    depth = next((values[name] for name in ALL if isinstance(values.get(name), int)), 0)
    lists = [v for n, v in values.items() if is_by_layer(n, v, depth)]
    kinds = [str([each[layer] for each in lists]) for layer in range(depth)]
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    kept = sorted([*firsts, *(layer for layer in range(depth) if layer not in firsts)][:LAYERS])
    found = {name: cut_value(name, value, kept, depth) for name, value in values.items()}
    inner = [
        name for name, value in values.items() if name.endswith("_config") and value and name != BY_LAYER
    ]
    return found | {name: cut_layers(values[name]) for name in inner}


def is_by_layer(name: str, value: Any, depth: int) -> bool:
    """Whether it is a list with an entry for each of so many layers."""
    fits = isinstance(value, (list, tuple)) and len(value) == depth
    return fits and name not in NUMBERS and not name.endswith(("token_id", "architectures"))


def cut_value(name: str, value: Any, kept: list[int], depth: int) -> Any:
    """One of these values, where of so many layers those in `kept` are left."""
    if name in ALL and isinstance(value, int):
        return min(value, LAYERS)
    if name in COUNTS and value:
        return min(value, LAYERS // 2)
    if name in NUMBERS and value:
        return [at for at, layer in enumerate(kept) if layer in value]
    if name == BY_LAYER and value:
        by_number = {int(layer): each for layer, each in value.items()}
        return {at: by_number[layer] for at, layer in enumerate(kept) if layer in by_number}
    return type(value)(value[layer] for layer in kept) if is_by_layer(name, value, depth) else value


def choose_layers(config: Any) -> list[int]:
    """All layers; without the first and the last one where copies of those are refused."""
    every = list(range(config.num_hidden_layers))
    try:
        prove_expansion(config)
    except UserError:
        return every[1:-1]
    return every


def find_obstacle(kind: str) -> str:
    """What is in the way of expanding models of that type; nothing if they are expanded bit for bit.

    Every layer is copied that can be. Logits are compared before and after, and after export and reload.
    """
    try:
        config = tiny_config(kind)
        model = build_twin(config)
    except Exception as problem:
        return f"a tiny model can't be built: {type(problem).__name__}: {problem}".partition("\n")[0]
    ids = draw_tokens(SEQUENCES, LENGTH, seed=1)
    try:
        check_expandable(config)
        with torch.no_grad(), silence_transformers(), tempfile.TemporaryDirectory() as folder:
            before = model(input_ids=ids, use_cache=False).logits
            expand(model, choose_layers(config))
            after = model(input_ids=ids, use_cache=False).logits
            export(model, folder)
            again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
            # Weights lie in memory as they do in the file, and products of unaligned ones round otherwise.
            reloaded = copy.deepcopy(again)(input_ids=ids, use_cache=False).logits
    except UserError as problem:
        return re.sub(
            r"^models of type '\S+' (can't be expanded( by copies of layers [\d, ]+)?: )?", "", str(problem)
        )
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}".partition("\n")[0]
    if not torch.equal(before, after):
        return "logits change"
    return "" if torch.equal(before, reloaded) else "logits change when the model is loaded again"


def describe_obstacle(obstacle: str) -> str:
    """The same as one cell of a table in Markdown."""
    return " ".join(obstacle.replace("|", "/").replace("*", "\\*").replace("<", "‹").split())[:160]


def read_table() -> dict[str, str]:
    """Type → what is in the way, as the page says it; nothing for a type that is expanded."""
    table = PAGE.read_text().partition("|---|---|---|")[2].strip()
    lines = (line.split(" | ") for line in table.splitlines())
    return {line[0].strip("| `"): "" if line[1] == "yes" else line[2].strip("| ") for line in lines}


def write_table(rows: dict[str, str]) -> None:
    """Put the table, and how many types are expanded, into the page in place of what it has."""
    good = sum(not obstacle for obstacle in rows.values())
    table = ["| `model_type` | bit for bit | what is in the way |", "|---|---|---|"]
    table += [
        f"| `{kind}` | {'no' if why else 'yes'} | {describe_obstacle(why)} |" for kind, why in rows.items()
    ]
    head = PAGE.read_text().partition(MARK)[0]
    counts = f"Of {len(rows)} types {good} are expanded bit for bit, and {len(rows) - good} are refused."
    PAGE.write_text("\n".join([head + MARK, "", counts, "", *table, ""]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_table({kind: find_obstacle(kind) for kind in TYPES})
