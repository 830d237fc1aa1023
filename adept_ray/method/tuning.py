"""The model that a training changes: the one place where methods differ for the loop (pure torch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from adept_ray.config.specs import TrainingSpec
from adept_ray.method import lora
from adept_ray.method.anatomy import (
    family_of,
    has_layer,
    layer_of,
    layer_parameters,
    layers_of,
    list_dialled,
    trainable_parameters,
)
from adept_ray.method.dial import TRAINED
from adept_ray.method.expansion import expand, source_importance
from adept_ray.method.importance import measure_taylor_importance
from adept_ray.method.loss import Batch, ComputePolicy, get_compute_policy, set_compute_policy
from adept_ray.method.prefix import FrozenPrefix, StreamStore
from adept_ray.method.rates import average_by_sublayer, unit_scales
from adept_ray.method.sharding import is_sharded, shard_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Tuning:
    """A model made ready for training; everything but :attr:`parameters` is frozen."""

    def __init__(
        self,
        model: PreTrainedModel,
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
        """The trained parameters by full name; always float32, since fewer bits lose small steps."""
        self._dialled = list_dialled(model, added) if added else {}
        lower = {p.dtype for p in model.parameters() if p.dtype.itemsize < torch.float32.itemsize}
        if lower:
            for parameter in self.parameters.values():
                parameter.data = parameter.data.float()
            for norm in list_trained_norms(model):
                norm.register_forward_hook(cast_output)
            set_compute_policy(model, replace(get_compute_policy(model), autocast=lower.pop()))
        # Without a probe all units are alike, and equal importances give equal rates.
        self.importance = dict(importance if importance is not None else dict.fromkeys(self.parameters, 0.0))
        """Parameter name → importance of its unit before the first step."""

    def compute_scales(self, importance: Mapping[str, float], spec: TrainingSpec) -> dict[str, float]:
        """Scale of every trained parameter at these importances."""
        if spec.granularity == "block" and self.rated:
            importance = average_by_sublayer(
                importance, {name: p.numel() for name, p in self.parameters.items()}
            )
        return unit_scales(importance, spec.normalization, spec.sign)

    def observe_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after every step, while its gradients are still there."""

    def finish(self, optimizer: torch.optim.Optimizer, general: Iterable[Batch]) -> None:
        """Called once after the last step; `general` is this rank's share of the general probe."""

    def turn_value(self, name: str, value: torch.Tensor, dial: float) -> torch.Tensor:
        """What a trained parameter of that name and `value` is at a `dial` (see adept_ray.method.dial)."""
        if dial == TRAINED or name not in self._dialled:
            return value
        offset = self._dialled[name]
        return (value + offset) * dial - offset

    def merge(self, dial: float = TRAINED) -> PreTrainedModel:
        """The model as it is exported, at that dial and all in the backbone's type; the tuning is used up."""
        self._turn_for_good(dial)
        return unify_dtype(self.model)

    def _turn_for_good(self, dial: float) -> None:
        for name, parameter in self.parameters.items():
            parameter.data = self.turn_value(name, parameter.data, dial)

    @contextmanager
    def use_exported_weights(self, dial: float = TRAINED) -> Iterator[None]:
        """Within this, trained parameters are at that dial and have the backbone's type, as when exported.

        So a model of fewer bits is measured in the same arithmetic before and after training. Parameters in
        pieces can't change their type; they take values of that type, of which autocast makes the same.
        """
        how = get_compute_policy(self.model)
        if how.autocast is None and dial == TRAINED:
            yield
            return
        if is_sharded(self.model):
            with self._hold_values(dial, how.autocast):
                yield
            return
        masters = {name: parameter.data for name, parameter in self.parameters.items()}
        for name, data in masters.items():
            turned = self.turn_value(name, data, dial)
            self.parameters[name].data = turned.to(how.autocast or turned.dtype)
        set_compute_policy(self.model, replace(how, autocast=None))
        try:
            yield
        finally:
            for name, data in masters.items():
                self.parameters[name].data = data
            set_compute_policy(self.model, how)

    @contextmanager
    def _hold_values(self, dial: float, dtype: torch.dtype | None) -> Iterator[None]:
        """Within this, trained parameters hold values at that dial, of `dtype`, in a type of more bits."""
        masters = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        with torch.no_grad():
            for name, master in masters.items():
                turned = self.turn_value(name, master, dial)
                self.parameters[name].copy_(turned.to(dtype or turned.dtype))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, master in masters.items():
                    self.parameters[name].copy_(master)

    def shard(self, whole: nn.Module | None, device: torch.device) -> None:
        """Share the model out over all ranks (see :func:`adept_ray.method.sharding.shard_model`)."""
        shard_model(self.model, whole, device)
        self.parameters = trainable_parameters(self.model)

    @property
    def lowest(self) -> int:
        """The lowest layer that a gradient passes: 0 where more than layers is trained."""
        depths = [layer_of(name) if has_layer(name) else 0 for name in self.parameters]
        return min(depths, default=len(layers_of(self.model)))

    def recompute_activations(self) -> None:
        """Keep no activations of the layers that gradients pass: compute them again (arXiv 1604.06174)."""
        layers = tuple(layers_of(self.model)[self.lowest :])
        set_compute_policy(self.model, replace(get_compute_policy(self.model), recomputed=layers))

    def keep_prefix(self, store: StreamStore, keeps_text: bool) -> None:
        """Run the layers below the lowest trained one once for each batch (see :class:`FrozenPrefix`).

        The `store` must be of these very layers; `keeps_text` says that training text comes again.
        """
        layers = layers_of(self.model)
        if 0 < self.lowest < len(layers) and not is_sharded(self.model):
            passed = family_of(self.model).passed
            prefix = FrozenPrefix(tuple(layers[: self.lowest + 1]), store, keeps_text, passed)
            set_compute_policy(self.model, replace(get_compute_policy(self.model), prefix=prefix))

    def compile_layers(self) -> None:
        """Run layers by torch.compile; passes without a gradient, which score, stay as they are."""
        set_compute_policy(
            self.model, replace(get_compute_policy(self.model), compiled=tuple(layers_of(self.model)))
        )


