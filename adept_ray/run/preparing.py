"""What every command does first: build token blocks, measure importance.

Each result is kept in the cache under the fingerprint of all that made it, so a second run reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.config.validation import fingerprint
from adept_ray.data.benchmark_tasks import TaskItems, find_tasks_at_chance
from adept_ray.data.blocks import Blocks, BlockSet
from adept_ray.data.packing import DOMAIN_SPLITS, GENERAL_SPLITS, build_blocks
from adept_ray.engine.crew import Job, run_job
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.importance import LayerImportance
from adept_ray.method.scores import SIDES
from adept_ray.run.context import Context
from adept_ray.run.sources import Sources
from adept_ray.run.terminal import Update
from adept_ray.storage.files import read_json, store_json
from adept_ray.training.scoring import tasks_key
from adept_ray.training.work import ProbeWork

FEW = 8  # documents or items: with fewer a standard error is itself more than a quarter off
PROBE_VERSION = 2  # raise when the same model and probe would give other numbers


@dataclass(frozen=True)
class Needs:
    """What a command needs before it trains."""

    k_max: int
    """Largest depth of interest, which a raced probe goes by."""
    train_tokens: int = 0
    """Tokens of training text, at most. Documents lie in their split in the order of a hash, so the first
    ones are a fair sample. A smaller split is gone through several times."""
    replay: bool = False
    """General text to train on, too."""
    reception: bool = False
    """Every layer's reception, measured on training text."""
    fit: Fit = PLAIN
    """How the model is made to fit into the workers' memories."""


@dataclass(frozen=True)
class Prepared:
    """Blocks, importance and the backbone's own losses: what a search or a training starts from."""

    sources: Sources
    sets: Mapping[str, BlockSet]
    """``general`` and ``domain`` → all blocks of the corpus."""
    blocks: Mapping[str, Blocks]
    """The blocks this run uses: probe, remeasure, general, domain (validation), train, maybe replay."""
    importance: Mapping[str, Any]
    """Content of importance.json."""
    before: Mapping[str, list[float]]
    """``general`` and ``domain`` → the backbone's loss of each validation document, nats; under the names of
    :func:`~adept_ray.training.scoring.tasks_key` its answers to the validation items."""
    fit: Fit = PLAIN
    """How the model was made to fit into the workers' memories."""

    @property
    def layer_importance(self) -> LayerImportance:
        """The layer importance in the form that the method takes."""
        rows = self.importance["layers"]
        return LayerImportance(
            tuple(row["mean"] for row in rows),
            tuple(row["standard_error"] for row in rows),
            self.importance["base_loss"],
            tuple(self.importance["order"]),
            tuple(self.importance.get("reception", ())),
        )

    @property
    def fingerprints(self) -> dict[str, str]:
        """Names of all that the run was made from."""
        made = {f"{side} blocks": blocks.fingerprint for side, blocks in self.sets.items()}
        return self.sources.fingerprints | made


def prepare(context: Context[Any], sources: Sources, needs: Needs) -> Prepared:
    """Build the blocks and run stage 1, as far as the cache doesn't hold them.

    Raises :class:`UserError` when a corpus is too small for its splits, and when reception is to be measured
    of a model that is shared out over the workers.
    """
    if needs.reception and needs.fit.sharded:
        raise UserError(
            "placement receptive needs the whole model on each worker, and this one has to be shared out: "
            "leave it out, or use larger workers"
        )
    display = context.display
    with display.stage("blocks", "token blocks") as update:
        sets = build_block_sets(context, sources, update)
        blocks = select_blocks(context.run, sources, sets, needs)
        if sources.domain:  # a split that is too small is refused now, not after the search
            check_sample_sizes(context.run, "validation", blocks, sources, display.warn)
            check_sample_sizes(
                context.run, "test", load_test_blocks(context.run, sets), sources, display.warn
            )
    with context.show_jobs("probe", "stage 1, importance of layers and units", "probe"):
        stage = StageOne(context, sources, sets, blocks, needs)
        importance, before = stage.read_or_measure()
        if needs.reception:
            importance["reception"] = measure_reception(stage)
    for side, items in sources.items_of("validation").items():
        for sentence in find_tasks_at_chance(items, before[tasks_key(side)]):
            display.warn(f"{side} task {sentence}")
    return Prepared(sources, sets, blocks, importance, before, needs.fit)


