"""Everything a resumed training needs: what is trained, the optimizer, the rates and the step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict, cast

import torch
from safetensors.torch import load_file
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import layer_of, name_in_layer, trainable_parameters
from adept_ray.method.ranks import rank
from adept_ray.method.scores import Metrics
from adept_ray.method.sharding import gather_tensors, split_like
from adept_ray.storage.files import WriteFile, format_json
from adept_ray.training.tensor_file import write_tensors

WEIGHTS, OPTIMIZER, STATE = "trained.safetensors", "optimizer.safetensors", "state.json"


class RateRow(TypedDict):
    """A unit's importance and scale from a step on."""

    step: int
    unit: str
    importance: float
    scale: float


class CurveRow(TypedDict):
    """A reading at a step: the fields of CURVE."""

    step: int
    tokens: int
    general_delta: float
    domain_delta: float
    score: float
    plain_general_delta: float | None
    plain_domain_delta: float | None
    plain_score: float | None
    """As it was trained, at dial 1."""
    dial: float
    loss: float | None


CURVE = tuple(CurveRow.__annotations__)


@dataclass
class TrainState:
    """State of a stage-2 training between two steps. The data position is the step itself."""

    layers: tuple[int, ...]
    """Source layer ids in the backbone, ascending."""
    added: tuple[int, ...]
    """Ids of the copies in the expanded model, ascending."""
    step: int = 0
    """Optimizer steps done."""
    reports: int = 0
    """Reports made."""
    importance: dict[str, float] = field(default_factory=dict)
    """Parameter name → importance of its unit, as measured last; the scales follow from it."""
    loss: float | None = None
    """Training loss of the last step, nats per token."""
    rates: list[RateRow] = field(default_factory=list)
    """One row per unit and measurement."""
    curve: list[CurveRow] = field(default_factory=list)
    """The learning curve, one row per report."""

    def add_reading(self, metrics: Metrics) -> list[CurveRow]:
        """Add a report to the learning curve, in place of the same one made earlier; returns the curve."""
        earlier = [row for row in self.curve if row["step"] < self.step]
        self.curve = [*earlier, cast(CurveRow, {name: metrics[name] for name in CURVE})]
        return self.curve

    def take_files(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, WriteFile]:
        """State, trained parameters and, with an optimizer, its state as files to be written; no pickles.

        They are copies in the first rank's memory of what is there now. The other ranks have none, but every
        rank has to call this: each may hold pieces of the model.
        """
        parameters = trainable_parameters(model)
        tensors = {WEIGHTS: gather_tensors(parameters)}
        if optimizer is not None:
            tensors[OPTIMIZER] = gather_tensors(_list_optimizer_tensors(parameters, optimizer))
        if rank() > 0:
            return {}
        text = format_json(vars(self)).encode()
        files: dict[str, WriteFile] = {name: partial(write_tensors, each) for name, each in tensors.items()}
        return {**files, STATE: lambda stream: stream.write(text)}

    @classmethod
    def load(
        cls, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> TrainState:
        """Read a state and put its weights and optimizer state into `model`, made ready for training.

        Raises :class:`UserError` when the checkpoint was made for other parameters.
        """
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
        state = cls(**{**values, "layers": tuple(values["layers"]), "added": tuple(values["added"])})
        weights = load_file(folder / WEIGHTS)
        # Asked of the model, not of the checkpoint: else its layers would overwrite frozen ones.
        parameters = trainable_parameters(model)
        if set(weights) != set(parameters):
            raise UserError(
                f"{folder}: its added layers are {list(state.added)}, copies of {list(state.layers)}, and "
                "not those of this training: resume from a checkpoint of its own"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(split_like(weights[name], parameter))
        if optimizer is not None and (folder / OPTIMIZER).exists():
            _restore_optimizer(parameters, optimizer, load_file(folder / OPTIMIZER))
        return state

    def grow_from(self, folder: Path, model: nn.Module) -> None:
        """Take over the copies of a training that had some of the `layers`, from the `folder` it is saved in.

        Their weights go into `model`, which is made ready for this training, and their importances into this
        state. The other copies are still identities, so `model` computes what that training's model did.
        Raises :class:`UserError` when that training had layers that this one hasn't.
        """
        had = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if strange := sorted(set(had["layers"]) - set(self.layers)):
            raise UserError(
                f"{folder}: it copied layers {strange}, and this training doesn't: "
                "let it start from one that copied fewer"
            )
        now = dict(zip(self.layers, self.added, strict=True))
        place = {old: now[layer] for layer, old in zip(had["layers"], had["added"], strict=True)}
        parameters = trainable_parameters(model)
        with torch.no_grad():
            for name, value in load_file(folder / WEIGHTS).items():
                parameter = parameters[name_in_layer(name, place[layer_of(name)])]
                parameter.copy_(split_like(value, parameter))
        self.importance = self.importance | {
            name_in_layer(name, place[layer_of(name)]): value for name, value in had["importance"].items()
        }


def _list_optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Per-parameter optimizer state as ``name:key`` → tensor (AdamW: step, exp_avg, exp_avg_sq)."""
    return {
        f"{name}:{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
) -> None:
    for full, value in tensors.items():
        name, _, key = full.rpartition(":")
        parameter = parameters[name]
        if value.dim() > 0:
            value = split_like(value, parameter)
        elif optimizer.defaults.get("fused"):  # then the device reads the step counter, too
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value
