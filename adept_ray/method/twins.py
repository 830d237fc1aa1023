"""Tiny random models of any causal LM's kind, on which it can be tried out what its layers are made of."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SPECIAL = 16  # token ids below may be those of special tokens, and no text has them
VOCABULARY = 128
SEQUENCES, LENGTH = 2, 21  # of what a twin reads: longer than its windows, no multiple of its pieces
NOISE = 0.1  # that is added to every weight: none is at its default, so that each has a say
# Sizes that fit each other: 4 heads of 16 are the stream's 64, and state-space layers make 8 of its double.
SIZES = (
    (
        64,
        "hidden_size d_model n_embd dim emb_dim word_embed_proj_dim embedding_dim embedding_size lru_width "
        "input_embedding_size output_embedding_size",
    ),
    (
        128,
        "intermediate_size n_inner dff dim_ff d_inner ffn_dim decoder_ffn_dim encoder_ffn_dim "
        "ffn_hidden_size dense_intermediate_size intermediate_size_mlp feed_forward_size mamba_d_ssm "
        "attention_hidden_size",
    ),
    (
        32,
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
        "shared_experts_intermediate_size moe_shared_expert_intermediate_size expert_ffn_hidden_size "
        "router_hidden_size attention_head_dim",
    ),
    (
        16,
        "head_dim kv_channels attention_head_size v_head_dim qk_head_dim swa_head_dim index_head_dim "
        "dim_head d_head d_kv linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_head "
        "mamba_head_dim mamba_headdim global_head_dim query_pre_attn_scalar mamba_d_state state_size "
        "ssm_state_size q_lora_rank kv_lora_rank o_lora_rank hidden_size_per_layer_input laurel_rank "
        "adapter_rank hc_lowrank gated_norm_rank block_size",
    ),
    (
        8,
        "mamba_n_heads mamba_num_heads num_heads n_mamba_heads qk_rope_head_dim qk_nope_head_dim rotary_dim "
        "time_step_rank mamba_dt_rank d_rel",
    ),
    (
        4,
        "num_attention_heads n_head n_heads attention_heads decoder_attention_heads encoder_attention_heads "
        "num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads linear_num_heads "
        "linear_num_value_heads index_n_heads num_attention_heads_per_layer num_query_groups",
    ),
    (VOCABULARY, "vocab_size vocab_size_per_layer_input decoder_vocab_size"),
)
# The same of what may be fewer already: windows, experts, groups.
LIMITS = (
    (
        512,
        "max_position_embeddings n_positions n_ctx context_length max_seq_len max_target_positions "
        "encoder_hash_byte_group_vocab ngram_vocab_size_base",
    ),
    (
        8,
        "sliding_window sliding_window_size attention_window_size attention_chunk_size window_size "
        "local_attention index_topk index_block_size keep_window_size chunk_size mamba_chunk_size "
        "lsh_attn_chunk_length local_attn_chunk_length num_centroids",
    ),
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num"),
    (
        2,
        "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k top_k_experts n_group "
        "num_expert_group index_topk_blocks n_groups mamba_n_groups mamba_ngroups o_groups",
    ),
    (1, "topk_group n_shared_experts num_shared_experts moe_num_shared_experts"),
)
# Heads of keys, of which there may be as many as of queries, one, or something between.
SHARED_HEADS = {
    "num_key_value_heads": "num_attention_heads",
    "num_kv_heads": "num_attention_heads",
    "kv_n_heads": "n_heads",
    "swa_num_key_value_heads": "swa_num_attention_heads",
    "num_global_key_value_heads": "num_attention_heads",
    "linear_num_key_heads": "linear_num_value_heads",
}
EXACT = {name: size for size, names in SIZES for name in names.split()}
AT_MOST = {name: size for size, names in LIMITS for name in names.split()}


@contextmanager
def compute_plainly() -> Iterator[None]:
    """Within this tensors are real ones of the CPU, whatever mode of torch's the caller is in."""
    with (
        _disable_current_modes(),
        torch.device("cpu"),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(0)
        yield


def shrink_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config of the same kind, with as many layers of the same kinds, and all widths small."""
    values = shrink_values(config.to_dict())
    found = type(config).from_dict(values)
    found._attn_implementation = "eager" if config._attn_implementation == "eager" else None
    return found


def shrink_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of sizes, made small; and what of other configs it holds."""
    found = {name: shrink_value(name, value) for name, value in values.items()}
    for name, queries in SHARED_HEADS.items():
        if isinstance(values.get(name), int) and values[name] > 1:
            found[name] = 4 if values[name] == values.get(queries) else 2
    rotated = values.get("qk_rope_head_dim")
    if rotated and values.get("head_dim") == rotated:  # some call the turned part of a head so
        found["head_dim"] = found["qk_rope_head_dim"]
    return found


def shrink_value(name: str, value: Any) -> Any:
    """One of these values."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, Mapping):
        return shrink_rope(value) if name.startswith("rope_") else shrink_values(value)
    if isinstance(value, (list, tuple)):
        return type(value)(shrink_value(name, each) for each in value)
    if isinstance(value, int):
        if name.endswith(("token_id", "token_index")) and value >= SPECIAL:
            return value % SPECIAL
        if name in EXACT and value > 0:
            return EXACT[name]
        if name in AT_MOST and value > 0:
            return min(value, AT_MOST[name])
    return value


def shrink_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary embeddings of such a head: what goes by its width, a factor for each frequency, is left out."""
    found = {name: shrink_rope(v) if isinstance(v, Mapping) else v for name, v in values.items()}
    if "long_factor" in found:
        kept = ("rope_theta", "partial_rotary_factor")
        return {"rope_type": "default", **{name: found[name] for name in kept if name in found}}
    if "mrope_section" in found:
        found["mrope_section"] = [2, 1, 1]
    return found


def build_twin(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random model of a tiny `config` in eval mode; no weight is at its default."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=NOISE)
    return model.eval()


def draw_tokens(sequences: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random ids [B, T] of no special token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SPECIAL, VOCABULARY, (sequences, length), generator=generator)
