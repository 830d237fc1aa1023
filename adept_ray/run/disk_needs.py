"""What a search takes of disks, and how many trials at once there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adept_ray.config.places import make_absolute
from adept_ray.config.search_space import Range, SearchSpace
from adept_ray.config.specs import SearchRun
from adept_ray.engine.nodes import measure_disk
from adept_ray.method.memory_plan import count_layer_parameters
from adept_ray.run.sources import Sources
from adept_ray.storage.files import find_local_folder


@dataclass(frozen=True)
class DiskNeeds:
    """Bytes that a search may take of disks, at most."""

    checkpoint: int
    """Of the deepest training: weights and both moments of what is trained, in float32."""
    kept: int
    """Weights of trials that can still be chosen."""
    model: int
    """The exported model."""
    crews: int = 1
    """Trials at once."""
    plateaus: int = 0
    """Checkpoints of plateaus from which trials may be gone on with."""
    fetched: bool = False
    """Whether checkpoints have to be fetched: they lie behind a URI."""
    streams: bool = False
    """Whether workers keep streams in the temporary folder, as on GPUs: they take of the room there what
    leaves :data:`~adept_ray.training.streams.LEFT_SHARE` of it, so all else has to fit into that."""

    @property
    def storage(self) -> int:
        """Where results go: a trial's new checkpoint stands beside its last one for a moment."""
        return 2 * self.crews * self.checkpoint + self.plateaus + self.kept + self.model

    def count_trials(self, free: int) -> int:
        """Trials at once for whose checkpoints so many `free` bytes of storage have room; at least 1."""
        kept = self.plateaus + self.kept + self.model
        return max(1, (free - kept) // max(1, 2 * self.checkpoint))

    @property
    def temporary(self) -> int:
        """In the temporary folder of one machine: at the end the model, and what is fetched before.

        Trials that go on fetch a checkpoint each; at the end the weights are fetched from which the model is
        made.
        """
        if not self.fetched:
            return self.model
        return max(self.model + self.checkpoint // 3, self.crews * self.checkpoint)


def count_disk_needs(
    sizes: tuple[int, Sequence[int]], depths: Sequence[int], kept: int, crews: int, itemsize: int
) -> DiskNeeds:
    """What a search of these `depths` takes of disks.

    `sizes` are the scalars of the backbone and of each of its layers, `kept` is the number of trials whose
    weights may be kept, `itemsize` the bytes of a scalar of the exported model.
    """
    total, layers = sizes
    largest = max(layers, default=0)
    trained = [largest * k for k in sorted(depths, reverse=True)]
    deepest = trained[0] if trained else 0
    # More trials than depths are kept where a front is: those count as the deepest.
    weights = sum(trained[:kept]) + deepest * max(0, kept - len(trained))
    return DiskNeeds(12 * deepest, 4 * weights, itemsize * (total + deepest), crews)


def plan_disk_needs(run: SearchRun, sources: Sources, space: SearchSpace) -> DiskNeeds:
    """What a search of that `space` takes of disks."""
    sizes = count_layer_parameters(skeleton := sources.build_skeleton())
    depths = list_tried_depths(space.parameters["k"])
    kept = run.trials if run.pareto else min(run.trials, len(depths))
    needs = count_disk_needs(sizes, depths, kept, run.crews, skeleton.dtype.itemsize)
    plateaus = run.trials * needs.checkpoint if run.schedule == "wsd" else 0
    fetched = find_local_folder(run.storage) is None
    return replace(needs, plateaus=plateaus, fetched=fetched, streams=run.machine.on_gpus)


def list_tried_depths(k: Range) -> list[int]:
    """Every k that a search of that range may try, ascending."""
    return list(range(k.values[0], k.values[1] + 1)) if k.kind == "int" else sorted(set(k.values))


def count_trials_with_room(run: SearchRun, sources: Sources, space: SearchSpace) -> int | None:
    """Trials at once for whose checkpoints storage has room; None where it is a URI, which has no end."""
    if find_local_folder(run.storage) is None:
        return None
    free = measure_disk(make_absolute(run.storage)).free
    return plan_disk_needs(run, sources, space).count_trials(free)
