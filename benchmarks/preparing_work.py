"""What a process of preparing.py does: write text, or make tokens or blocks of it, ours or a rival's way.

python benchmarks/preparing_work.py JSON      # of Asked
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adept_ray.data.loading import Backbone

SEQ_LEN = 1024
FILE_BYTES = 32 * 2**20  # of a file of made-up text, at most
SENTENCES = 24  # of a document, on average
AGAIN = 20  # every such document is the one before
AT_ONCE = 1000  # documents that are tokenized at a time, as packing does
STORE = 200 * 2**20  # bytes of a node's object store
Found = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a process is to do."""

    what: str
    """A name of :data:`WORK`."""
    texts: str
    """Folder of the text."""
    folder: str
    """Where it writes."""
    processes: int
    nodes: int = 1
    group_mb: float = 0
    """MiB of text that a task reads, and half of what it packs; 0: as in every run."""


def find_backbone() -> Backbone:
    """The default one, from the cache, and what its tokenizer imports."""
    from adept_ray.config.places import default_cache
    from adept_ray.data.backbones import resolve_backbone
    from adept_ray.data.loading import load_tokenizer

    load_tokenizer(backbone := resolve_backbone("smollm2-135m", default_cache()))
    return backbone


def write_text(folder: Path, size: float, group_bytes: float) -> None:
    """Files of JSON lines with so many bytes of made-up text in all, each of at most `group_bytes`."""
    from adept_ray.config.places import default_cache
    from adept_ray.data.corpora import resolve_corpus
    from adept_ray.data.shards import read_in_order

    drawn, known = random.Random(0), list[str]()
    for name in ("boolq", "medical"):
        for text in read_in_order(resolve_corpus(name, "text", default_cache()).shards):
            known += re.findall(r"\S.*?[.!?\n](?=\s|$)", text)
    folder.mkdir()
    written, files, documents, text = 0, 0, 0, ""
    while written < size:
        limit, here = min(size - written, group_bytes, FILE_BYTES), 0
        with (folder / f"{files:06d}.jsonl").open("w") as file:
            while here < limit:
                again = bool(documents) and drawn.random() < 1 / AGAIN
                if not again:
                    sentences = drawn.choices(known, k=drawn.randint(1, 2 * SENTENCES))
                    text = f"{documents}. {' '.join(sentences)}"  # none comes again by chance
                documents += 1
                line = json.dumps({"text": text, "again": again}, ensure_ascii=False)
                here += len(line.encode())
                file.write(line + "\n")
        written, files = written + here, files + 1


def list_files(texts: str) -> list[str]:
    """The files of the text."""
    return sorted(map(str, Path(texts).iterdir()))


