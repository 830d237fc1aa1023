"""What a config says of single layers, when layers are copied: each copy inherits its source's entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Fields that hold the numbers of certain layers.
NUMBERS = (
    "mlp_only_layers",
    "moe_layers",
    "full_attn_idxs",
    "attn_layer_indices",
    "hybrid_layer_ids",
    "cross_attention_layers",
    "ple_layer_ids",
)
# Fields that say of how many of the first layers something holds, or from the how-many-eth on.
COUNTS = (
    "first_k_dense_replace",
    "num_dense_layers",
    "max_window_layers",
    "moe_layer_start_index",
)
LASTS = ("moe_layer_end_index",)  # the number of the last layer of which something holds
TAILS = ("num_kv_shared_layers",)  # of how many of the last layers it holds
PATTERNS = ("block_types",)  # lists that begin anew where they end before the layers do
DEPTHS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "num_blocks")
BY_LAYER = "per_layer_config"  # transformers' field for what single layers have otherwise, by their number
NO_ENTRIES = (*NUMBERS, *PATTERNS, "architectures")
IDS = ("token_id", "token_ids")


def list_layer_entries(config: PreTrainedConfig) -> tuple[str, ...]:
    """Names of the lists of a config that have an entry for each layer."""
    return tuple(
        name
        for name, value in config.to_dict().items()
        if isinstance(value, (list, tuple))
        and len(value) == config.num_hidden_layers
        and name not in NO_ENTRIES
        and not name.endswith(IDS)
    )


def extend_config(config: PreTrainedConfig, per_layer: Sequence[str], sources: Sequence[int]) -> None:
    """Make the config describe layers made from `sources`, in place: their count and what it says of each."""
    before, depth = config.num_hidden_layers, len(sources)
    changed: dict[str, object] = {name: depth for name in DEPTHS if getattr(config, name, None) == before}
    # First all values of old, since one field may be another one's name, or follow from it.
    for name in per_layer:
        entries = getattr(config, name, None)
        if entries is not None:
            changed[name] = [entries[source] for source in sources]
    changed |= _extend_numbers(config, sources)
    by_layer = _read_by_layer(config)
    if by_layer:
        changed[BY_LAYER] = {i: by_layer[source] for i, source in enumerate(sources) if source in by_layer}
        setattr(config, BY_LAYER, None)
    for name, value in changed.items():
        setattr(config, name, value)


def _extend_numbers(config: PreTrainedConfig, sources: Sequence[int]) -> dict[str, object]:
    """What becomes of the fields that hold numbers of layers, or count them."""
    found: dict[str, object] = {}
    depth = config.num_hidden_layers
    for name in NUMBERS:
        if chosen := getattr(config, name, None):
            found[name] = [i for i, source in enumerate(sources) if source in chosen]
    for name in PATTERNS:
        if pattern := getattr(config, name, None):
            found[name] = [pattern[source % len(pattern)] for source in sources]
    for name in (*COUNTS, *LASTS, *TAILS):
        count = getattr(config, name, None)
        if not isinstance(count, int) or count <= 0:
            continue
        if name in COUNTS:
            found[name] = sum(source < count for source in sources) + max(0, count - depth)
        elif name in LASTS:
            found[name] = sum(source <= count for source in sources) - 1
        else:
            found[name] = sum(source >= depth - count for source in sources)
    return found


def _read_by_layer(config: PreTrainedConfig) -> Mapping[int, Any]:
    """What a config says of single layers by their number; nothing where it says that of none."""
    values = config.to_dict().get(BY_LAYER) or {}
    return {int(number): value for number, value in values.items() if str(number).isdigit()}
