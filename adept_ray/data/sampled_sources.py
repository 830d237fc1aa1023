"""Text that is read in a sample, on the hub, behind a URI or in a large folder: its version, its files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Protocol

from adept_ray.config.errors import UserError
from adept_ray.data.assets import replace_file
from adept_ray.data.documents import read_texts
from adept_ray.data.hub import UnknownRepository
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import Located, Omissions, Reader, sample_rows

CHECKED_ROWS = 10_000  # at most, until a filter takes one: a dataset may be long


class SampledSource(Protocol):
    """A place whose text is read in a sample."""

    @property
    def name(self) -> str:
        """How messages name it."""

    @property
    def place(self) -> str:
        """What its version belongs to, where it is written down as ``place@version``."""

    @property
    def here(self) -> bool:
        """Whether it lies on this machine, which others may not reach."""

    @property
    def recipe(self) -> TextRecipe:
        """What of a row is its text, and which rows are taken."""

    @property
    def identity(self) -> str:
        """What of it names a corpus."""

    @property
    def seed(self) -> str:
        """Decides its sample."""

    def find_version(self, patient: bool) -> str:
        """The name of what it holds now; unless `patient`, one that doesn't answer is not asked again."""

    def check(self, version: str) -> None:
        """Read a little of it, so that what can't be had or read is known early."""

    def open_readers(self, version: str, omissions: Omissions) -> Sequence[Reader]:
        """A reader of each of its files. Until it has opened its file it may be sent to other processes."""

    def explain_errors(self) -> AbstractContextManager[None]:
        """One sentence for what goes wrong inside."""


def sample_source(source: SampledSource, version: str) -> Iterator[Located]:
    """All rows of a source, of which the first ones, however many, are a sample of all.

    Only what is read is fetched. Raises :class:`UserError` for what can't be had or read.
    """
    with source.explain_errors():
        readers = source.open_readers(version, Omissions())
        yield from sample_rows(readers, source.recipe.columns, source.seed)


def find_versions(sources: Sequence[SampledSource], kept: Path) -> list[str]:
    """Versions of sources; where one can't be reached those of the last time, from the file `kept`."""
    try:
        return [source.find_version(patient=not kept.exists()) for source in sources]
    except UnknownRepository:
        raise
    except UserError:
        if not kept.exists():
            raise
        return json.loads(kept.read_text(encoding="utf-8"))


def keep_versions(versions: Sequence[str], kept: Path) -> None:
    """Write versions down, once what was made of them is there."""
    with replace_file(kept) as new:
        new.write_text(json.dumps(list(versions)), encoding="utf-8")


def check_first_rows(source: SampledSource, version: str) -> None:
    """Read a first document of a source. Raises :class:`UserError` for what can't be had or read."""
    next(read_texts(islice(sample_source(source, version), CHECKED_ROWS), source.recipe), None)
