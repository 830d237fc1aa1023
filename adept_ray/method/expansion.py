"""Choosing layers, copying them as identities, writing the result as a plain model folder (pure torch)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import find_listed_family, layer_of, name_in_layer
from adept_ray.method.copies import RECORD, added_layers, list_ids
from adept_ray.method.copying import add_copies, check_layers
from adept_ray.method.importance import LayerImportance, hold_evaluation_mode
from adept_ray.method.proof import LOOK, compare_logits, compute_logits, prove_expansion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the largest logit, by type of the weights
COARSE = 0.1  # the same of shorter types
CONFIG_NAME = "config.json"
REMEDY = "adapters and quantised layers have to be merged before a model is exported"


def check_depth(k: int, layers: int) -> None:
    """Raise :class:`UserError` unless 0 <= k <= number of layers."""
    if not 0 <= k <= layers:
        raise UserError(f"k is {k}: it must be at least 0 and at most the number of layers, {layers}")


def select_layers(importance: LayerImportance, k: int) -> tuple[int, ...]:
    """S_k: ids of the k least important layers, ascending. S_k is nested in S_{k+1}.

    Raises :class:`UserError` unless 0 <= k <= number of layers, and for an importance that isn't finite.
    """
    check_depth(k, len(importance.mean))
    if strange := [layer for layer, mean in enumerate(importance.mean) if not math.isfinite(mean)]:
        raise UserError(f"layer {strange[0]}: its importance is {importance.mean[strange[0]]}, not a number")
    return tuple(sorted(importance.order[:k]))


def expand(model: PreTrainedModel, layers: Sequence[int]) -> tuple[int, ...]:
    """Put an identity copy behind each of `layers` (ids in `model`), in place, and freeze all the rest.

    The paper's "Selective Expansion via Identity Copy". A copy's output projections are zero, so it adds
    exactly 0 to the residual stream and the logits stay bit-identical. Layer numbers and whatever the config
    says of single layers follow. That all of this is so is proven: for a family that isn't in the table on a
    tiny model first, which is also made again from its config, and then by the logits of a few tokens.
    Afterwards only the copies require gradients. Returns the ids of the copies, ascending.
    Raises :class:`UserError` for an unknown or a repeated layer, and that says what is in the way where these
    layers can't be copied.
    """
    chosen = check_layers(model, layers)
    if not find_listed_family(model.config):
        prove_expansion(model.config, tuple(chosen))
    with compare_logits(model):
        return add_copies(model, chosen)


def source_importance(units: Mapping[str, float], layers: Sequence[int]) -> dict[str, float]:
    """Unit importances of the fresh copies of `layers`: those of their sources, under the copies' names.

    In the copy itself every unit's |θ·g| is exactly 0 at this moment: the zeroed projections have
    θ = 0 and let no gradient upstream. `units` is what :func:`unit_importance` gave on the backbone.
    Raises :class:`UserError` when it lacks a chosen layer.
    """
    result: dict[str, float] = {}
    for source, added in zip(list_ids(layers), added_layers(layers), strict=True):
        found = {
            name_in_layer(name, added): value for name, value in units.items() if layer_of(name) == source
        }
        if not found:
            raise UserError(f"no unit importance for layer {source}: measure it before expanding")
        result |= found
    return result


def export(
    model: PreTrainedModel,
    folder: Path | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    record: Mapping[str, object] | None = None,
) -> Path:
    """Write `model` as a plain Hugging Face folder that ``AutoModelForCausalLM`` loads without remote code.

    Only a model that came with Python code of its own takes that along, and needs it.
    `record` (the added layers, where they came from, …) is written to ``adept.json`` beside it, so
    that added layers are never guessed from weights. Returns the folder.
    Raises :class:`UserError` where the folder, loaded again, isn't the model in memory.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    check_export(model, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    (folder / RECORD).write_text(json.dumps(dict(record or {}), indent=2) + "\n", encoding="utf-8")
    return folder


def check_export(model: PreTrainedModel, folder: Path) -> None:
    """Load an exported model again, on the CPU, and compare its weights and its logits with those of `model`.

    Weights are the same bits. The logits of a few tokens may be apart by what kernels of another device, or
    compiled ones, round differently. Raises :class:`UserError` for a difference, and for what can't be
    loaded.
    """
    if not (folder / CONFIG_NAME).is_file():  # transformers would make a model of the class's own sizes
        raise UserError(
            f"{folder}: the exported model can't be loaded again: it has no {CONFIG_NAME}; {REMEDY}"
        )
    try:
        loaded: Any = type(model).from_pretrained(
            folder,
            dtype="auto",
            attn_implementation=model.config._attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as problem:  # whatever transformers makes of what it wrote itself
        why = f"{type(problem).__name__}: {problem}"
        raise UserError(f"{folder}: the exported model can't be loaded again: {why}; {REMEDY}") from problem
    again, report = loaded
    if strange := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
        raise UserError(
            f"{folder}: the exported model isn't whole: {strange[0]} was lost or is in the way; {REMEDY}"
        )
    written = again.state_dict()
    for name, value in model.state_dict().items():
        if name not in written or not torch.equal(value.cpu().to(written[name].dtype), written[name]):
            raise UserError(f"{folder}: the exported {name} isn't that of the model in memory; {REMEDY}")
    ids = torch.arange(LOOK).remainder(model.config.vocab_size)[None]
    with hold_evaluation_mode(model):
        here = compute_logits(model, ids.to(model.device)).float().cpu()
        there = compute_logits(again.eval(), ids).float()
    most = ROUNDING.get(again.dtype, COARSE) * here.abs().max()
    if not (here - there).abs().max() <= most:
        raise UserError(
            f"{folder}: the exported model computes other logits than the model in memory; {REMEDY}"
        )
