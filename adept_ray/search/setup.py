"""What all trials of a search share, and the untouched backbone, which each is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adept_ray.config.errors import UserError, find_cause
from adept_ray.config.machine import Machine
from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import SearchRun, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.data.blocks import Blocks
from adept_ray.method.anatomy import layer_of
from adept_ray.method.importance import LayerImportance
from adept_ray.method.placement import resolve_layers
from adept_ray.search.trials import (
    UNTOUCHED,
    Facts,
    Setting,
    Trial,
    describe_trial,
    name_end,
    resolve_training,
)
from adept_ray.search.verdicts import name_trial
from adept_ray.training.scoring import score_model
from adept_ray.training.work import TrainWork

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

EXPERIMENT = "search"


@dataclass(frozen=True)
class SearchSetup:
    """What all trials of a search share."""

    run: SearchRun
    space: SearchSpace
    work: TrainWork
    """The training; its settings and layers are replaced by those of each trial."""
    importance: LayerImportance
    storage: str
    """Folder or URI of what Ray and the workers keep."""
    study: str = ""
    """Names the question: searches of the same one find each other's trials in a database."""
    memory: int = 0
    """Bytes that a worker may use; 0 where that isn't known."""

    @property
    def experiment(self) -> str:
        """Where Tune keeps its own records."""
        return f"{self.storage}/{EXPERIMENT}"

    def place_layers(self, setting: Setting) -> tuple[int, ...]:
        """The layers that a trial of a setting copies."""
        return resolve_layers(self.importance, apply_changes(self.work.training, setting), self.work.seed)

    def build_work(self, setting: Setting) -> TrainWork:
        """The training of a trial, made to fit on the layers that it copies."""
        layers = self.place_layers(setting)
        units = {name: value for name, value in self.work.units.items() if layer_of(name) in layers}
        training = apply_changes(self.work.training, setting)
        work = replace(self.work, training=training, layers=layers, units=units, text_returns=True)
        return fit_to_layers(work, self.run.machine, self.memory)

    def describe_trial(self, trial: TuneTrial, metrics: Facts | None, state: str) -> Trial:
        """A trial of Tune's, with what its last report says."""
        layers = self.place_layers(trial.config)
        return describe_trial(name_trial(trial), trial.config, metrics or {}, state, layers)

    def describe_end(self, trial: TuneTrial) -> Trial:
        """A trial of Tune's after the search, with its error."""
        end = name_end(trial.last_result)
        state = {"ERROR": "failed", "TERMINATED": end}.get(trial.status, "interrupted")
        error = find_cause(trial.get_error()) if state == "failed" else None
        return replace(self.describe_trial(trial, trial.last_result, state), error=error)


def fit_to_layers(work: TrainWork, machine: Machine, memory: int) -> TrainWork:
    """`work` keeping its activations where they fit into workers of `memory` bytes, on its own layers.

    Before stage 1 the layers aren't known. A gradient passes all layers above the lowest copy, so how a model
    is made to fit was planned for the lowest ones; on others it may keep what it was to compute again.
    """
    if not (work.fit.recompute and machine.activation_checkpointing == "auto" and memory):
        return work
    from adept_ray.data.loading import build_outline
    from adept_ray.method.memory_plan import fits_memory, plan_memory

    try:
        outline = build_outline(work.backbone)
    except UserError:  # a machine other than the one that planned may not reach the backbone
        return work
    needs = plan_memory(outline, work.training, work.layers, work.seq_len)
    plain = replace(work.fit, recompute=False)
    return replace(work, fit=plain) if fits_memory(needs, machine, memory, plain) else work


def place_work(work: TrainWork, importance: LayerImportance, training: TrainingSpec) -> TrainWork:
    """The work with another training, and the layers that this one takes."""
    return replace(work, training=training, layers=resolve_layers(importance, training, work.seed))


def rebuild_work(work: TrainWork, importance: LayerImportance, trial: Trial) -> TrainWork:
    """The work of a trial that is over: what all trials share, with its own settings and layers."""
    dial = "off" if trial.dial is None or work.training.dial == "off" else trial.dial
    ended = {"tokens": trial.tokens, "dial": dial}
    training = apply_changes(resolve_training(trial, work.training), ended)
    return place_work(work, importance, training)


def measure_untouched(work: TrainWork, blocks: Mapping[str, Blocks]) -> Trial:
    """The backbone as a trial of k = 0; `blocks` holds the validation blocks of both sides."""
    metrics = score_model(work.before, work.before, blocks, work.by_tasks, work.weights)
    return describe_trial(UNTOUCHED, {"k": 0}, {**metrics, "tokens": 0, "seconds": 0.0}, UNTOUCHED, ())
