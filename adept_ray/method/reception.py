"""How readily a copy of each layer would take up the domain, before there is any copy (ours; pure torch).

A fresh copy adds nothing, since its output projections are zero, so the first step moves these alone. The
mean |∂L/∂W| over their scalars, L the loss on domain text, is what such a step (of a rule like Adam's, that
moves every scalar by the same amount) gains per unit of rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import layers_of, output_projections
from adept_ray.method.expansion import make_identity_copy
from adept_ray.method.importance import hold_evaluation_mode, require_gradients
from adept_ray.method.loss import Batch, next_token_nats
from adept_ray.method.ranks import sum_over_ranks


def measure_layer_reception(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, ...]:
    """Mean |∂L/∂W| over the output projections of an identity copy behind each layer.

    L is in nats per token. `batches` as in :func:`~adept_ray.method.importance.layer_importance`, of domain text;
    the output of every layer is kept for all of them. One pass of the model and its gradient, then one of
    each copy: about two training steps. The model is left as it was.
    Raises :class:`UserError` when no token is predicted.
    """
    layers = layers_of(model)
    total = torch.zeros(1, dtype=torch.float64)
    seen: list[list[tuple[torch.Tensor, torch.Tensor, Mapping[str, Any]]]] = []  # batch → layer
    with (
        hold_evaluation_mode(model),
        require_gradients([next(model.parameters())]),
    ):  # so that gradients pass at all
        for batch in batches:
            outputs: list[tuple[torch.Tensor, Mapping[str, Any]]] = []
            with record_outputs(layers, outputs):
                nats, tokens = next_token_nats(model, batch)
            total += tokens.sum().double().cpu()
            streams = [stream for stream, _ in outputs]
            slopes = torch.autograd.grad(nats.sum(), streams)
            seen.append(
                [
                    (stream.detach(), slope, call)
                    for (stream, call), slope in zip(outputs, slopes, strict=True)
                ]
            )
        device = next(model.parameters()).device
        total = sum_over_ranks(total, device)
        if total == 0:
            raise UserError("the domain text predicts no token: give sequences of at least two real tokens")
        return tuple(
            measure_copy_reception(model, layer, [batch[at] for batch in seen]) / total.item()
            for at, layer in enumerate(layers)
        )


def measure_copy_reception(
    model: nn.Module,
    layer: nn.Module,
    seen: Iterable[tuple[torch.Tensor, torch.Tensor, Mapping[str, Any]]],
) -> float:
    """Mean |∂L/∂W| of a copy of `layer`, L summed over tokens.

    `seen` holds what enters the copy in a batch, ∂L/∂(what leaves it), and the layer's other arguments.
    """
    copy = make_identity_copy(model, layer)
    weights = [weight for projection in output_projections(model, copy) for weight in projection.parameters()]
    gradients = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    copy.requires_grad_(False)
    with require_gradients(weights):
        for stream, slope, call in seen:
            out = copy(stream, **call)
            out = out if torch.is_tensor(out) else out[0]
            for sum_, gradient in zip(gradients, torch.autograd.grad(out, weights, slope), strict=True):
                sum_ += gradient
    whole = [sum_over_ranks(gradient) for gradient in gradients]
    size = sum(gradient.numel() for gradient in whole)
    return sum(gradient.abs().sum(dtype=torch.float64).item() for gradient in whole) / size


@contextmanager
def record_outputs(
    layers: nn.ModuleList, outputs: list[tuple[torch.Tensor, Mapping[str, Any]]]
) -> Iterator[None]:
    """Append what leaves each layer, and its keyword arguments, to `outputs`, in layer order."""

    def hook(_: nn.Module, __: Any, call: Mapping[str, Any], out: Any) -> None:
        outputs.append((out if torch.is_tensor(out) else out[0], call))

    hooks = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
