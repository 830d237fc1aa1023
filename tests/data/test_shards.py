"""Files of documents by digest: a range is read as it is, and no more of it is held than is asked for."""

import pyarrow as pa

from adept_ray.data import shards
from adept_ray.data.shards import DigestRange, read_distinct, read_range, write_shards

TEXTS = [f"{number} " + "words " * 200 for number in range(300)]


def write(folder, *groups):
    """A file of documents for each group."""
    written = []
    for number, texts in enumerate(groups):
        written += write_shards(texts, lambda part, number=number: f"{folder}/{number}-{part}.parquet")[0]
    return written


def test_a_range_holds_its_own_documents_alone(tmp_path):
    """Not the row groups of all files that they lie in."""
    files = write(tmp_path, *(TEXTS[part::10] for part in range(10)))
    table = read_range(files, DigestRange(3, 50), ["digest", "text"])
    del table
    before = pa.total_allocated_bytes()
    table = read_range(files, DigestRange(3, 50), ["digest", "text"])
    assert 0 < len(table) < 30
    assert pa.total_allocated_bytes() - before < 3 * table.nbytes + 64 * 40


def test_a_repeated_document_is_held_once(tmp_path):
    """However often it comes, in one file or in several; and it is counted as often."""
    files = write(tmp_path, [TEXTS[0]] * 50 + TEXTS[:20], [TEXTS[0]] * 50 + TEXTS[10:40], TEXTS[5:6])
    table, count = read_distinct(files, DigestRange())
    assert sorted(table["text"].to_pylist()) == sorted(text.strip() for text in TEXTS[:40])
    assert count == 151
    parts = [read_distinct(files, DigestRange(number, 7)) for number in range(7)]
    assert sum(count for _, count in parts) == 151 and sum(len(part) for part, _ in parts) == 40
    assert shards.measure_longest(table["text"]) == max(len(text.strip()) for text in TEXTS[:40])
