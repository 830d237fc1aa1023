"""The text of a source becomes files of documents: on all nodes by Ray Data, a little of it right here.

What a source has is listed in the order of its sample and cut into groups of about GROUP_BYTES. A task reads
a group, and writes its documents into files and last of all a record. So documents never travel, a task holds
no more than one file's text, and whoever begins again, or needs more text, reads only the groups without a
record. Which groups are taken follows from the source and the bytes that are needed, not from who read them.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypedDict

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import name_fault_place
from adept_ray.data.documents import read_texts
from adept_ray.data.hub import TOKEN, find_token
from adept_ray.data.ray_tasks import map_rows
from adept_ray.data.rows import FilePiece, Omissions, Reader, sample_pieces
from adept_ray.data.sampled_sources import SampledSource
from adept_ray.data.shards import TextShard, write_shards
from adept_ray.storage.files import measure_files, open_filesystem, read_json, store_json

if TYPE_CHECKING:
    from ray import ObjectRef

GROUP_BYTES = 64 * 2**20  # of text, about, that one task reads
LOOK_S = 60.0  # seconds in which the other nodes say whether they see a file
FEW_BYTES = 64 * 2**20  # of text that the command reads itself: to start tasks would take longer


@dataclass(frozen=True)
class ReadingJob:
    """What a task is told, but its group."""

    source: SampledSource
    readers: Sequence[Reader]
    omissions: Omissions
    """Into which the readers write."""
    place: str
    """Folder or URI of the groups of this source in this version."""
    limit: int
    """Bytes of text that are needed at most, after which a group isn't read to its end."""
    token: str = field(default="", repr=False)
    """Of the hub."""


class GroupRecord(TypedDict):
    """What was read of a group."""

    shards: list[dict[str, Any]]
    """As :class:`TextShard` has them."""
    cut: bool
    """Whether the limit came before its end."""
    files: list[int]
    """Numbers of the files that it has pieces of."""
    pieces: int
    bad: list[str]
    """As :class:`Omissions` has them."""
    other: list[str]


@dataclass(frozen=True)
class Taken:
    """What was taken of a source."""

    source: SampledSource
    groups: Sequence[GroupRecord]
    files: int
    """Of which it consists."""
    whole: bool
    """Whether that is all of it."""
    omissions: Omissions
    """What of it can't be read."""

    @property
    def shards(self) -> list[TextShard]:
        """Its documents."""
        return [TextShard(**shard) for group in self.groups for shard in group["shards"]]

    @property
    def bytes(self) -> int:
        """Of text, as UTF-8."""
        return sum(map(count_bytes, self.groups))

    def describe(self) -> str:
        """How much of it was read, in words; empty where that is all."""
        if self.whole:
            return ""
        files = len({file for group in self.groups for file in group["files"]})
        pieces, documents = (
            sum(group["pieces"] for group in self.groups),
            sum(shard.documents for shard in self.shards),
        )
        return (
            f"read of {self.source.name}: {pieces:,} piece{'s' * (pieces != 1)} of {files:,} of its "
            f"{self.files:,} file{'s' * (self.files != 1)}, {documents:,} documents, "
            f"{self.bytes / 1e6:,.1f} MB of text"
        )


Heard = Callable[[int], None]
"""Hears how many bytes of a source's text are there, about."""


def read_source(job: ReadingJob, heard: Heard) -> Taken:
    """Read of a source as many groups as hold the bytes that are needed, or all.

    Where that is much, Ray reads if it runs. Raises :class:`UserError` for what can't be had or read, of
    several faults for the first one in the order of the sample, and for a filter that leaves nothing.
    """
    own = job if _is_read_here(job) else deepcopy(job)  # what has been opened can't be sent to a task
    groups = cut_groups(_list_pieces(own))
    taken: list[GroupRecord] = []
    size, whole = 0, True
    for record in _read_here(job, groups, heard) if own is job else _read_on_nodes(job, groups, heard):
        taken.append(record)
        size += count_bytes(record)
        heard(size)
        if size >= job.limit:
            whole = False
            break
    if job.source.recipe.filter and not size:
        raise UserError(f"{job.source.name}: {job.source.recipe.refusal}")
    other = [
        name
        for omissions in (own.omissions.other, *(group["other"] for group in taken))
        for name in omissions
    ]
    bad = [problem for group in taken for problem in group["bad"]]
    omissions = Omissions(job.omissions.skip_bad, bad, list(dict.fromkeys(other)))
    return Taken(job.source, taken, len(job.readers), whole, omissions)


def _list_pieces(job: ReadingJob) -> Iterator[FilePiece]:
    with job.source.explain_errors():
        yield from sample_pieces(job.readers, job.source.seed)


Groups = Iterator[tuple[int, Iterator[FilePiece]]]


def cut_groups(pieces: Iterable[FilePiece]) -> Groups:
    """Number the pieces' groups of GROUP_BYTES; none of it is listed before it is asked for."""
    number = filled = 0

    def number_group(piece: FilePiece) -> int:
        nonlocal number, filled
        if filled and filled + piece.size > GROUP_BYTES:
            number, filled = number + 1, 0
        filled += piece.size
        return number

    return groupby(pieces, number_group)


def _is_read_here(job: ReadingJob) -> bool:
    """Whether this process reads: a little text, and files that no node of a cluster elsewhere sees."""
    if job.limit <= FEW_BYTES:
        return True
    import ray
    from ray.util.client import ray as client

    return not ray.is_initialized() or (job.source.here and client.is_connected())