@contextmanager
def start_ray(asked: Asked) -> Iterator[None]:
    """Ray on one node, or on several of its test cluster, which share the processes."""
    import ray.data  # its import isn't counted

    quiet: Found = {"include_dashboard": False, "object_store_memory": STORE}
    if asked.nodes == 1:
        ray.init("local", num_cpus=asked.processes, log_to_driver=False, **quiet)
        yield
    else:
        from ray.cluster_utils import Cluster

        each: dict[str, Any] = {
            "num_cpus": max(1, asked.processes // asked.nodes),
            "object_store_memory": STORE,
        }
        cluster = Cluster(initialize_head=True, head_node_args=each | quiet)
        for _ in range(asked.nodes - 1):
            cluster.add_node(**each)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    ray.shutdown()
    if asked.nodes > 1:
        cluster.shutdown()


def prepare_text(asked: Asked) -> Found:
    """Token blocks of the text, as a command builds them."""
    from adept_ray.data import corpora, packing, reading

    if size := int(asked.group_mb * 2**20):
        for module, name, value in (
            (reading, "GROUP_BYTES", size),
            (packing, "BUCKET_BYTES", 2 * size),
            (reading, "FEW_BYTES", 0),
            (corpora, "FEW_BYTES", 0),
        ):
            setattr(module, name, value)
    backbone, cache = find_backbone(), Path(asked.folder)
    with start_ray(asked):
        began = time.perf_counter()
        corpus = corpora.resolve_corpus(asked.texts, "text", cache, 2**60)
        read = time.perf_counter()
        plan = packing.PackingPlan(corpus, packing.DOMAIN_SPLITS, backbone, SEQ_LEN, 0)
        made = packing.build_blocks(plan, cache)
        packed = time.perf_counter()
    return {
        "tokens": SEQ_LEN * sum(split["blocks"] for split in made.splits.values()),
        "seconds": packed - began,
        "reading": read - began,
        "packing": packed - read,
        "streams": len(made.splits) * packing.count_buckets(corpus.shards),
    }


def map_text(asked: Asked) -> Found:
    """The same with ``datasets``: as the examples of transformers make blocks."""
    import datasets
    import pyarrow.compute as pc

    from adept_ray.data.loading import load_tokenizer

    tokenizer = load_tokenizer(find_backbone())
    datasets.disable_progress_bars()
    how: Found = {"batched": True, "num_proc": asked.processes}

    def tokenize(rows: Found) -> Found:
        return dict(tokenizer(rows["text"], add_special_tokens=False))

    def group(rows: Found) -> Found:
        joined = {name: list(chain(*each)) for name, each in rows.items()}
        end = len(joined["input_ids"]) // SEQ_LEN * SEQ_LEN
        return {
            name: [each[at : at + SEQ_LEN] for at in range(0, end, SEQ_LEN)] for name, each in joined.items()
        }

    began = time.perf_counter()
    data = datasets.load_dataset(
        "json",
        data_files=list_files(asked.texts),
        split="train",
        cache_dir=asked.folder,
        num_proc=asked.processes,
    )
    loaded = time.perf_counter()
    tokens = data.map(tokenize, remove_columns=data.column_names, **how)
    mapped = time.perf_counter()
    tokens.map(group, **how)
    grouped = time.perf_counter()
    return {
        "tokens": pc.sum(pc.list_value_length(tokens.data["input_ids"])).as_py(),
        "seconds": grouped - began,
        "loading": loaded - began,
        "map": mapped - loaded,
        "grouping": grouped - mapped,
    }


def tokenize_alone(asked: Asked) -> Found:
    """The tokenizer alone, on texts in memory, every process on its own."""
    from adept_ray.data.loading import load_tokenizer

    tokenizer = load_tokenizer(find_backbone()).backend_tokenizer.to_str()
    files = list_files(asked.texts)
    with ProcessPoolExecutor(asked.processes, get_context("spawn")) as pool:
        shares = [files[at :: asked.processes] for at in range(asked.processes)]
        found = list(pool.map(tokenize_files, shares, [tokenizer] * asked.processes))
    return {
        "tokens": sum(each["tokens"] for each in found),
        "seconds": max(each["seconds"] for each in found),
        "first": sum(each["first"] for each in found),
    }


def tokenize_files(files: Sequence[str], text: str) -> Found:
    """Tokens of some files; ``first``: of documents that don't come again, with an EOS each."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    rows = [json.loads(line) for file in files for line in Path(file).read_text().splitlines()]
    texts, tokens, first = [row["text"] for row in rows], 0, 0
    began = time.perf_counter()
    for at in range(0, len(rows), AT_ONCE):
        found = tokenizer.encode_batch(texts[at : at + AT_ONCE], add_special_tokens=False)
        lengths = [len(each.ids) for each in found]
        tokens += sum(lengths)
        first += sum(
            length + 1
            for length, row in zip(lengths, rows[at : at + AT_ONCE], strict=True)
            if not row["again"]
        )
    return {"tokens": tokens, "seconds": time.perf_counter() - began, "first": first}


WORK: Mapping[str, Callable[[Asked], Found]] = {
    "ours": prepare_text,
    "datasets": map_text,
    "tokenizer": tokenize_alone,
}


if __name__ == "__main__":
    asked = Asked(**json.loads(sys.argv[1]))
    print(json.dumps(WORK[asked.what](asked)))
