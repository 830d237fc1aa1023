"""Where a decoder keeps its layers, their output projections and their units.

Families of a table, and any other one as it is measured on a tiny model of its kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method.families import FAMILIES, Family, is_named, select_parameters
from adept_ray.method.measuring import measure_family
from adept_ray.method.twins import compute_plainly

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


OWN_CLASS = "give a model of transformers' own class"
# What a config says of other things than what a model is made of.
PASSING = ("architectures", "dtype", "transformers_version", "use_cache", "_name_or_path")
_KNOWN: dict[str, Family | UserError] = {}  # what was measured in this process, by the config's content


def family_of(model: nn.Module) -> Family:
    """The family of a Hugging Face causal LM, from the table or measured.

    Raises :class:`UserError` that says what is in the way where layers of its kind can't be expanded.
    """
    return family_of_config(getattr(model, "config", model))


def family_of_config(config: object) -> Family:
    """The family of a Hugging Face config, whatever its class; raises as :func:`family_of` does.

    A config class that came with a model belongs to the family whose class it is derived from. What isn't in
    the table is measured once for each config.
    """
    if known := find_listed_family(config):
        return known
    kind = getattr(config, "model_type", type(config).__name__)
    if not hasattr(config, "to_json_string") or not type(config).__module__.startswith("transformers."):
        raise UserError(
            f"models of type '{kind}' are not supported: what isn't transformers' own code has to be derived "
            f"from one of {', '.join(sorted(FAMILIES))}"
        )
    own = cast("PreTrainedConfig", config)
    content = describe_content(own)
    if content not in _KNOWN:
        _KNOWN[content] = _try_measuring(own)
    found = _KNOWN[content]
    if isinstance(found, UserError):
        raise UserError(str(found))
    return found


def keep_family(model: PreTrainedModel, family: Family) -> None:
    """Let `model`, whose config was changed when layers were added, be of the `family` that it was before."""
    if not find_listed_family(model.config):
        _KNOWN[describe_content(model.config)] = family


def find_listed_family(config: object) -> Family | None:
    """The table's entry for a Hugging Face config; None where it has none."""
    kinds = [getattr(config, "model_type", None)]
    if not type(config).__module__.startswith("transformers."):
        kinds += [getattr(kind, "model_type", None) for kind in type(config).__mro__]
    return next((FAMILIES[kind] for kind in kinds if kind in FAMILIES), None)


def describe_content(config: PreTrainedConfig) -> str:
    """The content of a config, which is the same for all models that are made alike."""
    values = {name: value for name, value in config.to_dict().items() if name not in PASSING}
    return json.dumps([type(config).__name__, values], sort_keys=True, default=str)


def _try_measuring(config: PreTrainedConfig) -> Family | UserError:
    try:
        with compute_plainly():
            return measure_family(config)
    except UserError as problem:
        return problem


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of `model`, in order. Raises :class:`UserError` where it has none."""
    if hasattr(model, "get_base_model"):  # one of PEFT's wrappers, which may put a prompt before a text
        raise UserError(f"{type(model).__name__} wraps a model: give its get_base_model()")
    layers = get_part(model, family_of(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def list_outputs(model: nn.Module, layer: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `layer` that write to the residual stream, by their name in it.

    Raises :class:`UserError` where it has none: code that came with a model may name them otherwise.
    """
    outputs = family_of(model).outputs
    found = select_parameters(layer, outputs)
    if not found:
        raise UserError(f"{type(layer).__name__} has none of {', '.join(outputs)}: {OWN_CLASS}")
    return found


def list_dialled(model: nn.Module, layers: Iterable[int]) -> dict[str, float]:
    """Full names of the parameters in proportion to which the given layers add to the residual stream.

    Those of the output projections. Where a norm follows, whose output is as large whatever enters it, those
    of the norm. With each goes what is added to it before it multiplies.
    """
    family, own = family_of(model), {name: name_within(name) for name in layer_parameters(model, layers)}
    norms = {name for name, short in own.items() if is_named(short, family.closing_norms)}
    plain = {
        name
        for name, short in own.items()
        if is_named(short, family.outputs) and not is_named(short, family.normed)
    }
    return {**dict.fromkeys(plain, 0.0), **dict.fromkeys(norms, family.norm_offset)}


def get_part(module: nn.Module, name: str) -> nn.Module:
    """A module within another one. Raises :class:`UserError`: code that comes with a model may lack it."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise UserError(
            f"{type(module).__name__} has no '{name}', which its family's models have: {OWN_CLASS}"
        ) from None


def layer_parameters(model: nn.Module, layers: Iterable[int]) -> dict[str, nn.Parameter]:
    """Parameters of the given layers by their full name, in the model's order.

    Raises :class:`UserError` for a layer id that doesn't exist.
    """
    prefix, every = family_of(model).layers, layers_of(model)
    wanted = sorted(set(layers))
    for layer in wanted:
        if not 0 <= layer < len(every):
            raise UserError(f"layer {layer} does not exist: the model has layers 0 to {len(every) - 1}")
    return {
        f"{prefix}.{layer}.{name}": parameter
        for layer in wanted
        for name, parameter in every[layer].named_parameters()
    }


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by their full name; shared ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def unit_of(parameter: str) -> str:
    """The unit a parameter belongs to: the module that owns it (a weight and its bias are one unit)."""
    return parameter.rpartition(".")[0]


def layer_of(name: str) -> int:
    """The layer id in the full name of a parameter or unit."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def name_within(name: str) -> str:
    """The name in its layer of a parameter or unit with that full name."""
    parts = name.split(".")
    return ".".join(parts[next(i for i, part in enumerate(parts) if part.isdigit()) + 1 :])


def has_layer(name: str) -> bool:
    """Whether a parameter lies in a layer: embeddings, the final norm and the head don't."""
    return any(part.isdigit() for part in name.split("."))


def is_norm(unit: str) -> bool:
    """Whether a unit is a normalisation (scales a vector) rather than a projection matrix."""
    return "norm" in unit.rpartition(".")[2]


def sublayer_of(parameter: str) -> str:
    """The part of a layer that a parameter belongs to: its attention, its mlp, or all its norms together.

    A norm inside of the attention (of queries, of keys) is one of the norms.
    """
    parts = parameter.split(".")
    layer = next(i for i, part in enumerate(parts) if part.isdigit())
    kind = "norm" if is_norm(unit_of(parameter)) else parts[layer + 1]
    return ".".join([*parts[: layer + 1], kind])


def name_in_layer(name: str, layer: int) -> str:
    """The full name that a parameter or unit has in another layer."""
    parts = name.split(".")
    parts[next(i for i, part in enumerate(parts) if part.isdigit())] = str(layer)
    return ".".join(parts)
