"""What a training trains: the one place where methods differ for the training loop (pure torch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from adept_ray.config.specs import TrainingSpec
from adept_ray.method import lora
from adept_ray.method.anatomy import has_layer, layer_of, layer_parameters, layers_of, trainable_parameters
from adept_ray.method.expansion import expand, source_importance
from adept_ray.method.importance import measure_taylor_importance
from adept_ray.method.loss import Batch, ComputePolicy, get_compute_policy, set_compute_policy
from adept_ray.method.rates import average_by_sublayer, unit_scales
from adept_ray.method.sharding import is_sharded, shard_model


class Tuning:
    """A model made ready for training; everything but :attr:`parameters` is frozen."""

    def __init__(
        self,
        model: nn.Module,
        added: Sequence[int] = (),
        rated: Sequence[int] = (),
        importance: Mapping[str, float] | None = None,
    ) -> None:
        self.model = model
        self.added = tuple(added)
        """Ids of the copies in the expanded model, ascending."""
        self.rated = tuple(rated)
        """Ids of the layers whose units get rates by importance."""
        self.parameters = trainable_parameters(model)
        """What is trained, by full name; always float32, since small steps are lost in fewer bits."""
        lower = {p.dtype for p in model.parameters() if p.dtype.itemsize < torch.float32.itemsize}
        if lower:
            for parameter in self.parameters.values():
                parameter.data = parameter.data.float()
            set_compute_policy(model, replace(get_compute_policy(model), autocast=lower.pop()))
        # Where nothing is asked of the probe all are alike, and equal importances give equal rates.
        self.importance = dict(importance if importance is not None else dict.fromkeys(self.parameters, 0.0))
        """Parameter name → importance of its unit before the first step."""

    def scales(self, importance: Mapping[str, float], spec: TrainingSpec) -> dict[str, float]:
        """Scale of every trained parameter at these importances."""
        if spec.granularity == "block" and self.rated:
            importance = average_by_sublayer(
                importance, {name: p.numel() for name, p in self.parameters.items()}
            )
        return unit_scales(importance, spec.normalization, spec.sign)

    def observe(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after every step, while its gradients are still there."""

    def conclude(self, optimizer: torch.optim.Optimizer, general: Iterable[Batch]) -> None:
        """Called once after the last step; `general` is this rank's share of the general probe."""

    def merged(self) -> Any:
        """The model as it is exported: of one type again, the backbone's."""
        return unify_dtype(self.model)

    @contextmanager
    def as_exported(self) -> Iterator[None]:
        """Within this, what is trained has the backbone's type, as it will have in the exported model.

        So a model of fewer bits is measured in the same arithmetic before and after training. Of one that is
        shared out the type can't change; there the values are those of the type, and only norms differ.
        """
        how = get_compute_policy(self.model)
        if how.autocast is None:
            yield
            return
        if is_sharded(self.model):
            with self._rounded(how.autocast):
                yield
            return
        masters = {parameter: parameter.data for parameter in self.parameters.values()}
        for parameter, data in masters.items():
            parameter.data = data.to(how.autocast)
        set_compute_policy(self.model, replace(how, autocast=None))
        try:
            yield
        finally:
            for parameter, data in masters.items():
                parameter.data = data
            set_compute_policy(self.model, how)

    @contextmanager
    def _rounded(self, dtype: torch.dtype) -> Iterator[None]:
        """Within this, what is trained holds values of `dtype`, in a type of more bits."""
        masters = {parameter: parameter.detach().clone() for parameter in self.parameters.values()}
        with torch.no_grad():
            for parameter, master in masters.items():
                parameter.copy_(master.to(dtype))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, master in masters.items():
                    parameter.copy_(master)

    def shard(self, whole: nn.Module | None, device: torch.device) -> None:
        """Share the model out over all ranks (see :func:`adept_ray.method.sharding.shard_model`)."""
        shard_model(self.model, whole, device)
        self.parameters = trainable_parameters(self.model)

    def recompute(self) -> None:
        """Keep no activations of the layers that gradients pass: compute them again (arXiv 1604.06174)."""
        layers = layers_of(self.model)
        depths = [layer_of(name) if has_layer(name) else 0 for name in self.parameters]
        first = min(depths, default=len(layers))
        set_compute_policy(
            self.model, replace(get_compute_policy(self.model), recomputed=tuple(layers[first:]))
        )

    def compile(self) -> None:
        """Run layers by torch.compile; the passes without a gradient, which score, stay as they are."""
        set_compute_policy(
            self.model, replace(get_compute_policy(self.model), compiled=tuple(layers_of(self.model)))
        )


class Lora(Tuning):
    """LoRA on every projection."""

    def __init__(self, model: nn.Module, rank: int, seed: int) -> None:
        self._adapter = lora.add_lora(model, rank, seed)
        super().__init__(model)

    def merged(self) -> Any:
        return unify_dtype(self._adapter.merge_and_unload())


class Tasl(Lora):
    """LoRA whose skill units are consolidated at the end."""

    def __init__(self, model: nn.Module, rank: int, seed: int) -> None:
        super().__init__(model, rank, seed)
        self._before = self._copies()

    def shard(self, whole: nn.Module | None, device: torch.device) -> None:
        super().shard(whole, device)
        self._before = self._copies()

    def _copies(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def observe(self, optimizer: torch.optim.Optimizer) -> None:
        lora.smooth_sensitivity(self.parameters, optimizer)

    def conclude(self, optimizer: torch.optim.Optimizer, general: Iterable[Batch]) -> None:
        found = measure_taylor_importance(self.model, general, self.parameters, lora.skill_of)
        by_skill = {lora.skill_of(name): value for name, value in found.items()}
        lora.consolidate_skills(
            self.parameters, self._before, lora.domain_importance(self.parameters, optimizer), by_skill
        )


def unify_dtype(model: Any) -> Any:
    """`model`, in place, with all parameters in the type that it computes in."""
    dtype = get_compute_policy(model).autocast
    if dtype:
        for parameter in model.parameters():  # not buffers: rotary frequencies are float32 in every model
            parameter.data = parameter.data.to(dtype)
    set_compute_policy(model, ComputePolicy())
    return model


def build_tuning(
    model: nn.Module, spec: TrainingSpec, layers: Sequence[int], units: Mapping[str, float], seed: int
) -> Tuning:
    """Change `model` in place into what `spec` trains, and freeze the rest.

    `layers` are the placed layers of the backbone, `units` its unit importances (parameter name → value),
    `seed` draws what has to be drawn. Raises :class:`UserError` for layers that don't exist.
    """
    if spec.tunes == "copies":
        added = expand(model, layers)
        return Tuning(model, added, added, source_importance(units, layers))
    if spec.tunes == "lora":
        return Lora(model, spec.lora_rank, seed)
    if spec.tunes == "tasl":
        return Tasl(model, spec.lora_rank, seed)
    if spec.tunes == "all":
        model.requires_grad_(True)
        return Tuning(model)
    model.requires_grad_(False)
    for parameter in layer_parameters(model, layers).values():
        parameter.requires_grad_(True)
    own = {name: value for name, value in units.items() if layer_of(name) in layers}
    return Tuning(model, (), layers, own)
