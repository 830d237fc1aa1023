"""What a family of models is: where it keeps its layers, and what in them writes to the residual stream."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)|(?<=\.)\d+$")


@dataclass(frozen=True)
class Family:
    """Names within one architecture, as `transformers` spells them; ``*`` stands for a number in one.

    Names within a layer are those of modules, all of whose parameters they mean, or of single parameters. A
    layer needn't have them all: layers of several kinds may be mixed.
    """

    layers: str = "model.layers"
    outputs: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    """Projections that write to the residual stream: with all of them zero a layer is the identity."""
    per_layer_config: tuple[str, ...] = ("layer_types",)
    """Config lists with one entry per layer."""
    logits_changed_by: tuple[str, ...] | None = ()
    """Config numbers by which logits are changed behind the output head, unless they are None or 1. None
    where they are changed by more than these."""
    closing_norms: tuple[str, ...] = ()
    """Norms that what output projections make passes on its way to the stream, in some families."""
    norm_offset: float = 0.0
    """What such a norm adds to its weight before it multiplies by that."""
    normed: tuple[str, ...] = ()
    """The outputs that a closing norm follows."""
    numbers: tuple[str, ...] = ("layer_idx",)
    """Attributes of modules that hold the number of their layer."""
    passed: int = 0
    """How many values a layer gives, the stream first; 0 where it gives the stream alone."""

    def describe(self) -> str:
        """What was found of it, in one line."""
        parts = {
            "layers": (self.layers,),
            "output projections": self.outputs,
            "closing norms": self.closing_norms,
            "entries of the config by layer": self.per_layer_config,
        }
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


CLOSING_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
GEMMA = Family(
    logits_changed_by=("final_logit_softcapping",),
    closing_norms=CLOSING_NORMS,
    norm_offset=1.0,
    normed=Family.outputs,
)

# What can be said without a look at a model. Whatever isn't here is measured (adept_ray.method.measuring).
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "phi3"), Family()),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
    "olmo2": Family(closing_norms=CLOSING_NORMS, normed=Family.outputs),
    "granite": Family(logits_changed_by=("logits_scaling",)),
    # SmolLM3 leaves rotary embeddings out of some layers, by a list of its own.
    "smollm3": Family(per_layer_config=("layer_types", "no_rope_layers")),
}


def generalise(name: str) -> str:
    """A name with ``*`` for the numbers in it."""
    return NUMBER.sub("*", name)


def is_named(parameter: str, names: Iterable[str]) -> bool:
    """Whether a parameter's name within its layer is one of `names`, or lies in a module of these."""
    spellings = parameter, generalise(parameter)
    return any(each == name or each.startswith(f"{name}.") for name in names for each in spellings)


def select_parameters(layer: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters of `layer`, by their name in it, that `names` mean."""
    names = tuple(names)
    return {name: each for name, each in layer.named_parameters() if is_named(name, names)}
