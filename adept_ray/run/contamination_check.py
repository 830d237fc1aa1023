"""What a run is judged by is looked for in its training text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from adept_ray.config.specs import RunSpec
from adept_ray.data.blocks import Blocks
from adept_ray.data.held_out import (
    HeldOutPiece,
    count_shared_texts,
    decode_documents,
    read_item_texts,
    read_split,
)
from adept_ray.data.loading import load_tokenizer
from adept_ray.data.mixing import MixedBlocks
from adept_ray.method.scores import SIDES
from adept_ray.report.records import Contamination, check_record
from adept_ray.run.block_sets import Plans, list_counts, name_plans
from adept_ray.run.context import Context
from adept_ray.run.sources import Sources
from adept_ray.run.stage_one import locate_in_cache
from adept_ray.run.terminal import Update
from adept_ray.storage.files import read_json, store_json
from adept_ray.storage.records import ContaminationRecord

CONTAMINATION_VERSION = 2  # raise when the same texts would give other counts


@dataclass(frozen=True)
class ContaminationCheck:
    """What is looked for, and where."""

    context: Context[RunSpec]
    sources: Sources
    plans: Plans
    """Which documents of the corpora are in which split."""
    trained_on: tuple[str, ...]
    """Sides whose text is trained on."""
    sets: Mapping[str, MixedBlocks]
    """``general`` and ``domain`` → all blocks of the side's corpora."""
    held_out: Mapping[str, Mapping[str, Blocks]]
    """``validation`` and ``test`` → side → the blocks that it is judged by."""

    def locate_record(self) -> str:
        """Where the cache keeps the counts."""
        run = self.context.run
        texts = {side: each.fingerprint for side, each in self.sets.items()}
        items = {
            f"{side} {split}": self.sources.select_items(split)[side].content
            for split in self.held_out
            for side in self.sources.select_items(split)
        }
        sizes = (run.validation_tokens, run.test_tokens, run.seq_len)
        return locate_in_cache(
            run, "contamination", CONTAMINATION_VERSION, texts, self.trained_on, sizes, items
        )

    def list_pieces(self) -> Iterator[HeldOutPiece]:
        """All that the run is judged by, as text."""
        tokenizer = load_tokenizer(self.sources.backbone)
        for split, sides in self.held_out.items():
            for side in SIDES:
                yield HeldOutPiece(side, split, "", decode_documents(sides[side], tokenizer))
            for side, items in self.sources.select_items(split).items():
                for task, texts in read_item_texts(items).items():
                    yield HeldOutPiece(side, split, task, texts)

    def read_or_count(self, update: Update) -> ContaminationRecord:
        """The counts, from the cache or made now, which reads all training text once.

        `update` hears of the documents that are done.
        """
        place = self.locate_record()
        known: ContaminationRecord | None = read_json(place, self.context.display.say)
        if known is None:
            known = self._count(update)
            store_json(place, known)
        return known

    def _count(self, update: Update) -> ContaminationRecord:
        cache = self.context.run.machine.local_cache
        corpora = list_counts(self.sets)
        trained_on = dict.fromkeys(self.trained_on, 0)
        plans = {side: self.plans[side] for side in trained_on}
        shares = {name: plan.splits["train"] for name, plan in name_plans(plans).items()}
        about = round(sum(corpora[name]["documents"] * share for name, share in shares.items()))

        def read_training() -> Iterator[list[str]]:
            for side, own in plans.items():
                for part in chain.from_iterable(read_split(plan, "train", cache) for plan in own):
                    yield part
                    trained_on[side] += len(part)
                    update(min(sum(trained_on.values()), about), about)

        pieces = count_shared_texts(list(self.list_pieces()), read_training())
        return {"trained_on": trained_on, "pieces": pieces, "corpora": corpora}


def check_contamination(check: ContaminationCheck) -> ContaminationRecord:
    """How much of what the run is judged by stands in its training text; the display warns of much."""
    display = check.context.display
    with display.show_stage("contamination", "training text searched for what is held out") as update:
        found = check.read_or_count(update)
    if sentence := check_record(Contamination, found, "contamination").express_warning():
        display.warn(f"{sentence}; the report shows some of them")
    return found
