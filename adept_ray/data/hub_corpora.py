"""Documents streamed from the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adept_ray.config.errors import UserError, shorten_error
from adept_ray.data.assets import replace_file
from adept_ray.data.documents import read_text
from adept_ray.data.hub import find_hub_revision

if TYPE_CHECKING:
    from datasets import IterableDataset


@dataclass(frozen=True)
class HubSource:
    """Where documents lie on the hub; the texts of `columns` are joined to one document."""

    dataset: str
    columns: tuple[str, ...] = ("text",)
    config: str | None = None
    split: str = "train"
    member: str = ""
    """``PATH::ZIP`` when the data are files inside a zip of the repository: .jsonl files, or .txt files with
    one document each."""


def find_revisions(sources: tuple[HubSource, ...], kept: Path) -> list[str]:
    """Commits of hub datasets; without the network those of the last time, from the file `kept`."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        revisions = [find_hub_revision("dataset", source.dataset) for source in sources]
    except UserError as problem:
        if isinstance(problem.__cause__, RepositoryNotFoundError) or not kept.exists():
            raise
        return json.loads(kept.read_text())
    kept.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(kept) as new:
        new.write_text(json.dumps(revisions))
    return revisions


def stream_documents(source: HubSource, revision: str, limit: int) -> Iterator[str]:
    """The first `limit` documents of a hub dataset, without downloading the rest."""
    where = f"hub dataset {source.dataset}"
    try:
        for number, row in enumerate(_open_stream(source, revision).take(limit), 1):
            yield "\n".join(
                _flatten_value(row, column, f"{where}, row {number}") for column in source.columns
            )
    except UserError:
        raise
    except Exception as problem:  # whatever the readers of a dozen formats raise on someone else's data
        raise UserError(f"{where}: can't be streamed: {shorten_error(problem)}") from problem


def _open_stream(source: HubSource, revision: str) -> IterableDataset:
    from datasets import load_dataset

    if not source.member:
        config = source.config
        return load_dataset(source.dataset, config, split=source.split, revision=revision, streaming=True)
    inside, archive = source.member.split("::")
    url = f"zip://{inside}::hf://datasets/{source.dataset}@{revision}/{archive}"
    options = {"sample_by": "document"} if inside.endswith(".txt") else {}
    return load_dataset(
        "text" if options else "json", data_files=url, split="train", streaming=True, **options
    )


def _flatten_value(row: Mapping[str, object], column: str, where: str) -> str:
    """Text of a column that may hold chat turns (their texts) or answer options ("A. …")."""
    value = row.get(column)
    if isinstance(value, dict):
        return "\n".join(f"{key}. {text}" for key, text in value.items() if text)
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return "\n".join(str(turn.get("value") or turn.get("content") or "") for turn in value)
    return read_text(row, column, where)