def build_block_sets(context: Context[Any], sources: Sources, update: Update) -> dict[str, BlockSet]:
    """All blocks of the corpora, from the cache or built now.

    `update` hears of the bytes that are done, the display of a set in the cache that isn't whole.
    """
    run, backbone, machine = context.run, sources.backbone, context.run.machine
    build = partial(
        build_blocks,
        tokenizer_source=backbone.source,
        tokenizer_revision=backbone.revision,
        seq_len=run.seq_len,
        seed=run.seed,
        cache=machine.local_cache,
        shared=machine.shared_cache,
        say=context.display.say,
        trusted=backbone.trusted,
    )
    corpora = [corpus for corpus in (sources.general, sources.domain) if corpus]
    sizes = [sum(file.stat().st_size for file in corpus.files) for corpus in corpora]
    sets = {"general": build(sources.general, GENERAL_SPLITS)}
    update(sizes[0], sum(sizes))
    if sources.domain:
        sets["domain"] = build(sources.domain, DOMAIN_SPLITS, apart_from=sources.general)
    return sets


def select_blocks(
    run: RunSpec, sources: Sources, sets: Mapping[str, BlockSet], needs: Needs
) -> dict[str, Blocks]:
    """The blocks that a run uses, by name; see :attr:`Prepared.blocks`."""
    wanted = {
        "probe": ("general", "probe", run.probe_tokens),
        "remeasure": ("general", "probe", min(run.remeasure_tokens, run.probe_tokens)),
        "general": ("general", "validation", run.validation_tokens),
    }
    if not sources.domain:
        return load_held_out(run, sets, wanted)
    wanted["domain"] = ("domain", "validation", run.validation_tokens)
    blocks = load_held_out(run, sets, wanted)
    texts = {"train": "domain", "replay": "general"} if needs.replay else {"train": "domain"}
    for name, side in texts.items():
        train = sets[side].load("train", run.seq_len, run.seq_len, getattr(run, side))
        blocks[name] = train.first(max(needs.train_tokens, run.seq_len))
    return blocks


def load_held_out(
    run: RunSpec, sets: Mapping[str, BlockSet], wanted: Mapping[str, tuple[str, str, int]]
) -> dict[str, Blocks]:
    """The first blocks of splits: name → (side, split, tokens)."""
    return {
        name: sets[side].load(split, tokens, run.seq_len, getattr(run, side)).first(tokens)
        for name, (side, split, tokens) in wanted.items()
    }


def check_sample_sizes(
    run: RunSpec, split: str, held: Mapping[str, Blocks], sources: Sources, warn: Callable[[str], None]
) -> None:
    """See that standard errors can be told on a held-out split: they come from its documents or items.

    Warns of few, and raises :class:`UserError` where there is a single one.
    """
    items = sources.items_of(split) if run.score == "tasks" else {}
    for side in SIDES:
        count = len(items[side]) if side in items else len(held[side].document_bytes)
        what, flag = ("item", "--task-items") if side in items else ("document", f"--{split}-tokens")
        where = f"what is held out of '{getattr(run, side)}' for {split}"
        if count < 2:
            raise UserError(f"{where} is a single {what}, which can't tell how sure a score is: raise {flag}")
        if count < FEW:
            warn(f"{where} is {count} {what}s, so standard errors are rough; a larger {flag} helps")


