"""Architectures of the paper's backbones, as their publishers give them in config.json.

https://huggingface.co/Qwen/Qwen3-8B-Base, …/Qwen3-4B-Base, …/Qwen3-1.7B-Base, meta-llama/Meta-Llama-3-8B
and HuggingFaceTB/SmolLM2-135M
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

_QWEN3 = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-1.7b": _QWEN3
    | {
        "num_hidden_layers": 28,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "qwen3-4b": _QWEN3
    | {
        "num_hidden_layers": 36,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": _QWEN3
    | {
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama3-8b": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
}


def config_of(name: str) -> Any:
    """The Hugging Face config of a preset's backbone, without a hub."""
    return AutoConfig.for_model("qwen3" if name.startswith("qwen3") else "llama", **SHAPES[name])
