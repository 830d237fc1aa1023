"""How much each layer and each unit matters on general text (stage 1 of ADEPT; pure torch).

Both measures are sums over sequences, so several processes that each see a share of the probe get
the same result as one that sees it all: when `torch.distributed` is initialised the sums are
all-reduced and every rank returns the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import family_of, layer_parameters, layers_of, unit_of
from adept_ray.method.forwards import answer_at_once, take_stream
from adept_ray.method.head import GPU_LOGITS, find_plain_head
from adept_ray.method.loss import Batch, next_token_nats
from adept_ray.method.ranks import sum_over_ranks
from adept_ray.method.sharding import disable_gradients, gather_whole, is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]
PROBE_BYTES = 2**30  # that the probe may hold beside the weights
UNIT_BYTES = 2**33  # that gradients of units may take, and the float32 sums of them


@dataclass(frozen=True)
class LayerImportance:
    """Loss increase when a layer is bypassed, in nats per predicted token."""

    mean: tuple[float, ...]
    """Per layer, I(l) = L(without l) - L_base over all predicted tokens."""
    standard_error: tuple[float, ...]
    """Per layer, over probe sequences (ratio estimate; nan with a single sequence)."""
    base_loss: float
    """Loss of the untouched model on the probe, nats per predicted token."""
    decided: tuple[int, ...] = ()
    """Layer ids, least important first, where more than the means was known (see adept_ray.method.race)."""
    reception: tuple[float, ...] = ()
    """Per layer, if measured, how readily its copy takes up the domain (see adept_ray.method.reception)."""

    @property
    def order(self) -> tuple[int, ...]:
        """Layer ids, least important first: `decided` if given, else by mean, equal ones by id."""
        by_mean = sorted(range(len(self.mean)), key=lambda layer: (self.mean[layer], layer))
        return self.decided or tuple(by_mean)


def layer_importance(
    model: nn.Module, batches: Iterable[Batch], progress: Progress | None = None
) -> LayerImportance:
    """Measure the importance of every layer by bypassing it (the paper's "Layer Importance Probing").

    `batches` yields dicts with ``input_ids`` [B, T] and optional ``attention_mask`` [B, T]. The model is
    left as it was. `progress` is called with (forward passes done, passes of this batch).
    Raises :class:`UserError` for an unsupported family or when no token is predicted.
    """
    count = len(layers_of(model))
    # Moments over sequences of d = loss increase (nats) and n = predicted tokens: Σd, Σd², Σdn per layer.
    moments = torch.zeros(3, count, dtype=torch.float64)
    totals = torch.zeros(4, dtype=torch.float64)  # Σ base nats, Σn, Σn², sequences
    for batch in batches:
        base, n, d = measure_bypass_losses(model, batch, range(count), progress)
        totals += torch.stack([base.sum(), n.sum(), (n * n).sum(), (n > 0).sum()])
        moments += torch.stack([d.sum(1), (d * d).sum(1), (d * n).sum(1)])
    device = next(model.parameters()).device
    moments, totals = sum_over_ranks(moments, device), sum_over_ranks(totals, device)
    if totals[1] == 0:
        raise UserError("the probe predicts no token: give sequences of at least two real tokens")
    mean, error = estimate_ratio(moments, totals[1:])
    return LayerImportance(tuple(mean.tolist()), tuple(error.tolist()), float(totals[0] / totals[1]))


def measure_bypass_losses(
    model: nn.Module, batch: Batch, layers: Sequence[int], progress: Progress | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss of the whole model, predicted tokens, and loss increase without each of `layers`.

    Returns float64 tensors on the CPU: nats [B], tokens [B], increase in nats [len(layers), B]. A bypass
    starts from what entered the bypassed layer in the whole model's pass, so only the layers behind it run.
    Raises :class:`UserError`, naming the layer, for a loss that isn't finite.
    """
    every, passed = list(layers_of(model)), family_of(model).passed
    increases = torch.zeros(len(layers), len(batch["input_ids"]), dtype=torch.float64)
    with disable_gradients(model), hold_evaluation_mode(model):
        inputs: list[torch.Tensor] = []
        with _record_inputs(every, inputs):
            nats, tokens = next_token_nats(model, batch)
        base = nats.double().cpu()
        if not base.isfinite().all():
            raise UserError(f"the backbone's loss on the probe isn't finite: {_find_origin(every, inputs)}")
        for done, layer in enumerate(layers):
            # The bypassed layer is the identity, and those before it would only compute its input once more.
            with answer_at_once(every[: layer + 1], inputs[layer], passed):
                increases[done] = next_token_nats(model, batch)[0].double().cpu() - base
            if not increases[done].isfinite().all():
                raise UserError(
                    f"without layer {layer} the backbone's loss on the probe isn't finite, so its importance "
                    f"can't be told; a wider --precision may help, and so may other general text"
                )
            if progress:
                progress(done + 1, len(layers))
    return base, tokens.double().cpu(), increases


def _find_origin(layers: Sequence[nn.Module], inputs: Sequence[torch.Tensor]) -> str:
    """Where numbers first aren't finite, given what enters each layer, and which weights are to blame."""
    strange = [number for number, stream in enumerate(inputs) if not stream.isfinite().all()]
    if strange[:1] == [0]:
        return "what its embedding gives isn't, so look at the embedding's weights"
    number = strange[0] - 1 if strange else len(layers) - 1
    # Of shared out weights each rank looks at its own piece: not every rank may come here.
    pieces = (
        (name, getattr(value, "to_local", lambda v=value: v)())
        for name, value in layers[number].named_parameters()
    )
    weights = [name for name, piece in pieces if not piece.isfinite().all()]
    if weights:
        return f"{weights[0]} of layer {number} holds numbers that aren't; copy or download the weights again"
    if strange:
        return f"what layer {number} gives isn't, though its weights are; a wider --precision may help"
    return "the last layer's output, the final norm's or the head's isn't; a wider --precision may help"


def limit_sequences(model: PreTrainedModel, seq_len: int, budget: int = PROBE_BYTES) -> int:
    """Largest micro-batch whose probe stays within `budget` bytes beside the weights; at least 1.

    Every token keeps the input of each of the L layers, H values of b bytes. While losses are taken there is
    a piece of logits beside them: B = ⌊(budget - piece) / T·L·H·b⌋. Where logits have to be whole, a token
    has three rows of V float32 (logits, their log-softmax, a copy): B = ⌊budget / T·(L·H·b + 3·V·4)⌋.
    """
    config = model.config
    value_bytes = next(model.parameters()).element_size()
    token = config.num_hidden_layers * config.hidden_size * value_bytes
    if find_plain_head(model) is None:
        return max(1, budget // (seq_len * (token + 3 * config.vocab_size * 4)))
    return max(1, (budget - GPU_LOGITS) // (seq_len * token))


def limit_layers(model: nn.Module, budget: int = UNIT_BYTES) -> int:
    """Layers of `model` whose gradients, and sums of them, stay within `budget` bytes; at least 1."""
    largest = max((sum(p.numel() for p in layer.parameters()) for layer in layers_of(model)), default=1)
    return max(1, budget // (8 * largest))


def estimate_ratio(moments: torch.Tensor, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean per token and its standard error from sums over sequences (ratio estimator, Cochran 1977, 6.4).

    `moments` holds Σd, Σd², Σdn [3, …] and `totals` Σn, Σn² and the number of sequences [3, …]: d is a sum
    over the tokens of a sequence and n their number. The error is nan with a single sequence.
    """
    (d, dd, dn), (n, nn_, sequences) = moments, totals
    mean = d / n
    residual = (dd - 2 * mean * dn + mean**2 * nn_).clamp_min(0)
    spread = torch.where(sequences > 1, sequences / (sequences - 1), torch.nan)
    return mean, (residual * spread).sqrt() / n


@contextmanager
def hold_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Measure without dropout, whatever mode each module is in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _record_inputs(layers: Sequence[nn.Module], inputs: list[torch.Tensor]) -> Iterator[None]:
    """Append the residual stream that enters each layer to `inputs`, in layer order."""

    def note(_: nn.Module, args: tuple[object, ...], options: Mapping[str, object]) -> None:
        inputs.append(take_stream(args, options))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def unit_importance(
    model: nn.Module, batches: Iterable[Batch], layers: Sequence[int], at_once: int | None = None
) -> dict[str, float]:
    """Importance of every unit of `layers`: mean over its scalars j of |θ_j ∂L/∂θ_j|.

    First-order Taylor, the paper's "Unit-wise Neuron Decoupling".
    L is the mean next-token loss over the whole probe. Returns full parameter name → importance of
    the unit it belongs to, so a weight and its bias share one number. Gradients of `at_once` layers, all by
    default, are kept at a time: each such share takes passes of its own.
    Raises :class:`UserError` for an unsupported family, an unknown layer or when no token is predicted.
    """
    every = list(batches)
    found: dict[str, float] = {}
    for first in range(0, len(layers), at_once or max(1, len(layers))):
        share = layers[first : first + (at_once or len(layers))]
        found |= measure_taylor_importance(model, every, layer_parameters(model, share), unit_of)
    return found


def measure_taylor_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    parameters: Mapping[str, nn.Parameter],
    group_of: Callable[[str], str],
) -> dict[str, float]:
    """:func:`unit_importance` of any `parameters` (by full name), in the groups that `group_of` gives names.

    Afterwards every ``.grad`` is what it was before, so no gradient of the probe can reach an optimizer.
    Raises :class:`UserError` when no token is predicted.
    """
    if not parameters:
        return {}
    gradients = [torch.zeros_like(p, dtype=torch.float32) for p in parameters.values()]
    total = torch.zeros(1, dtype=torch.float64)
    with require_gradients(parameters.values()), hold_evaluation_mode(model):
        for batch in batches:
            nats, tokens = next_token_nats(model, batch)
            total += tokens.sum().double().cpu()
            slopes = compute_gradient(nats.sum(), model, list(parameters.values()))
            for sum_, gradient in zip(gradients, slopes, strict=True):
                sum_ += gradient
    total = sum_over_ranks(total, next(model.parameters()).device)
    if total == 0:
        raise UserError("the probe predicts no token: give sequences of at least two real tokens")
    sums: dict[str, list[float]] = {}  # group → [Σ|θ g|, number of scalars]
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        gradient = (gradient if is_sharded(model) else sum_over_ranks(gradient)) / total.item()
        contribution = gather_whole(
            (parameter.detach().float() * gradient).abs().sum(dtype=torch.float64)
        ).item()
        group = sums.setdefault(group_of(name), [0.0, 0.0])
        group[0] += contribution
        group[1] += parameter.numel()
    return {name: sums[group_of(name)][0] / sums[group_of(name)][1] for name in parameters}


def compute_gradient(
    loss: torch.Tensor, model: nn.Module, parameters: Sequence[nn.Parameter]
) -> Sequence[torch.Tensor]:
    """Gradient of `loss` in `parameters`, summed over ranks where those hold pieces of the model."""
    if not is_sharded(model):
        return torch.autograd.grad(loss, parameters)
    # The pieces are no part of the graph. FSDP puts the layers together, and writes to the pieces' ``.grad``.
    every = list(model.parameters())
    kept = [parameter.grad for parameter in every]
    for parameter in every:
        parameter.grad = None
    loss.backward()
    found = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(every, kept, strict=True):
        parameter.grad = gradient
    slopes = [gradient for gradient in found if gradient is not None]
    assert len(slopes) == len(found)
    return slopes


@contextmanager
def require_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
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
