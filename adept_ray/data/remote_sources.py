"""Text that lies elsewhere, on the hub or behind a URI: its version, and a sample of its documents."""

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
from adept_ray.data.rows import Located, Omissions

CHECKED_ROWS = 10_000  # at most, until a filter takes one: a dataset may be long


class RemoteSource(Protocol):
    """A place elsewhere, whose text is read in a sample."""

    @property
    def name(self) -> str:
        """How messages name it."""

    @property
    def place(self) -> str:
        """What its version belongs to, where it is written down as ``place@version``."""

    @property
    def recipe(self) -> TextRecipe:
        """What of a row is its text, and which rows are taken."""

    @property
    def identity(self) -> str:
        """What of it names a corpus."""

    def find_version(self, patient: bool) -> str:
        """The name of what it holds now; unless `patient`, one that doesn't answer is not asked again."""

    def check(self, version: str) -> None:
        """Read a little of it, so that what can't be had or read is known early."""

    def find_rows(self, version: str, omissions: Omissions) -> Iterator[Located]:
        """All its rows, in such an order that the first ones are a sample of all."""

    def explain_errors(self) -> AbstractContextManager[None]:
        """One sentence for what goes wrong inside."""


def find_versions(sources: Sequence[RemoteSource], kept: Path) -> list[str]:
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


def check_first_rows(source: RemoteSource, version: str) -> None:
    """Read a first document of a source. Raises :class:`UserError` for what can't be had or read."""
    with source.explain_errors():
        rows = islice(source.find_rows(version, Omissions()), CHECKED_ROWS)
        next(read_texts(rows, source.recipe), None)


def sample_documents(source: RemoteSource, version: str, omissions: Omissions | None = None) -> Iterator[str]:
    """The documents of a source, of which the first ones, however many, are a sample of all.

    Only what is read is fetched. Raises :class:`UserError` for what can't be had or read.
    """
    taken, recipe = False, source.recipe
    with source.explain_errors():
        for text in read_texts(source.find_rows(version, omissions or Omissions()), recipe):
            taken = True
            yield text
    if recipe.filter and not taken:
        raise UserError(f"{source.name}: {recipe.refusal}")
