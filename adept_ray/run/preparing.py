"""What every command does first: it builds token blocks and measures importance.

The cache keeps each result under the fingerprint of all that it was made from. A second run reads it there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.data.benchmark_tasks import find_tasks_at_chance
from adept_ray.data.blocks import Blocks, BlockSet
from adept_ray.data.corpora import fill_corpus
from adept_ray.data.packing import DOMAIN_SPLITS, GENERAL_SPLITS, PackingPlan, build_blocks
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.importance import LayerImportance
from adept_ray.method.scores import SIDES, tasks_key
from adept_ray.run.context import Context
from adept_ray.run.fetching import fetch_to_nodes
from adept_ray.run.sources import Needs, Sources
from adept_ray.run.stage_one import ImportanceFile, StageOne, measure_reception
from adept_ray.run.terminal import Update
from adept_ray.run.text_checks import (
    ContaminationCheck,
    ContaminationRecord,
    check_contamination,
    explain_small_corpora,
)

FEW = 8  # documents or items: with fewer a standard error is itself more than a quarter off


@dataclass(frozen=True)
class Prepared:
    """Blocks, importance and the backbone's own losses: what a search or a training starts from."""

    sources: Sources
    sets: Mapping[str, BlockSet]
    """``general`` and ``domain`` → all blocks of the corpus."""
    blocks: Mapping[str, Blocks]
    """The blocks this run uses: probe, remeasure, general, domain (validation), train, maybe replay."""
    importance: ImportanceFile
    """Content of importance.json."""
    before: Mapping[str, list[float]]
    """``general`` and ``domain`` → the backbone's loss of each validation document, nats; under the names of
    :func:`~adept_ray.method.scores.tasks_key` its answers to the validation items."""
    fit: Fit = PLAIN
    """How the model was made to fit into the workers' memories."""
    contamination: ContaminationRecord | None = None
    """What of all that the model is judged by stands in training text, too; None where nothing is trained."""

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
        of_blocks = {f"{side} blocks": blocks.fingerprint for side, blocks in self.sets.items()}
        return self.sources.fingerprints | of_blocks


def prepare(context: Context[RunSpec], sources: Sources, needs: Needs) -> Prepared:
    """Build the blocks and run stage 1, as far as the cache doesn't hold them.

    Raises :class:`UserError` when a corpus is too small for its splits, and when reception is to be measured
    of a model that is shared out over the workers.
    """
    if needs.reception and needs.fit.sharded:
        raise UserError(
            "placement receptive needs the whole model on each worker, and this one has to be shared out: "
            "leave it out, or use larger workers"
        )
    run, display = context.run, context.display
    bring_files(context, sources)
    with display.show_stage("blocks", "token blocks") as update:
        plans = plan_packing(run, sources)
        sets = build_block_sets(context, plans, update)
        with explain_small_corpora(plans, run.machine.local_cache):  # now, not after the search
            blocks = select_blocks(run, sources, sets, needs)
            held_out = {"validation": blocks}
            if sources.domain:
                held_out["test"] = load_test_blocks(run, sets)
        for split, held in held_out.items() if sources.domain else ():
            check_sample_sizes(run, split, held, sources, display.warn)
    contamination = None
    if sources.domain:
        trained_on = SIDES if needs.replay else ("domain",)
        check = ContaminationCheck(context, sources, plans, trained_on, sets, held_out)
        contamination = check_contamination(check)
    with context.show_jobs("probe", "stage 1, importance of layers and units", "probe"):
        stage = StageOne(context, sources, sets, blocks, needs)
        importance, before = stage.read_or_measure()
        if needs.reception:
            importance["reception"] = measure_reception(stage)
    for side, items in sources.select_items("validation").items():
        for sentence in find_tasks_at_chance(items, before[tasks_key(side)]):
            display.warn(f"{side} task {sentence}")
    return Prepared(sources, sets, blocks, importance, before, needs.fit, contamination)


def bring_files(context: Context[RunSpec], sources: Sources) -> None:
    """Fetch from the hub what of backbone and text isn't here, before anything is built of it.

    Raises :class:`UserError` for what can't be had.
    """
    if sources.backbone.revision:
        fetch_to_nodes(sources.backbone, context.display)
    for corpus in (sources.general, sources.domain):
        if corpus and corpus.is_to_be_filled:
            with context.display.show_stage("text", f"text of {corpus.name}") as update:
                fill_corpus(corpus, update)


def plan_packing(run: RunSpec, sources: Sources) -> dict[str, PackingPlan]:
    """Side → what makes its blocks."""
    how = sources.backbone, run.seq_len, run.seed
    near = run.near_duplicates
    plans = {"general": PackingPlan(sources.general, GENERAL_SPLITS, *how, near_duplicates=near)}
    if sources.domain:
        plans["domain"] = PackingPlan(sources.domain, DOMAIN_SPLITS, *how, sources.general, near)
    return plans


def build_block_sets(
    context: Context[RunSpec], plans: Mapping[str, PackingPlan], update: Update
) -> dict[str, BlockSet]:
    """Side → all blocks of its plan, from the cache or built now.

    `update` hears how many bytes are done. The display hears of a set in the cache that isn't whole.
    """
    machine = context.run.machine
    where = machine.local_cache, machine.shared_cache, context.display.say
    sizes = {side: sum(file.stat().st_size for file in plan.corpus.files) for side, plan in plans.items()}
    sets, done = {}, 0
    for side, plan in plans.items():
        sets[side] = build_blocks(plan, *where)
        done += sizes[side]
        update(done, sum(sizes.values()))
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
        blocks[name] = train.take_first(max(needs.train_tokens, run.seq_len))
    return blocks


def load_held_out(
    run: RunSpec, sets: Mapping[str, BlockSet], wanted: Mapping[str, tuple[str, str, int]]
) -> dict[str, Blocks]:
    """The first blocks of splits: name → (side, split, tokens)."""
    return {
        name: sets[side].load(split, tokens, run.seq_len, getattr(run, side)).take_first(tokens)
        for name, (side, split, tokens) in wanted.items()
    }


def check_sample_sizes(
    run: RunSpec, split: str, held: Mapping[str, Blocks], sources: Sources, warn: Callable[[str], None]
) -> None:
    """Check that a held-out split has enough documents, or items, for standard errors.

    Warns of few. Raises :class:`UserError` where there is only one.
    """
    items = sources.select_items(split) if run.score == "tasks" else {}
    for side in SIDES:
        count = len(items[side]) if side in items else len(held[side].document_bytes)
        what, flag = ("item", "--task-items") if side in items else ("document", f"--{split}-tokens")
        where = f"what is held out of '{getattr(run, side)}' for {split}"
        if count < 2:
            raise UserError(f"{where} is a single {what}, which can't tell how sure a score is: raise {flag}")
        if count < FEW:
            warn(f"{where} is {count} {what}s, so standard errors are rough; a larger {flag} helps")


def load_test_blocks(run: RunSpec, sets: Mapping[str, BlockSet]) -> dict[str, Blocks]:
    """The test splits of both sides; only for the chosen model, once."""
    return load_held_out(run, sets, {side: (side, "test", run.test_tokens) for side in SIDES})
