"""What every command does first: find backbone and corpora, build token blocks, measure importance.

Each result is kept in the cache under the fingerprint of all that made it, so a second run reads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.config.validation import fingerprint
from adept_ray.data.benchmark_tasks import find_tasks_at_chance
from adept_ray.data.blocks import Blocks, BlockSet
from adept_ray.data.packing import DOMAIN_SPLITS, GENERAL_SPLITS, build_blocks
from adept_ray.engine.crew import Job, Progress, run_job, watch_board
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.importance import LayerImportance
from adept_ray.method.scores import SIDES
from adept_ray.run.sources import Sources
from adept_ray.run.terminal import Display, Update
from adept_ray.storage.files import read_json, store_json
from adept_ray.training.scoring import tasks_key
from adept_ray.training.work import ProbeWork

FEW = 8  # documents or items: with fewer a standard error is itself more than a quarter off
PROBE_VERSION = 2  # raise when the same model and probe would give other numbers


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


def prepare(
    run: RunSpec,
    sources: Sources,
    display: Display,
    board: Any,
    k_max: int,
    train_tokens: int = 0,
    replay: bool = False,
    receptive: bool = False,
    fit: Fit = PLAIN,
) -> Prepared:
    """Build the blocks and run stage 1, as far as the cache doesn't hold them. Needs a running Ray.

    `k_max` is the largest depth of interest, which a raced probe goes by. With `replay` the blocks hold
    general text to train on, too. With `receptive` every layer's reception is measured on training text.
    `fit` is how the model is made to fit into the workers' memories.

    Of the training split only what `train_tokens` take is handed to the workers; documents lie in it in
    the order of a hash, so that is a fair sample. A smaller split is gone through several times.
    Raises :class:`UserError` when a corpus is too small for its splits, and when reception is to be measured
    of a model that is shared out over the workers.
    """
    if receptive and fit.sharded:
        raise UserError(
            "placement receptive needs the whole model on each worker, and this one has to be shared out: "
            "leave it out, or use larger workers"
        )
    with display.stage("blocks", "token blocks") as update:
        sets = token_blocks(run, sources, update, display.say)
        wanted = {
            "probe": ("general", "probe", run.probe_tokens),
            "remeasure": ("general", "probe", min(run.remeasure_tokens, run.probe_tokens)),
            "general": ("general", "validation", run.validation_tokens),
        }
        if sources.domain:
            wanted["domain"] = ("domain", "validation", run.validation_tokens)
        blocks = load_held_out(run, sets, wanted)
        if sources.domain:
            texts = {"train": "domain", "replay": "general"} if replay else {"train": "domain"}
            for name, side in texts.items():
                train = sets[side].load("train", run.seq_len, run.seq_len, getattr(run, side))
                blocks[name] = train.first(max(train_tokens, run.seq_len))
            # Too small a split is said now, not after the search.
            check_sample_sizes(run, "validation", blocks, sources, display.warn)
            check_sample_sizes(run, "test", load_test_blocks(run, sets), sources, display.warn)
    with show_jobs(display, board, "probe", "stage 1, importance of layers and units", "probe"):
        found = functools.partial(read_json, say=display.say)
        importance, before = measure_stage_one(run, sources, sets, blocks, board, k_max, fit, found)
        if receptive:
            importance["reception"] = measure_reception(run, sources, sets, board, fit, found)
    for side, items in sources.items_of("validation").items():
        for sentence in find_tasks_at_chance(items, before[tasks_key(side)]):
            display.warn(f"{side} task {sentence}")
    return Prepared(sources, sets, blocks, importance, before)


@contextmanager
def show_jobs(display: Display, board: Any, name: str, what: str, *jobs: str) -> Iterator[None]:
    """A stage with the progress of the `jobs` that the crew does in it, one after the other."""
    with display.stage(name, what) as update:

        def show(progress: Progress, _: object) -> None:
            shares = [done / of for done, of in (progress.get(job, (0, 1)) for job in jobs)]
            update(round(1000 * sum(shares)), 1000 * len(jobs))

        with watch_board(board, show):
            yield


def token_blocks(
    run: RunSpec, sources: Sources, update: Update, say: Callable[[str], None]
) -> dict[str, BlockSet]:
    """All blocks of the corpora, from the cache or built now.

    `update` hears of the bytes that are done, `say` of half a set in the cache.
    """
    backbone = sources.backbone
    common = (backbone.source, backbone.revision, run.seq_len, run.seed, run.machine.local_cache)
    shared = run.machine.cache if "://" in run.machine.cache else ""
    build = functools.partial(build_blocks, shared=shared, say=say, trusted=backbone.trusted)
    sizes = [
        sum(file.stat().st_size for file in corpus.files)
        for corpus in (sources.general, sources.domain)
        if corpus
    ]
    sets = {"general": build(sources.general, GENERAL_SPLITS, *common)}
    update(sizes[0], sum(sizes))
    if sources.domain:
        sets["domain"] = build(sources.domain, DOMAIN_SPLITS, *common, apart_from=sources.general)
    return sets


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


def measure_stage_one(
    run: RunSpec,
    sources: Sources,
    sets: Mapping[str, BlockSet],
    blocks: Mapping[str, Blocks],
    board: Any,
    k_max: int,
    fit: Fit,
    found: Callable[[str], Any],
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Importance and validation losses of the untouched backbone; measured now if no earlier run did.

    `found` reads a file of the cache, None if it isn't there.
    """
    model = (PROBE_VERSION, sources.backbone.fingerprint, run.machine.dtype, run.seq_len)
    race = k_max if run.probe == "raced" else None  # an exhaustive probe serves every depth
    how = (run.probe_tokens, race, run.probe_confidence)
    probe_file = cache_place(run, "probes", *model, sets["general"].fingerprint, *how)
    nats_files = {
        side: cache_place(run, "losses", *model, sets[side].fingerprint, run.validation_tokens)
        for side in sets
    }
    items = sources.items_of("validation")
    answer_files = {
        side: cache_place(run, "answers", *model[:3], version("lm_eval"), each.content)
        for side, each in items.items()
    }
    importance = found(probe_file)
    nats = {side: found(file) for side, file in nats_files.items()}
    answers = {side: found(file) for side, file in answer_files.items()}
    missing = [side for side, known in nats.items() if known is None]
    unanswered = {side: items[side] for side, known in answers.items() if known is None}
    if missing or unanswered or importance is None:
        import ray

        work = ProbeWork(
            sources.backbone.source,
            sources.backbone.revision,
            run.machine.micro_batch,
            importance=importance is None,
            raced=race is not None,
            k_max=race,
            confidence=run.probe_confidence,
            held_out=tuple(missing),
            items=unanswered,
            dtype=run.machine.dtype,
            fit=fit,
            trusted=sources.backbone.trusted,
        )
        reference = ray.put({name: blocks[name] for name in ("probe", *missing)})
        measured = run_job(board, Job("probe", "probe", work, reference))
        if work.importance:
            made_from = {
                "backbone": sources.backbone.name,
                "fingerprint": sources.backbone.fingerprint,
                "corpus": sources.general.name,
                "blocks": sets["general"].fingerprint,
                "tokens": len(blocks["probe"]) * run.seq_len,
                "seq_len": run.seq_len,
            }
            importance = {**measured["importance"], "made_from": made_from}
            store_json(probe_file, importance)
        for side, values in measured["nats"].items():
            nats[side] = {"nats": values}
            store_json(nats_files[side], nats[side])
        for side, values in measured["correct"].items():
            answers[side] = {"correct": values}
            store_json(answer_files[side], answers[side])
    before = {side: known["nats"] for side, known in nats.items()}
    before |= {tasks_key(side): known["correct"] for side, known in answers.items()}
    return importance, before


