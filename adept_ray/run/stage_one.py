"""Stage 1 of a run: it measures what the cache doesn't hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from adept_ray.config.specs import RunSpec
from adept_ray.config.validation import fingerprint
from adept_ray.data.benchmark_tasks import TaskItems, find_tasks_at_chance
from adept_ray.data.blocks import Blocks, join_blocks
from adept_ray.data.mixing import MixedBlocks
from adept_ray.engine.client import run_job
from adept_ray.engine.job import Job
from adept_ray.method.fit import Fit
from adept_ray.method.scores import tasks_key
from adept_ray.run.context import Context
from adept_ray.run.sources import Needs, Sources
from adept_ray.storage.files import read_json, store_json
from adept_ray.training.work import ImportanceRecord, ProbeResult, ProbeWork

if TYPE_CHECKING:
    from ray import ObjectRef

PROBE_VERSION = 2  # raise when the same model and probe would give other numbers
ANSWERS_VERSION = 2  # raise when the same model would give other answers to the same items


class ImportanceFile(ImportanceRecord, total=False):
    """Content of importance.json."""

    made_from: dict[str, object]
    """What it was measured on."""
    reception: list[float]
    """A number a layer, where the run needs it."""


@dataclass(frozen=True)
class StageOne:
    """Stage 1 of a run: what it measures, and where the cache keeps each result."""

    context: Context[RunSpec]
    sources: Sources
    sets: Mapping[str, MixedBlocks]
    blocks: Mapping[str, Blocks]
    needs: Needs

    @property
    def race(self) -> int | None:
        """The depth that a raced probe goes by; None for an exhaustive one, which serves every depth."""
        return self.needs.k_max if self.context.run.probe == "raced" else None

    @property
    def _model(self) -> tuple[object, ...]:
        run = self.context.run
        return (PROBE_VERSION, self.sources.backbone.fingerprint, run.machine.dtype, run.seq_len)

    def locate_importance(self) -> str:
        """Where the cache keeps the importance of layers and units."""
        run = self.context.run
        probe = (self.sets["general"].fingerprint, run.probe_tokens, self.race, run.probe_confidence)
        return locate_in_cache(run, "probes", *self._model, *probe)

    def locate_losses(self) -> dict[str, str]:
        """Side → where the cache keeps the backbone's losses."""
        run = self.context.run
        return {
            side: locate_in_cache(run, "losses", *self._model, each.fingerprint, run.validation_tokens)
            for side, each in self.sets.items()
        }

    def locate_answers(self) -> dict[str, str]:
        """Side → where the cache keeps the backbone's answers to its items."""
        parts = (ANSWERS_VERSION, *self._model[:3], version("lm_eval"))
        return {
            side: locate_in_cache(self.context.run, "answers", *parts, items.content)
            for side, items in self.sources.select_items("validation").items()
        }

    def read(self, place: str) -> Any:
        """A file of the cache; None if it isn't there whole."""
        return read_json(place, say=self.context.display.say)

    def read_or_measure(self) -> tuple[ImportanceFile, dict[str, list[float]]]:
        """Importance and validation losses of the untouched backbone, from the cache or measured now."""
        importance = self.read(self.locate_importance())
        nats = {side: self.read(place) for side, place in self.locate_losses().items()}
        answers = {side: self.read(place) for side, place in self.locate_answers().items()}
        missing = [side for side, known in nats.items() if known is None]
        items = self.sources.select_items("validation")
        unanswered = {side: items[side] for side, known in answers.items() if known is None}
        if missing or unanswered or importance is None:
            measured = self.measure(importance is None, missing, unanswered)
            if importance is None:
                importance = {**measured["importance"], "made_from": self.describe_origin()}
                store_json(self.locate_importance(), importance)
            nats |= self._store(measured["nats"], self.locate_losses(), "nats")
            answers |= self._store(measured["correct"], self.locate_answers(), "correct")
        before = {side: known["nats"] for side, known in nats.items()}
        before |= {tasks_key(side): known["correct"] for side, known in answers.items()}
        return importance, before

    def measure(self, importance: bool, held_out: list[str], items: Mapping[str, TaskItems]) -> ProbeResult:
        """What the crew measures now: importance, the losses of held-out sides, the answers to items."""
        run = self.context.run
        work = replace(
            describe_probe(run, self.sources, self.needs.fit),
            importance=importance,
            raced=self.race is not None,
            k_max=self.race,
            confidence=run.probe_confidence,
            held_out=tuple(held_out),
            items=items,
        )
        blocks = store_blocks({name: self.blocks[name] for name in ("probe", *held_out)})
        return cast("ProbeResult", run_job(self.context.board, Job("probe", "probe", work, blocks)))

    def describe_origin(self) -> dict[str, object]:
        """What the importance was measured on."""
        return {
            "backbone": self.sources.backbone.name,
            "fingerprint": self.sources.backbone.fingerprint,
            "corpus": self.sources.general.name,
            "blocks": self.sets["general"].fingerprint,
            "tokens": len(self.blocks["probe"]) * self.context.run.seq_len,
            "seq_len": self.context.run.seq_len,
        }

    @staticmethod
    def _store(
        measured: Mapping[str, list[float]], places: Mapping[str, str], key: str
    ) -> dict[str, dict[str, list[float]]]:
        """Keep each side's values in the cache; returns them as they are read again."""
        contents = {side: {key: values} for side, values in measured.items()}
        for side, content in contents.items():
            store_json(places[side], content)
        return contents


def measure_reception(stage: StageOne) -> list[float]:
    """Reception of every layer, on as much training text as the probe has of general text."""
    run, sources, domain = stage.context.run, stage.sources, stage.sets["domain"]
    named = (sources.backbone.fingerprint, run.machine.dtype, run.seq_len, domain.fingerprint)
    place = locate_in_cache(run, "receptions", PROBE_VERSION, *named, run.probe_tokens)
    known = stage.read(place)
    if known is None:
        text = join_blocks(domain.load_training(run.probe_tokens, run.seq_len))
        work = replace(describe_probe(run, sources, stage.needs.fit), reception=True)
        job = Job("reception", "probe", work, store_blocks({"reception": text}))
        known = {"reception": run_job(stage.context.board, job)["reception"]}
        store_json(place, known)
    return known["reception"]


def warn_of_chance(
    sources: Sources, before: Mapping[str, Sequence[float]], warn: Callable[[str], None]
) -> None:
    """Warn of tasks at which the backbone, whose answers are in `before`, is no better than chance."""
    for side, items in sources.select_items("validation").items():
        for sentence in find_tasks_at_chance(items, before[tasks_key(side)]):
            warn(f"{side} task {sentence}")


def describe_probe(run: RunSpec, sources: Sources, fit: Fit) -> ProbeWork:
    """Work on a run's backbone that measures nothing yet: callers switch on what they need."""
    return ProbeWork(sources.backbone, run.machine.micro_batch, importance=False, fit=fit)


def store_blocks(blocks: Mapping[str, Blocks]) -> ObjectRef:
    """A reference to `blocks` in the object store. Of those in files there is no more than where they are."""
    import ray

    return ray.put(dict(blocks))


def locate_in_cache(run: RunSpec, kind: str, *parts: object) -> str:
    """Path or URI at which the cache keeps a result of that kind made from `parts`."""
    return f"{run.machine.cache}/{kind}/{fingerprint(*parts)}.json"
