"""What every command does first: it builds token blocks and measures importance.

The cache keeps each result under the fingerprint of all that it was made from. A second run reads it there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.data.blocks import Blocks
from adept_ray.data.mixing import MixedBlocks
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.importance import LayerImportance
from adept_ray.method.scores import SIDES, value_or_nan
from adept_ray.run.block_sets import build_block_sets, explain_small_corpora, plan_packing
from adept_ray.run.contamination_check import ContaminationCheck, check_contamination
from adept_ray.run.context import Context
from adept_ray.run.fetching import bring_files
from adept_ray.run.sources import Needs, Sources, name_parts
from adept_ray.run.stage_one import ImportanceFile, StageOne, measure_reception, warn_of_chance
from adept_ray.run.training_text import list_passes, show_passes
from adept_ray.storage.records import ContaminationRecord

FEW = 8  # documents or items: with fewer a standard error is itself more than a quarter off


@dataclass(frozen=True)
class Prepared:
    """Blocks, importance and the backbone's own losses: what a search or a training starts from."""

    sources: Sources
    sets: Mapping[str, MixedBlocks]
    """``general`` and ``domain`` → all blocks of the side's corpora."""
    blocks: Mapping[str, Blocks]
    """The blocks this run uses: probe, remeasure, general, domain (validation), and those to train on under
    the names of :func:`name_parts`, which stay in their files."""
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
            tuple(value_or_nan(row["standard_error"]) for row in rows),
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
            "leave it out of the search space, or use larger workers"
        )
    run, display = context.run, context.display
    bring_files(sources, display, run.machine.shared_cache)
    with display.show_stage("blocks", "token blocks") as update:
        plans = plan_packing(run, sources)
        sets = build_block_sets(context, plans, update)
        with explain_small_corpora(sets):  # now, not after the search
            blocks = select_blocks(run, sources, sets, needs)
            held_out = {"validation": blocks}
            if sources.domain:
                held_out["test"] = load_test_blocks(run, sets)
        if needs.train_tokens:
            show_passes(list_passes(run, blocks, needs), display)
            warn_of_unjudged(run, sets, display.warn)
        for split, held in held_out.items() if sources.domain else ():
            check_sample_sizes(run, split, held, sources, display.warn)
    contamination = None
    if sources.domain:
        check = ContaminationCheck(context, sources, plans, needs.trained_on, sets, held_out)
        contamination = check_contamination(check)
    with context.show_jobs("probe", "stage 1, importance of layers and units", "probe"):
        stage = StageOne(context, sources, sets, blocks, needs)
        importance, before = stage.read_or_measure()
        if needs.reception:
            importance["reception"] = measure_reception(stage)
    warn_of_chance(sources, before, display.warn)
    return Prepared(sources, sets, blocks, importance, before, needs.fit, contamination)


def select_blocks(
    run: RunSpec, sources: Sources, sets: Mapping[str, MixedBlocks], needs: Needs
) -> dict[str, Blocks]:
    """The blocks that a run uses, by name; see :attr:`Prepared.blocks`."""
    probe = sets["general"].load_spread("probe", run.probe_tokens, run.seq_len)
    remeasured = probe.take_first(min(run.remeasure_tokens, run.probe_tokens))
    sides = SIDES if sources.domain else ("general",)
    held_out = load_held_out(run, sets, {side: (side, "validation", run.validation_tokens) for side in sides})
    blocks = {"probe": probe, "remeasure": remeasured, **held_out}
    if not sources.domain:
        return blocks
    for side in ("domain", "general") if needs.replay else ("domain",):
        text = sets[side].load_training(needs.train_tokens, run.seq_len)
        blocks |= zip(name_parts(run)[side], text, strict=True)
    return blocks


def load_held_out(
    run: RunSpec, sets: Mapping[str, MixedBlocks], wanted: Mapping[str, tuple[str, str, int]]
) -> dict[str, Blocks]:
    """The first blocks of splits, in memory: name → (side, split, tokens)."""
    return {
        name: sets[side].load(split, tokens, run.seq_len) for name, (side, split, tokens) in wanted.items()
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
        where = f"what is held out of '{run.corpora[side].unsigned}' for {split}"
        if count < 2:
            raise UserError(f"{where} is a single {what}, which can't tell how sure a score is: raise {flag}")
        if count < FEW:
            warn(f"{where} is {count} {what}s, so standard errors are rough; a larger {flag} helps")


def warn_of_unjudged(run: RunSpec, sets: Mapping[str, MixedBlocks], warn: Callable[[str], None]) -> None:
    """Name the corpora that are too small a part of their side to have a block of what is held out."""
    missing: dict[tuple[str, str, float], list[str]] = {}
    for side, mixed in sets.items():
        for split in ("probe",) * (side == "general") + ("validation", "test"):
            for name, share in mixed.list_missing(getattr(run, f"{split}_tokens"), run.seq_len).items():
                missing.setdefault((side, name, share), []).append(split)
    for (side, name, share), splits in missing.items():
        flags = " and ".join(f"--{split}-tokens" for split in splits)
        warn(
            f"'{name}' is {share:.1%} of the {side} text, and no block of it is held out for "
            f"{' and '.join(splits)}, so nothing there is measured on it: with {flags} "
            f"{run.seq_len * math.ceil(1 / share)} it has one"
        )


def load_test_blocks(run: RunSpec, sets: Mapping[str, MixedBlocks]) -> dict[str, Blocks]:
    """The test splits of both sides; only for the chosen model, once."""
    return load_held_out(run, sets, {side: (side, "test", run.test_tokens) for side in SIDES})
