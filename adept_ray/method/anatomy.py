"""Where a decoder keeps its layers, their output projections and their units.

One table of families. A family that isn't in it is refused: bit-identical expansion was checked for the
listed ones alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from adept_ray.config.errors import UserError


@dataclass(frozen=True)
class Family:
    """Module names of one architecture, as `transformers` spells them."""

    layers: str = "model.layers"
    outputs: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    """Projections that write to the residual stream: with all of them zero a layer is the identity."""
    per_layer_config: tuple[str, ...] = ("layer_types",)
    """Config lists with one entry per layer."""
    logits_changed_by: tuple[str, ...] = ()
    """Config numbers by which logits are changed behind the output head, unless they are None or 1."""
    closing_norms: tuple[str, ...] = ()
    """Norms that what the output projections make passes on its way to the stream, in some families."""
    norm_offset: float = 0.0
    """What such a norm adds to its weight before it multiplies by that."""


CLOSING_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
GEMMA = Family(logits_changed_by=("final_logit_softcapping",), closing_norms=CLOSING_NORMS, norm_offset=1.0)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "phi3"), Family()),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
    "olmo2": Family(closing_norms=CLOSING_NORMS),
    "granite": Family(logits_changed_by=("logits_scaling",)),
    # SmolLM3 leaves rotary embeddings out of some layers, by a list of its own.
    "smollm3": Family(per_layer_config=("layer_types", "no_rope_layers")),
}


def family_of(model: nn.Module) -> Family:
    """The table's entry for a Hugging Face causal LM.

    Raises :class:`UserError` that names the family and the supported ones.
    """
    return family_of_config(getattr(model, "config", model))


def family_of_config(config: object) -> Family:
    """The table's entry for a Hugging Face config, whatever its class; raises as :func:`family_of` does.

    A config class that came with a model belongs to the family whose class it is derived from.
    """
    kinds = [getattr(config, "model_type", type(config).__name__)]
    if not type(config).__module__.startswith("transformers."):
        kinds += [getattr(kind, "model_type", None) for kind in type(config).__mro__]
    for kind in kinds:
        if kind in FAMILIES:
            return FAMILIES[kind]
    known = ", ".join(sorted(FAMILIES))
    raise UserError(f"models of family '{kinds[0]}' are not supported; supported: {known}")


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of `model`, in order. Raises :class:`UserError` where it has none."""
    if hasattr(model, "get_base_model"):  # one of PEFT's wrappers, which may put a prompt before a text
        raise UserError(f"{type(model).__name__} wraps a model: give its get_base_model()")
    layers = get_part(model, family_of(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def output_projections(model: nn.Module, layer: nn.Module) -> list[nn.Module]:
    """The modules of `layer` that write to the residual stream."""
    return [get_part(layer, name) for name in family_of(model).outputs]


def list_dialled(model: nn.Module, layers: Iterable[int]) -> set[str]:
    """Full names of the parameters in proportion to which the given layers add to the residual stream.

    Those of the output projections. Where a norm follows, whose output is as large whatever enters it, those
    of the norm.
    """
    family = family_of(model)
    last = family.closing_norms or family.outputs
    return {name for name in layer_parameters(model, layers) if unit_of(name).endswith(last)}


def get_part(module: nn.Module, name: str) -> nn.Module:
    """A module within another one. Raises :class:`UserError`: code that comes with a model may lack it."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise UserError(
            f"{type(module).__name__} has no '{name}', which its family's models have: "
            "give a model of transformers' own class"
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
