"""How readily a copy of each layer would take up the domain, before there is any copy (ours; pure torch).

A fresh copy adds nothing, since its output projections are zero, so the first step moves these alone. A rule
like Adam's moves every scalar by the same amount. Such a step gains, per unit of rate, the mean |∂L/∂W| over
their scalars, where L is the loss on domain text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import layers_of, list_outputs
from adept_ray.method.copying import make_identity_copy
from adept_ray.method.forwards import LayerCall, record_calls, take_left
from adept_ray.method.importance import hold_evaluation_mode, require_gradients
from adept_ray.method.loss import Batch, next_token_nats
from adept_ray.method.ranks import sum_over_ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure_layer_reception(model: PreTrainedModel, batches: Iterable[Batch]) -> tuple[float, ...]:
    """Mean |∂L/∂W| over the output projections of an identity copy behind each layer.

    L is in nats per token. `batches` as in :func:`~adept_ray.method.importance.layer_importance`, of domain
    text; the output of every layer is kept for all of them. One pass of the model and its gradient, then one
    of each copy: about two training steps. The model is left as it was.
    Raises :class:`UserError` when no token is predicted.
    """
    layers = layers_of(model)
    total = torch.zeros(1, dtype=torch.float64)
    seen: list[list[tuple[LayerCall, torch.Tensor]]] = []  # batch → layer → call and ∂L/∂(its stream)
    gradients_pass = require_gradients([next(model.parameters())])
    with hold_evaluation_mode(model), gradients_pass:
        for batch in batches:
            calls: list[LayerCall] = []
            with record_calls(layers, calls):
                nats, tokens = next_token_nats(model, batch)
            total += tokens.sum().double().cpu()
            slopes = torch.autograd.grad(nats.sum(), [call.stream for call in calls])
            found = [replace(call, stream=call.stream.detach()) for call in calls]
            seen.append(list(zip(found, slopes, strict=True)))
        device = next(model.parameters()).device
        total = sum_over_ranks(total, device)
        if total == 0:
            raise UserError("the domain text predicts no token: give sequences of at least two real tokens")
        return tuple(
            measure_copy_reception(model, layer, [batch[at] for batch in seen]) / total.item()
            for at, layer in enumerate(layers)
        )


def measure_copy_reception(
    model: PreTrainedModel, layer: nn.Module, seen: Iterable[tuple[LayerCall, torch.Tensor]]
) -> float:
    """Mean |∂L/∂W| of a copy of `layer`, L summed over tokens.

    `seen` holds the layer's call in each batch, and ∂L/∂(what leaves the copy).
    """
    copy = make_identity_copy(model, layer)
    weights = list(list_outputs(model, copy).values())
    gradients = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    copy.requires_grad_(False)
    with require_gradients(weights):
        for call, slope in seen:
            out = take_left(copy(call.stream, *call.others, **call.arguments))
            for sum_, gradient in zip(gradients, torch.autograd.grad(out, weights, slope), strict=True):
                sum_ += gradient
    whole = [sum_over_ranks(gradient) for gradient in gradients]
    size = sum(gradient.numel() for gradient in whole)
    return sum(gradient.abs().sum(dtype=torch.float64).item() for gradient in whole) / size