def _read_here(job: ReadingJob, groups: Groups, heard: Heard) -> Iterator[GroupRecord]:
    before, there = 0, measure_files(*open_filesystem(job.place))
    for number, pieces in groups:

        def hear_more(size: int, before: int = before) -> None:
            heard(before + size)

        record = find_group(job, number, there) or read_group(job, number, pieces, hear_more)
        yield record
        before += count_bytes(record)


def _read_on_nodes(job: ReadingJob, groups: Groups, heard: Heard) -> Iterator[GroupRecord]:
    """Groups in their order; as many are read at once as still seem to be needed."""
    job, node = replace(job, token=find_token()), _choose_node(job.source)
    size = announced = 0
    there = measure_files(*open_filesystem(job.place))  # to ask for each record would take a request each
    while True:
        ratio = size / announced if size else 1.0
        chosen: dict[int, list[FilePiece]] = {}
        expected = 0.0
        for number, pieces in groups:
            chosen[number] = list(pieces)
            weight = max(1, sum(piece.size for piece in chosen[number]))
            announced, expected = announced + weight, expected + ratio * weight
            if size + expected >= job.limit:
                break
        if not chosen:
            return
        found = {number: record for number in chosen if (record := find_group(job, number, there))}
        rest = [
            {"number": number, "pieces": pickle.dumps(pieces)}
            for number, pieces in chosen.items()
            if number not in found
        ]
        faults: dict[int, str] = {}
        done = size + sum(map(count_bytes, found.values()))
        with name_fault_place(job.place):
            for row in map_rows(_read_row, rest, job, node):
                number = row["number"]
                if row["fault"]:
                    faults[number] = row["fault"]
                    continue
                found[number] = row["record"]
                done += count_bytes(found[number])
                heard(done)
        for number in chosen:
            if number in faults:
                raise UserError(faults[number])
            size += count_bytes(found[number])
            yield found[number]


def _choose_node(source: SampledSource) -> str:
    """The id of this node, where it is the only one that sees the source; else empty."""
    if not source.here:
        return ""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    look = ray.remote(num_cpus=0, max_retries=0)(_find_version)
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(source)
        for node in others
    ]
    try:
        seen = ray.get(asked, timeout=LOOK_S)
    except ray.exceptions.RayError:
        return here
    return "" if all(version == _find_version(source) for version in seen) else here


def _find_version(source: SampledSource) -> str:
    """The version of a source as this node sees it; empty where it doesn't."""
    try:
        return source.find_version(patient=False)
    except (OSError, UserError):
        return ""


@functools.lru_cache(maxsize=2)
def _get_job(job: ObjectRef[ReadingJob]) -> ReadingJob:
    """The job, whose last group's files stay open for the next one that this process reads."""
    import ray

    return ray.get(job)


def _read_row(row: dict[str, Any], job: ObjectRef[ReadingJob]) -> dict[str, Any]:
    """Read the group of a row; the fault of one is no other's, so that the first in order can be told."""
    told = _get_job(job)
    if told.token:
        os.environ.setdefault(TOKEN, told.token)
    number = int(row["number"])
    try:
        record = read_group(told, number, pickle.loads(row["pieces"]))
    except UserError as problem:
        return {"number": number, "record": None, "fault": str(problem)}
    for file in set(range(len(told.readers))).difference(record["files"]):
        told.readers[file].close()
    return {"number": number, "record": record, "fault": ""}


def find_group(job: ReadingJob, number: int, there: Mapping[str, int]) -> GroupRecord | None:
    """The record of a group that has been read as far as it is needed; None if there is none.

    `there` are the files of the job's place, name → size. A record of text that isn't there counts for none.
    """
    for cut in (False, True):
        name = name_record(job, number, cut)
        record: GroupRecord | None = read_json(f"{job.place}/{name}") if name in there else None
        if record is None or (not cut and count_bytes(record) > job.limit):
            continue
        if all(TextShard(**shard).is_among(there) for shard in record["shards"]):
            return record
    return None


def name_record(job: ReadingJob, number: int, cut: bool) -> str:
    """How the record of a group is named."""
    return f"{number:06d}{f'-{job.limit}' if cut else ''}.json"


def read_group(
    job: ReadingJob, number: int, pieces: Iterable[FilePiece], heard: Heard = lambda size: None
) -> GroupRecord:
    """Read a group and write its documents down, and last of all its record."""
    bad, other = len(job.omissions.bad), len(job.omissions.other)
    read: list[FilePiece] = []

    def iterate_texts() -> Iterator[str]:
        size, recipe = 0, job.source.recipe
        with job.source.explain_errors():
            for each in pieces:
                read.append(each)
                rows = job.readers[each.file].read(each.piece, recipe.columns)
                for text in read_texts(rows, recipe):
                    yield text
                    size += len(text)
                    heard(size)

    place = f"{job.place}/{number:06d}-{job.limit}"
    shards, cut = write_shards(iterate_texts(), lambda part: f"{place}-{part:03d}.parquet", job.limit)
    record: GroupRecord = {
        "shards": [asdict(shard) for shard in shards],
        "cut": cut,
        "files": sorted({each.file for each in read}),
        "pieces": len(read),
        "bad": job.omissions.bad[bad:],
        "other": job.omissions.other[other:],
    }
    store_json(f"{job.place}/{name_record(job, number, cut)}", record)
    return record


def count_bytes(group: GroupRecord) -> int:
    """Bytes of a group's text, as UTF-8."""
    return sum(shard["bytes"] for shard in group["shards"])