class Whole(Tuning):
    """Parameters of the backbone itself, which the dial turns by interpolation with what they were."""

    def __init__(
        self,
        model: PreTrainedModel,
        rated: Sequence[int] = (),
        importance: Mapping[str, float] | None = None,
        turns: bool = False,
    ) -> None:
        origin = {name: p.detach().clone() for name, p in trainable_parameters(model).items() if turns}
        super().__init__(model, (), rated, importance)
        self.origin = origin
        """The trained parameters as the backbone has them; none where they are never turned."""

    def turn_value(self, name: str, value: torch.Tensor, dial: float) -> torch.Tensor:
        return value if dial == TRAINED else torch.lerp(self.origin[name].to(value.dtype), value, dial)

    def shard(self, whole: nn.Module | None, device: torch.device) -> None:
        super().shard(whole, device)
        self.origin = {name: self.parameters[name].detach().clone() for name in self.origin}


class Lora(Tuning):
    """LoRA on every projection."""

    def __init__(self, model: PreTrainedModel, rank: int, seed: int) -> None:
        self._adapter = lora.add_lora(model, rank, seed)
        super().__init__(model)
        self._dialled = {name: 0.0 for name in self.parameters if lora.ZEROED in name}

    def merge(self, dial: float = TRAINED) -> PreTrainedModel:
        self._turn_for_good(dial)
        return unify_dtype(cast("PreTrainedModel", self._adapter.merge_and_unload()))


class Tasl(Lora):
    """LoRA whose skill units are consolidated at the end."""

    def __init__(self, model: PreTrainedModel, rank: int, seed: int) -> None:
        super().__init__(model, rank, seed)
        self._before = self._copy_parameters()

    def shard(self, whole: nn.Module | None, device: torch.device) -> None:
        super().shard(whole, device)
        self._before = self._copy_parameters()

    def _copy_parameters(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def observe_step(self, optimizer: torch.optim.Optimizer) -> None:
        lora.smooth_sensitivity(self.parameters, optimizer)

    def finish(self, optimizer: torch.optim.Optimizer, general: Iterable[Batch]) -> None:
        found = measure_taylor_importance(self.model, general, self.parameters, lora.skill_of)
        by_skill = {lora.skill_of(name): value for name, value in found.items()}
        lora.consolidate_skills(
            self.parameters,
            self._before,
            lora.measure_domain_importance(self.parameters, optimizer),
            by_skill,
        )


def list_trained_norms(model: nn.Module) -> list[nn.Module]:
    """The modules of `model` with trained vectors and no matrices of their own, which are its norms."""
    own = ((module, list(module.parameters(recurse=False))) for module in model.modules())
    return [
        module
        for module, parameters in own
        if any(p.requires_grad for p in parameters) and all(p.dim() == 1 for p in parameters)
    ]


def cast_output(module: nn.Module, args: tuple[object, ...], output: torch.Tensor) -> torch.Tensor:
    """A forward hook: what a module puts out, in the type of autocast where that is on.

    A norm multiplies by float32 weights, so it would hand on float32, and each projection behind it would
    cast that anew and keep its own cast for the gradient.
    """
    device = output.device.type
    return output.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else output


def unify_dtype(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, in place, with all parameters in the type that it computes in."""
    dtype = get_compute_policy(model).autocast
    if dtype:
        for parameter in model.parameters():  # not buffers: rotary frequencies are float32 in every model
            parameter.data = parameter.data.to(dtype)
    set_compute_policy(model, ComputePolicy())
    return model


def build_tuning(
    model: PreTrainedModel,
    spec: TrainingSpec,
    layers: Sequence[int],
    units: Mapping[str, float],
    seed: int,
) -> Tuning:
    """Change `model` in place into what `spec` trains, and freeze the rest.

    `layers` are the placed layers of the backbone, `units` its unit importances (parameter name → value),
    `seed` draws LoRA's first weights. Raises :class:`UserError` for layers that don't exist.
    """
    if spec.tunes == "copies":
        added = expand(model, layers)
        return Tuning(model, added, added, source_importance(units, layers))
    if spec.tunes == "lora":
        return Lora(model, spec.lora_rank, seed)
    if spec.tunes == "tasl":
        return Tasl(model, spec.lora_rank, seed)
    turns = spec.dial not in ("off", TRAINED)
    if spec.tunes == "all":
        model.requires_grad_(True)
        return Whole(model, turns=turns)
    model.requires_grad_(False)
    for parameter in layer_parameters(model, layers).values():
        parameter.requires_grad_(True)
    own = {name: value for name, value in units.items() if layer_of(name) in layers}
    return Whole(model, layers, own, turns)
