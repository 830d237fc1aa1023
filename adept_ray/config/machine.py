"""The machine that a command works on: one specification, inside that of every run.

Flags and files name its fields beside those of the run (``--workers``, ``workers: 2``). In Python they are
one object, ``run.machine``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_serializer, model_validator
from pydantic.fields import FieldInfo
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from adept_ray.config.fields import Mark, setting
from adept_ray.config.places import Cache, default_cache
from adept_ray.config.validation import Key, Spec

Precision = Literal["auto", "float32", "bfloat16"]
Switch = Literal["auto", "on", "off"]
CHANGEABLE, FITTING, UNPROBED, PLACE = Mark.CHANGEABLE, Mark.FITTING, Mark.UNPROBED, Mark.PLACE


class Machine(Spec):
    """Workers, what each of them has, and how it computes."""

    micro_batch: int = setting(8, CHANGEABLE, FITTING, ge=1)
    """Blocks per forward pass on one worker; changes speed and memory, not what is computed."""
    workers: int | Literal["auto"] = setting(1, CHANGEABLE, FITTING)
    """Ray Train workers; each trial of a search has so many; auto: by cluster, step and memory."""
    min_workers: int = setting(0, CHANGEABLE, FITTING, ge=0)
    """Fewest workers to go on with (0: all of them) when nodes are lost and none replaces them."""
    gpus_per_worker: float = setting(0, FITTING, ge=0)
    """GPUs each worker gets; 0 trains on CPUs, a part of one is for one worker a trial."""
    precision: Precision = "auto"
    """Of frozen weights and of what is computed (what is trained is float32); auto: bfloat16 if faster."""
    activation_checkpointing: Switch = setting("auto", CHANGEABLE, FITTING)
    """Compute activations again for the gradient; auto: where a worker's memory can't hold them."""
    sharding: Switch = setting("auto", CHANGEABLE, FITTING)
    """Share the model out over the workers (FSDP2); auto: where a worker's memory can't hold it whole."""
    compile: Switch = setting("auto", CHANGEABLE, FITTING, UNPROBED)
    """Train with layers by torch.compile; auto: if it pays, in tune_k.py and train.py, of many steps."""
    dashboard: bool = setting(True, CHANGEABLE)
    """Start the Ray dashboard with a local cluster."""
    cache: Cache = setting(lambda: str(default_cache()), CHANGEABLE, PLACE)
    """Folder or URI for token blocks and probes, shared by all runs; a folder also holds downloads."""

    @property
    def local_cache(self) -> Path:
        """Folder of this machine for what is downloaded or converted, and for copies out of the cache."""
        return default_cache() if "://" in self.cache else Path(self.cache)

    @property
    def shared_cache(self) -> str:
        """The cache's URI where it is one, which all machines reach; else empty."""
        return self.cache if "://" in self.cache else ""

    def name_cache(self, said: str) -> str:
        """What is added to a place that is in the cache, or to a sentence about one; else empty."""
        is_inside = re.search(rf"{re.escape(self.cache)}(?![^/\s:,;)'])", said)
        return f" (the cache is {self.cache}; --cache takes another one)" if is_inside else ""

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, workers: int | str) -> int | str:
        if isinstance(workers, int) and workers < 1:
            raise ValueError(f"must be at least 1, or auto, not {workers}")
        return workers

    @property
    def most_workers(self) -> int:
        """Workers of a job (at least, where that isn't known yet)."""
        return max(1, self.min_workers) if self.workers == "auto" else self.workers

    @property
    def fewest_workers(self) -> int:
        """Workers without which a job can't go on."""
        return self.min_workers or self.most_workers

    @property
    def on_gpus(self) -> bool:
        """Whether workers compute on GPUs."""
        return self.gpus_per_worker > 0

    @property
    def dtype(self) -> str:
        """Name of the torch type in which the backbone is held; auto is float32 on CPUs that nobody asked."""
        if self.precision == "auto":
            return "bfloat16" if self.on_gpus else "float32"
        return self.precision


class MachineSpec(Spec):
    """A specification with a machine in it, whose fields stand beside its own in files and flags."""

    MACHINE_AFTER: ClassVar[str] = ""
    """The field after which those of the machine stand; empty: before all others."""

    machine: Machine = Field(default_factory=Machine)
    """Workers, what each of them has, and how it computes."""

    @classmethod
    def list_machine_fields(cls) -> dict[str, FieldInfo]:
        """The fields of the machine that this specification takes."""
        return dict(Machine.model_fields)

    @classmethod
    def flat_fields(cls) -> dict[str, FieldInfo]:
        own = {name: field for name, field in cls.model_fields.items() if name != "machine"}
        end = list(own).index(cls.MACHINE_AFTER) + 1 if cls.MACHINE_AFTER else 0
        before = dict(list(own.items())[:end])
        return before | cls.list_machine_fields() | own

    @classmethod
    def shorten_path(cls, path: tuple[Key, ...]) -> tuple[Key, ...]:
        return path[1:] if len(path) > 1 and path[0] == "machine" else path

    @property
    def given(self) -> frozenset[str]:
        names = self.model_fields_set
        of_machine = self.machine.model_fields_set if "machine" in names else set()
        return frozenset(names - {"machine"} | of_machine)

    def read_field(self, name: str) -> Any:
        return getattr(self.machine if name in Machine.model_fields else self, name)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: object) -> object:
        """Take the machine's fields from beside the others."""
        if not isinstance(values, dict):
            return values
        beside = {name: value for name, value in values.items() if name in cls.list_machine_fields()}
        others = {name: value for name, value in values.items() if name not in beside}
        nested = others.get("machine", {})
        nested = nested.model_dump(exclude_unset=True) if isinstance(nested, Machine) else nested
        if not beside or not isinstance(nested, dict):
            return others
        return {**others, "machine": {**nested, **beside}}

    @model_validator(mode="after")
    def _check_gpus(self) -> MachineSpec:
        gpus, workers = self.machine.gpus_per_worker, self.machine.most_workers
        if gpus > 1 and gpus % 1:
            raise ValueError(
                f"--gpus-per-worker {gpus:g}: Ray gives out whole GPUs or a part of one: give 2 or 0.5"
            )
        if gpus % 1 and workers > 1:  # NCCL takes one rank a card
            raise ValueError(
                f"--gpus-per-worker {gpus:g}: {workers} workers that train together need a GPU each, so "
                "give --gpus-per-worker 1 or --workers 1 (the trials of --concurrent may share a GPU)"
            )
        return self

    @model_serializer(mode="wrap")
    def _spread(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Put the machine's fields beside the others."""
        values = serialize(self)
        values |= values.pop("machine", {})
        return {name: values[name] for name in self.flat_fields() if name in values}


class FollowingSpec(MachineSpec):
    """A command that takes what a search wrote. Of its machine only the fields count that are given."""

    MACHINE_FLAGS: ClassVar[tuple[str, ...]] = ()
    """The fields of the machine that it takes, in the order of ``--help``."""

    @classmethod
    def list_machine_fields(cls) -> dict[str, FieldInfo]:
        return {name: Machine.model_fields[name] for name in cls.MACHINE_FLAGS}

    def list_overrides(self) -> dict[str, object]:
        """The machine's fields that were given, with their values."""
        return {
            name: getattr(self.machine, name) for name in self.list_machine_fields() if name in self.given
        }

    @model_validator(mode="after")
    def _check_machine(self) -> FollowingSpec:
        others = sorted(self.machine.model_fields_set - set(self.MACHINE_FLAGS))
        if others:
            raise ValueError(f"machine.{others[0]} can't be given here: it stays as the search had it")
        return self
