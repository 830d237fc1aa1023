"""The machine that a command works on: one specification, inside that of every run.

Flags and files name its fields beside those of the run (``--workers``, ``workers: 2``); only in Python are
they one object, ``run.machine``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_serializer, model_validator
from pydantic.fields import FieldInfo
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from adept_ray.config.fields import Mark, setting
from adept_ray.config.places import Cache, default_cache
from adept_ray.config.validation import Spec

Precision = Literal["auto", "float32", "bfloat16"]
Switch = Literal["auto", "on", "off"]
CHANGEABLE, FITTING, UNPROBED, PLACE = Mark.CHANGEABLE, Mark.FITTING, Mark.UNPROBED, Mark.PLACE


class Machine(Spec):
    """Workers, what each of them has, and how it computes."""

    micro_batch: int = setting(8, CHANGEABLE, FITTING, ge=1)
    """Blocks per forward pass on one worker; changes speed and memory, not what is computed."""
    workers: int = setting(1, CHANGEABLE, FITTING, ge=1)
    """Ray Train workers per trial."""
    min_workers: int = setting(0, CHANGEABLE, FITTING, ge=0)
    """Fewest workers to go on with when nodes are lost and none replaces them; 0: all of --workers."""
    gpus_per_worker: float = setting(0, FITTING, ge=0)
    """GPUs each worker gets; 0 trains on CPUs."""
    precision: Precision = "auto"
    """Of frozen weights and of what is computed (what is trained is float32); auto: bfloat16 on GPUs."""
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

    @property
    def fewest_workers(self) -> int:
        """Workers without which a job can't go on."""
        return self.min_workers or self.workers

    @property
    def on_gpus(self) -> bool:
        """Whether workers compute on GPUs."""
        return self.gpus_per_worker > 0

    @property
    def dtype(self) -> str:
        """Name of the torch type in which the backbone is held."""
        if self.precision == "auto":
            return "bfloat16" if self.on_gpus else "float32"
        return self.precision


class MachineSpec(Spec):
    """A specification with a machine in it, whose fields stand beside its own in files and flags."""

    machine: Machine = Field(default_factory=Machine)
    """Workers, what each of them has, and how it computes."""

    @classmethod
    def flat_fields(cls) -> dict[str, FieldInfo]:
        own = {name: field for name, field in cls.model_fields.items() if name != "machine"}
        return own | Machine.model_fields

    @property
    def given(self) -> frozenset[str]:
        names = self.model_fields_set
        return frozenset(
            names - {"machine"} | (self.machine.model_fields_set if "machine" in names else set())
        )

    def read_field(self, name: str) -> Any:
        return getattr(self.machine if name in Machine.model_fields else self, name)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        """Take the machine's fields from beside the others."""
        if not isinstance(values, dict):
            return values
        own = {name: value for name, value in values.items() if name in Machine.model_fields}
        rest = {name: value for name, value in values.items() if name not in own}
        had = rest.get("machine", {})
        had = had.model_dump(exclude_unset=True) if isinstance(had, Machine) else had
        return {**rest, "machine": {**had, **own}} if own else rest

    @model_serializer(mode="wrap")
    def _spread(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Put the machine's fields beside the others."""
        values = serialize(self)
        return {**values, **values.pop("machine", {})}


class FollowingSpec(MachineSpec):
    """A command that goes on from what a search wrote: of its machine only what is given counts."""

    MACHINE_FLAGS: ClassVar[tuple[str, ...]] = ()
    """The fields of the machine that it takes."""

    @classmethod
    def flat_fields(cls) -> dict[str, FieldInfo]:
        return {
            n: f
            for n, f in super().flat_fields().items()
            if n not in Machine.model_fields or n in cls.MACHINE_FLAGS
        }

    def list_overrides(self) -> dict[str, Any]:
        """The machine's fields that were given, with their values."""
        return {name: getattr(self.machine, name) for name in Machine.model_fields if name in self.given}
