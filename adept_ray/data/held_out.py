"""What a model is judged by, as text, and how much of it stands in training text, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from adept_ray.data.benchmark_tasks import TaskItems, load_same_tasks
from adept_ray.data.blocks import Blocks
from adept_ray.data.contamination import Finding, HeldOutIndex
from adept_ray.data.packing import PackingPlan, count_buckets, list_near
from adept_ray.data.shards import READ_ROWS, DigestRange, read_digests, read_range
from adept_ray.data.splits import choose_splits, is_among, key_documents
from adept_ray.storage.records import PieceRecord, SharedTextRecord

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedTokenizerFast

EXAMPLES = 3  # texts of a piece that are shown


@dataclass(frozen=True)
class HeldOutPiece:
    """Texts that a side is judged by in one split."""

    side: str
    split: str
    task: str
    """Benchmark task whose items these are; empty: documents of the corpus."""
    texts: Sequence[str]


def decode_documents(blocks: Blocks, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The documents of blocks as text, the last one as far as the blocks go."""
    begins = np.flatnonzero(np.asarray(blocks.starts).ravel())
    pieces = np.split(np.asarray(blocks.tokens).ravel(), begins[begins > 0])
    return tokenizer.batch_decode([piece.tolist() for piece in pieces], skip_special_tokens=True)


def read_item_texts(items: TaskItems) -> dict[str, list[str]]:
    """lm-eval task → question and answer of each of its items. Raises as :func:`draw_items` does."""
    tasks = load_same_tasks(items)
    return {
        name: [describe_item(tasks[name], tasks[name].eval_docs[number]) for number in numbers]
        for name, numbers in items.numbers.items()
    }


def describe_item(task: Task, doc: object) -> str:
    """An item's question as it is put to a model, and its right answer."""
    options = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else []
    texts = []
    for part in (task.doc_to_text(doc), task.doc_to_target(doc)):
        several = part if isinstance(part, list) else [part]
        texts += [options[each] if isinstance(each, int) and options else str(each) for each in several]
    return " ".join(texts)


def read_split(plan: PackingPlan, split: str, cache: Path) -> Iterator[list[str]]:
    """The documents of a split, those that aren't packed left out, a part at a time.

    A document that the corpus repeats comes as often.
    """
    near, number = list_near(plan, cache), list(plan.splits).index(split)
    shards = plan.corpus.shards  # listed once: behind a URI that takes requests
    apart = [shard for corpus in plan.apart_from for shard in corpus.shards]
    buckets = count_buckets(shards)
    for bucket in range(buckets):
        wanted = DigestRange(bucket, buckets)
        held = read_range(shards, wanted, ["digest", "text"])
        digests = held["digest"].to_pylist()
        taken = choose_splits(key_documents(digests, plan.seed), plan.splits) == number
        taken &= ~is_among(digests, read_digests(apart, wanted)) & ~is_among(digests, near)
        places = np.flatnonzero(taken)
        for at in range(0, len(places), READ_ROWS):
            yield held["text"].take(places[at : at + READ_ROWS]).to_pylist()


def count_shared_texts(
    pieces: Sequence[HeldOutPiece], training: Iterable[Sequence[str]]
) -> list[PieceRecord]:
    """How much of each piece stands in the documents of `training`, which come in parts."""
    index = HeldOutIndex([text for piece in pieces for text in piece.texts])
    for part in training:
        index.pass_documents(part)
    findings = iter(index.judge_texts())
    return [describe_piece(piece, list(islice(findings, len(piece.texts)))) for piece in pieces]


def describe_piece(piece: HeldOutPiece, findings: Sequence[Finding]) -> PieceRecord:
    """The record of a piece, from what was found of each of its texts."""
    found = [each for each in findings if each.kind]
    counts = Counter(each.kind for each in found)
    shown = sorted(found, key=lambda each: (each.kind != "whole", -each.share))[:EXAMPLES]
    return {
        "side": piece.side,
        "split": piece.split,
        "task": piece.task,
        "texts": len(findings),
        "whole": counts["whole"],
        "most": counts["most"],
        "part": counts["part"],
        "examples": [cast("SharedTextRecord", asdict(each)) for each in shown],
    }
