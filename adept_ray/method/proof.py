"""The proof that an expanded model computes what its backbone does, bit for bit.

What is measured on one layer of a tiny model (adept_ray.method.measuring) needn't hold for a whole model: a
config may say by a rule of which kind each layer is, and copies would shift it, or layers may hand each other
keys and values. So the tiny model is expanded as the real one will be, and made again from its config.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import (
    describe_content,
    family_of_config,
    find_listed_family,
    layer_parameters,
    layers_of,
)
from adept_ray.method.copying import add_copies, make_identity_copy
from adept_ray.method.forwards import LayerCall, record_calls, take_left
from adept_ray.method.importance import hold_evaluation_mode
from adept_ray.method.measuring import OTHER, describe_briefly
from adept_ray.method.sharding import is_sharded
from adept_ray.method.twins import (
    LENGTH,
    NOISE,
    SEQUENCES,
    build_twin,
    compute_plainly,
    draw_tokens,
    shrink_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LOOK = 16  # tokens of which a model's logits are compared
MORE = 2  # tokens that a tiny model is given one by one, with its cache
_PROVEN: dict[tuple[str, tuple[int, ...]], str] = {}  # what is in the way, or nothing


def prove_expansion(config: PreTrainedConfig, layers: tuple[int, ...] | None = None) -> None:
    """Expand a tiny model of that config by copies of `layers`, all by default, and compare what it computes.

    It must compute the same bits as before, all at once and token by token, and so must the model that its
    config describes, with its weights. Raises :class:`UserError` that says what is in the way.
    """
    chosen = tuple(range(config.num_hidden_layers)) if layers is None else layers
    key = (describe_content(config), chosen)
    if key not in _PROVEN:
        with compute_plainly():
            _PROVEN[key] = find_obstacle(config, chosen)
    if _PROVEN[key]:
        raise UserError(
            f"models of type '{config.model_type}' can't be expanded by copies of layers "
            f"{', '.join(map(str, chosen))}: {_PROVEN[key]}; {OTHER}"
        )


def check_expandable(config: PreTrainedConfig) -> None:
    """Raise :class:`UserError` where layers of a model of that config can't be copied, and say why.

    A family of the table needs no look. Of others a tiny model is expanded by copies of every layer, or of
    all but the first and the last one, which some configs have special rules for.
    """
    family_of_config(config)
    if find_listed_family(config):
        return
    try:
        prove_expansion(config)
    except UserError:
        inner = tuple(range(1, config.num_hidden_layers - 1))
        try:
            prove_expansion(config, inner)
            return
        except UserError:
            pass
        raise


def find_obstacle(config: PreTrainedConfig, layers: tuple[int, ...]) -> str:
    """What is in the way of copies of `layers` in a tiny model of that config; nothing if nothing is."""
    model = build_twin(shrink_config(config))
    ids = draw_tokens(SEQUENCES, LENGTH)
    before, step_by_step = compute_logits(model, ids), try_steps(model, ids)
    expanded = copy.deepcopy(model)
    try:
        added = add_copies(expanded, layers)
    except Exception as problem:  # configs check what they are given, each in its way
        return f"its config doesn't take what such a model needs ({describe_briefly(problem)})"
    try:
        after = compute_logits(expanded, ids)
    except Exception as problem:
        return f"with copies it doesn't run ({describe_briefly(problem)})"
    if not torch.equal(before, after):
        return (
            "what a layer computes depends on its number, or on what another layer hands it beside the stream"
        )
    steps = try_steps(expanded, ids)
    with torch.no_grad():  # as a training would, so that it shows what the copies do
        for parameter in layer_parameters(expanded, added).values():
            parameter.add_(torch.randn_like(parameter), alpha=NOISE)
    if obstacle := find_config_obstacle(expanded, ids):
        return obstacle
    if step_by_step is not None and (steps is None or not torch.equal(steps, step_by_step)):
        return "layers use each other's part of the cache"
    return ""


def find_config_obstacle(expanded: PreTrainedModel, ids: torch.Tensor) -> str:
    """What is in the way of making an `expanded` model again from its config, to compute the same."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            expanded.config.save_pretrained(folder)
            config = type(expanded.config).from_pretrained(folder)
        again = type(expanded)._from_config(config, dtype=expanded.dtype).eval()
    except Exception as problem:
        return f"its config can't describe it with copies ({describe_briefly(problem)})"
    tensors, own = expanded.state_dict(), again.state_dict()
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in own.items()}:
        return "its config says by a rule of which kind a layer is, and copies would shift the layers behind"
    again.load_state_dict(tensors)
    if not torch.equal(compute_logits(again, ids), compute_logits(expanded, ids)):
        return "its config says by a rule what a layer does, and copies would shift the layers behind"
    return ""


def compute_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of token ids [B, T] in one pass."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def try_steps(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor | None:
    """Logits [B, MORE, V] of the last tokens, one by one, with the model's cache; None where that fails."""
    try:
        with torch.no_grad():
            found = model(input_ids=ids[:, :-MORE], use_cache=True)
            steps = []
            for at in range(ids.shape[1] - MORE, ids.shape[1]):
                found = model(
                    input_ids=ids[:, at : at + 1], past_key_values=found.past_key_values, use_cache=True
                )
                steps.append(found.logits)
    except Exception:  # a model may have no cache, or one of its own kind
        return None
    return torch.cat(steps, dim=1)


@contextmanager
def compare_logits(model: PreTrainedModel) -> Iterator[None]:
    """Within this `model` may be changed so that it computes the same. Raises :class:`UserError` if not.

    A model without data, or in pieces, isn't looked at.
    """
    if not _has_whole_weights(model):
        yield
        return
    ids = _take_tokens(model)
    with hold_evaluation_mode(model):
        before = compute_logits(model, ids)
    yield
    with hold_evaluation_mode(model):
        after = compute_logits(model, ids)
    # Weights that aren't numbers are told of by those who compute a loss with them.
    if not ((before == after) | (before.isnan() & after.isnan())).all():
        apart = float((before - after).abs().max())
        raise UserError(
            f"the expanded model computes other logits than its backbone, apart by up to {apart:.3g}: layers "
            f"of type '{model.config.model_type}' with these weights can't be copied as identities; {OTHER}"
        )


def check_copies(model: PreTrainedModel) -> None:
    """Raise :class:`UserError` unless an identity copy of each layer of `model` returns what enters it.

    A few tokens are passed once, and then each layer's output to its copy: about two passes. So weights with
    which a copy is none, that no tiny model has, are known before anything expensive. A model in pieces, or
    without data, isn't looked at, nor one of the table's families.
    """
    if find_listed_family(model.config) or not _has_whole_weights(model):
        return
    calls: list[LayerCall] = []
    with hold_evaluation_mode(model), record_calls(layers_of(model), calls):
        compute_logits(model, _take_tokens(model))
    with torch.no_grad():
        for number, (layer, call) in enumerate(zip(layers_of(model), calls, strict=True)):
            left = take_left(
                make_identity_copy(model, layer).eval()(call.stream, *call.others, **call.arguments)
            )
            if not torch.equal(left, call.stream):
                raise UserError(
                    f"layer {number} of this model of type '{model.config.model_type}' can't be copied as an "
                    "identity: with these weights a copy changes what enters it, though its output "
                    f"projections are zero; {OTHER}"
                )


def _has_whole_weights(model: PreTrainedModel) -> bool:
    return not is_sharded(model) and not any(parameter.is_meta for parameter in model.parameters())


def _take_tokens(model: PreTrainedModel) -> torch.Tensor:
    return torch.arange(LOOK, device=model.device).remainder(model.config.vocab_size)[None]