def measure_reception(
    run: RunSpec,
    sources: Sources,
    sets: Mapping[str, BlockSet],
    board: Any,
    fit: Fit,
    found: Callable[[str], Any],
) -> list[float]:
    """Reception of every layer, on as much training text as the probe has of general text."""
    named = (
        sources.backbone.fingerprint,
        run.machine.dtype,
        run.seq_len,
        sets["domain"].fingerprint,
        run.probe_tokens,
    )
    file = cache_place(run, "receptions", PROBE_VERSION, *named)
    known = found(file)
    if known is None:
        import ray

        text = sets["domain"].load("train", run.seq_len, run.seq_len, run.domain).first(run.probe_tokens)
        source, revision = sources.backbone.source, sources.backbone.revision
        work = ProbeWork(
            source,
            revision,
            run.machine.micro_batch,
            importance=False,
            reception=True,
            dtype=run.machine.dtype,
            fit=fit,
            trusted=sources.backbone.trusted,
        )
        measured = run_job(board, Job("reception", "probe", work, ray.put({"reception": text})))
        known = {"reception": measured["reception"]}
        store_json(file, known)
    return known["reception"]


def cache_place(run: RunSpec, kind: str, *parts: Any) -> str:
    """Path or URI at which the cache keeps a result of that kind made from `parts`."""
    return f"{run.machine.cache}/{kind}/{fingerprint(*parts)}.json"


def load_test_blocks(run: RunSpec, sets: Mapping[str, BlockSet]) -> dict[str, Blocks]:
    """The test splits of both sides; only for the chosen model, once."""
    return load_held_out(run, sets, {side: (side, "test", run.test_tokens) for side in SIDES})