@dataclass(frozen=True)
class StageOne:
    """Stage 1 of a run: what it measures, and where the cache keeps each result."""

    context: Context[Any]
    sources: Sources
    sets: Mapping[str, BlockSet]
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

    def place_importance(self) -> str:
        """Where the cache keeps the importance of layers and units."""
        run = self.context.run
        asked = (self.sets["general"].fingerprint, run.probe_tokens, self.race, run.probe_confidence)
        return cache_place(run, "probes", *self._model, *asked)

    def place_losses(self) -> dict[str, str]:
        """Side → where the cache keeps the backbone's losses."""
        run = self.context.run
        return {
            side: cache_place(run, "losses", *self._model, each.fingerprint, run.validation_tokens)
            for side, each in self.sets.items()
        }

    def place_answers(self) -> dict[str, str]:
        """Side → where the cache keeps the backbone's answers to its items."""
        made_with = (*self._model[:3], version("lm_eval"))
        return {
            side: cache_place(self.context.run, "answers", *made_with, items.content)
            for side, items in self.sources.items_of("validation").items()
        }

    def read(self, place: str) -> Any:
        """A file of the cache; None if it isn't there whole."""
        return read_json(place, say=self.context.display.say)

    def read_or_measure(self) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """Importance and validation losses of the untouched backbone; measured now if no earlier run did."""
        importance = self.read(self.place_importance())
        nats = {side: self.read(place) for side, place in self.place_losses().items()}
        answers = {side: self.read(place) for side, place in self.place_answers().items()}
        missing = [side for side, known in nats.items() if known is None]
        items = self.sources.items_of("validation")
        unanswered = {side: items[side] for side, known in answers.items() if known is None}
        if missing or unanswered or importance is None:
            measured = self.measure(importance is None, missing, unanswered)
            if importance is None:
                importance = {**measured["importance"], "made_from": self.describe_origin()}
                store_json(self.place_importance(), importance)
            nats |= self._store(measured["nats"], self.place_losses(), "nats")
            answers |= self._store(measured["correct"], self.place_answers(), "correct")
        before = {side: known["nats"] for side, known in nats.items()}
        before |= {tasks_key(side): known["correct"] for side, known in answers.items()}
        return importance, before

    def measure(
        self, importance: bool, held_out: list[str], items: Mapping[str, TaskItems]
    ) -> dict[str, Any]:
        """What the crew measures now: importance, the losses of held-out sides, the answers to items."""
        run = self.context.run
        work = describe_probe(
            run,
            self.sources,
            self.needs.fit,
            importance=importance,
            raced=self.race is not None,
            k_max=self.race,
            confidence=run.probe_confidence,
            held_out=tuple(held_out),
            items=items,
        )
        blocks = store_blocks({name: self.blocks[name] for name in ("probe", *held_out)})
        return run_job(self.context.board, Job("probe", "probe", work, blocks))

    def describe_origin(self) -> dict[str, Any]:
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
    def _store(measured: Mapping[str, Any], places: Mapping[str, str], key: str) -> dict[str, Any]:
        """Keep each side's values in the cache; returns them as they are read again."""
        found = {side: {key: values} for side, values in measured.items()}
        for side, values in found.items():
            store_json(places[side], values)
        return found


def measure_reception(stage: StageOne) -> list[float]:
    """Reception of every layer, on as much training text as the probe has of general text."""
    run, sources, domain = stage.context.run, stage.sources, stage.sets["domain"]
    named = (sources.backbone.fingerprint, run.machine.dtype, run.seq_len, domain.fingerprint)
    place = cache_place(run, "receptions", PROBE_VERSION, *named, run.probe_tokens)
    known = stage.read(place)
    if known is None:
        text = domain.load("train", run.seq_len, run.seq_len, run.domain).first(run.probe_tokens)
        work = describe_probe(run, sources, stage.needs.fit, importance=False, reception=True)
        job = Job("reception", "probe", work, store_blocks({"reception": text}))
        known = {"reception": run_job(stage.context.board, job)["reception"]}
        store_json(place, known)
    return known["reception"]


def describe_probe(run: RunSpec, sources: Sources, fit: Fit, **asked: Any) -> ProbeWork:
    """The work that measures what is `asked` (fields of :class:`ProbeWork`) of a run's backbone."""
    backbone = sources.backbone
    return ProbeWork(
        backbone.source,
        backbone.revision,
        run.machine.micro_batch,
        dtype=run.machine.dtype,
        fit=fit,
        trusted=backbone.trusted,
        **asked,
    )


def store_blocks(blocks: Mapping[str, Blocks]) -> Any:
    """A reference to `blocks` in the object store, which every process that needs them reads once."""
    import ray

    return ray.put(dict(blocks))


def cache_place(run: RunSpec, kind: str, *parts: Any) -> str:
    """Path or URI at which the cache keeps a result of that kind made from `parts`."""
    return f"{run.machine.cache}/{kind}/{fingerprint(*parts)}.json"


def load_test_blocks(run: RunSpec, sets: Mapping[str, BlockSet]) -> dict[str, Blocks]:
    """The test splits of both sides; only for the chosen model, once."""
    return load_held_out(run, sets, {side: (side, "test", run.test_tokens) for side in SIDES})
