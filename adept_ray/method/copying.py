"""Identity copies of layers, put into a model in place (pure torch)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import (
    family_of,
    keep_family,
    layer_parameters,
    layers_of,
    list_outputs,
)
from adept_ray.method.copies import added_layers, list_ids
from adept_ray.method.layer_entries import extend_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_layers(model: PreTrainedModel, layers: Sequence[int]) -> list[int]:
    """The ids in `layers` as a list. Raises :class:`UserError` for an unknown or a repeated one."""
    chosen = list_ids(layers)
    layer_parameters(model, chosen)  # checks that they exist
    if len(set(chosen)) != len(chosen):
        raise UserError(f"layers {chosen}: each layer can be copied once")
    return chosen


def add_copies(model: PreTrainedModel, layers: Sequence[int]) -> tuple[int, ...]:
    """Put an identity copy behind each of `layers`, in place, and freeze all the rest; returns their ids.

    Layer numbers, and whatever the config says of single layers, follow. Raises :class:`UserError` for an
    unknown or a repeated layer.
    """
    family, originals, chosen = family_of(model), layers_of(model), check_layers(model, layers)
    sources = sorted([*range(len(originals)), *chosen])  # what each layer of the expanded model is made from
    added = added_layers(chosen)
    expanded = [
        make_identity_copy(model, originals[source]) if i in added else originals[source]
        for i, source in enumerate(sources)
    ]
    model.requires_grad_(False)
    for new_id, layer in enumerate(expanded):
        layer.requires_grad_(new_id in added)
        for module in layer.modules():
            for name in family.numbers:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, new_id)
    extend_config(model.config, family.per_layer_config, sources)
    keep_family(model, family)
    parent = model.get_submodule(family.layers.rpartition(".")[0])
    setattr(parent, family.layers.rpartition(".")[2], nn.ModuleList(expanded))
    return added


def make_identity_copy(model: PreTrainedModel, layer: nn.Module) -> nn.Module:
    """A copy of one of the model's layers that adds exactly 0 to the residual stream."""
    # The config stays shared: a later change of it (the attention implementation, say) is for all layers.
    twin = copy.deepcopy(layer, {id(model.config): model.config})
    with torch.no_grad():
        for parameter in list_outputs(model, twin).values():
            parameter.zero_()
    return twin
