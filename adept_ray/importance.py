"""How much each layer and each unit matters on general text (stage 1 of ADEPT; pure torch).

Both measures are sums over sequences, so several processes that each see a share of the probe get
the same result as one that sees it all: when `torch.distributed` is initialised the sums are
all-reduced and every rank returns the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from adept_ray.anatomy import layer_parameters, layers_of, unit_of
from adept_ray.config import UserError
from adept_ray.loss import Batch, next_token_nats
from adept_ray.ranks import summed

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerImportance:
    """Loss increase when a layer is bypassed, in nats per predicted token."""

    mean: tuple[float, ...]
    """Per layer, I(l) = L(without l) - L_base over all predicted tokens."""
    standard_error: tuple[float, ...]
    """Per layer, over probe sequences (ratio estimate; nan with a single sequence)."""
    base_loss: float
    """Loss of the untouched model on the probe, nats per predicted token."""

    @property
    def order(self) -> tuple[int, ...]:
        """Layer ids, least important first; equal ones by id."""
        return tuple(sorted(range(len(self.mean)), key=lambda layer: (self.mean[layer], layer)))


def layer_importance(
    model: nn.Module, batches: Iterable[Batch], progress: Progress | None = None
) -> LayerImportance:
    """Measure the importance of every layer by bypassing it (the paper's "Layer Importance Probing").

    `batches` yields dicts with ``input_ids`` [B, T] and optional ``attention_mask`` [B, T]. The model is
    left as it was. `progress` is called with (forward passes done, passes of this batch).
    Raises :class:`UserError` for an unsupported family or when no token is predicted.
    """
    layers = layers_of(model)
    # Moments over sequences of d = loss increase (nats) and n = predicted tokens: Σd, Σd², Σdn per layer.
    moments = torch.zeros(3, len(layers), dtype=torch.float64)
    totals = torch.zeros(4, dtype=torch.float64)  # Σ base nats, Σn, Σn², sequences
    with torch.inference_mode(), _evaluating(model):
        for batch in batches:
            inputs: list[torch.Tensor] = []
            with _recording_inputs(layers, inputs):
                base, tokens = next_token_nats(model, batch)
            base, n = base.double().cpu(), tokens.double().cpu()
            totals += torch.stack([base.sum(), n.sum(), (n * n).sum(), (n > 0).sum()])
            for layer in range(len(layers)):
                with _bypassed(layers, layer, inputs[layer]):
                    d = next_token_nats(model, batch)[0].double().cpu() - base
                moments[:, layer] += torch.stack([d.sum(), (d * d).sum(), (d * n).sum()])
                if progress:
                    progress(layer + 1, len(layers))
    device = next(model.parameters()).device
    moments, totals = summed(moments, device), summed(totals, device)
    if totals[1] == 0:
        raise UserError("the probe predicts no token: give sequences of at least two real tokens")
    return _layer_importance(moments, totals)


def _layer_importance(moments: torch.Tensor, totals: torch.Tensor) -> LayerImportance:
    """Means and their standard errors from the summed moments (ratio estimator, Cochran 1977, 6.4)."""
    (d, dd, dn), (base, n, nn_, sequences) = moments, totals
    mean = d / n
    residual = (dd - 2 * mean * dn + mean**2 * nn_).clamp_min(0)
    spread = sequences / (sequences - 1) if sequences > 1 else torch.nan
    error = (residual * spread).sqrt() / n
    return LayerImportance(tuple(mean.tolist()), tuple(error.tolist()), float(base / n))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Measure without dropout, whatever mode each module is in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _recording_inputs(layers: nn.ModuleList, inputs: list[torch.Tensor]) -> Iterator[None]:
    """Append the residual stream that enters each layer to `inputs`, in layer order."""
    hooks = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _bypassed(layers: nn.ModuleList, bypassed: int, stream: torch.Tensor) -> Iterator[None]:
    """Run the model with layer `bypassed` replaced by the identity on the residual stream.

    `stream` is what enters that layer. The layers before it would only compute `stream` once more,
    so all of them answer with it at once; embeddings, masks, final norm and head run as always.
    """
    replaced = layers[: bypassed + 1]
    for layer in replaced:
        layer.forward = lambda *_, **__: stream
    try:
        yield
    finally:
        for layer in replaced:
            del layer.forward


def unit_importance(model: nn.Module, batches: Iterable[Batch], layers: Sequence[int]) -> dict[str, float]:
    """Importance of every unit of `layers`: mean over its scalars j of |θ_j ∂L/∂θ_j|.

    First-order Taylor, the paper's "Unit-wise Neuron Decoupling".
    L is the mean next-token loss over the whole probe. Returns full parameter name → importance of
    the unit it belongs to, so a weight and its bias share one number. Gradients are taken with
    ``torch.autograd.grad``: nothing is written to ``.grad``, so none can reach an optimizer.
    Raises :class:`UserError` for an unsupported family, an unknown layer or when no token is predicted.
    """
    parameters = layer_parameters(model, layers)
    if not parameters:
        return {}
    gradients = [torch.zeros_like(p, dtype=torch.float32) for p in parameters.values()]
    total = torch.zeros(1, dtype=torch.float64)
    with _requiring_grad(parameters.values()), _evaluating(model):
        for batch in batches:
            nats, tokens = next_token_nats(model, batch)
            total += tokens.sum().double().cpu()
            for sum_, gradient in zip(
                gradients, torch.autograd.grad(nats.sum(), list(parameters.values())), strict=True
            ):
                sum_ += gradient
    total = summed(total, gradients[0].device)
    if total == 0:
        raise UserError("the probe predicts no token: give sequences of at least two real tokens")
    sums: dict[str, list[float]] = {}  # unit → [Σ|θ g|, number of scalars]
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        gradient = summed(gradient) / total.item()
        contribution = (parameter.detach().float() * gradient).abs().sum(dtype=torch.float64).item()
        unit = sums.setdefault(unit_of(name), [0.0, 0.0])
        unit[0] += contribution
        unit[1] += parameter.numel()
    return {name: sums[unit_of(name)][0] / sums[unit_of(name)][1] for name in parameters}


@contextmanager
def _requiring_grad(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach `parameters` for a while, frozen or not."""
    before = [(p, p.requires_grad) for p in parameters]
    for parameter, _ in before:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
