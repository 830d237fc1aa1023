"""The token blocks of a run's corpora: what makes them, all of them built, and what they leave out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.data.corpora import CorpusFiles
from adept_ray.data.mixing import MixedBlocks, number_names
from adept_ray.data.packing import DOMAIN_SPLITS, GENERAL_SPLITS, PackingPlan, build_blocks
from adept_ray.report.records import Corpus, check_record
from adept_ray.run.context import Context
from adept_ray.run.sources import Sources
from adept_ray.run.terminal import Update
from adept_ray.storage.records import CorpusRecord

SPLITS = {"general": GENERAL_SPLITS, "domain": DOMAIN_SPLITS}

Plans = Mapping[str, Sequence[PackingPlan]]
"""Side → what makes the blocks of each of its corpora."""


def plan_packing(run: RunSpec, sources: Sources) -> Plans:
    """What makes the blocks of all corpora; no document is in two of them."""
    how = sources.backbone, run.seq_len, run.seed
    plans: dict[str, list[PackingPlan]] = {}
    earlier: tuple[CorpusFiles, ...] = ()
    for side, mixed in sources.sides.items():
        plans[side] = []
        for corpus in mixed.parts:
            plans[side].append(PackingPlan(corpus, SPLITS[side], *how, earlier, run.near_duplicates))
            earlier += (corpus,)
    return plans


def name_plans(plans: Plans) -> dict[str, PackingPlan]:
    """Side, and a number where the side has several corpora → what makes the blocks of each."""
    return {
        name: plan
        for side, own in plans.items()
        for name, plan in zip(number_names(side, len(own)), own, strict=True)
    }


def build_block_sets(context: Context[RunSpec], plans: Plans, update: Update) -> dict[str, MixedBlocks]:
    """Side → all blocks of its corpora, from the cache or built now.

    `update` hears how many bytes of text are done. The display hears of a set in the cache that isn't whole.
    """
    machine = context.run.machine
    where = machine.local_cache, machine.shared_cache, context.display.say
    sizes = [sum(shard.bytes for shard in plan.corpus.shards) for plan in name_plans(plans).values()]
    before, left = 0, iter(sizes)
    sets = {}
    for side, own in plans.items():
        built = []
        for plan, size in zip(own, left, strict=False):

            def report(done: int, of: int, before: int = before, size: int = size) -> None:
                update(before + size * done // of, sum(sizes))

            built.append(build_blocks(plan, *where, report))
            before += size
            update(before, sum(sizes))
        mixture = context.run.corpora[side]
        sets[side] = MixedBlocks(tuple(built), tuple(part.name for part in mixture.parts), mixture.shares)
    return sets


def list_counts(sets: Mapping[str, MixedBlocks]) -> dict[str, CorpusRecord]:
    """What is taken of each corpus, under the names of :func:`name_plans`."""
    return {
        name: made.counts
        for side, mixed in sets.items()
        for name, made in zip(number_names(side, len(mixed.sets)), mixed.sets, strict=True)
        if made.counts
    }


@contextmanager
def explain_small_corpora(sets: Mapping[str, MixedBlocks]) -> Iterator[None]:
    """Add to a :class:`UserError` about splits that are too small what the corpora hold."""
    try:
        yield
    except UserError as problem:
        counts = list_counts(sets)
        held = "; ".join(
            f"{name}: {check_record(Corpus, each, name).describe(name)}" for name, each in counts.items()
        )
        raise UserError(f"{problem} ({held})") from None
