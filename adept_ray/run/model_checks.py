"""Checks of a backbone before anything is started: config, names and shapes of weights, tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adept_ray.config.errors import UserError
from adept_ray.data.loading import Backbone, check_tokenizer, check_weights, load_config
from adept_ray.method.proof import check_expandable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def load_checked_config(backbone: Backbone, seq_len: int) -> PreTrainedConfig:
    """The config of a backbone, whose files are checked with it where they are here.

    Raises :class:`UserError` for a family whose layers can't be copied, for quantised weights, for blocks
    longer than the model can take, and for weights or a tokenizer that don't belong to it.
    """
    config = load_config(backbone)
    if quantised := getattr(config, "quantization_config", None):
        how = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        raise UserError(
            f"{backbone.name}: its weights are quantised ({how}), and copies of those can't be trained; give "
            "the model that it was made of"
        )
    check_expandable(config)
    most = getattr(config, "max_position_embeddings", None)
    if most and seq_len > most:
        raise UserError(f"--seq-len {seq_len}: {backbone.name} takes at most {most} tokens")
    if backbone.revision is None:  # those of the hub may still be there
        check_weights(backbone)
        check_tokenizer(backbone, config.vocab_size)
    return config
