"""Documents of the Hugging Face hub: a sample of each dataset, read where it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

from adept_ray.config.errors import UserError, shorten_error
from adept_ray.data.assets import replace_file
from adept_ray.data.hub import UnknownRepository, find_commit
from adept_ray.data.hub_client import use_patient_client
from adept_ray.data.hub_faults import explain_hub_error, is_of_the_hub
from adept_ray.data.opening import TAIL, open_ranged
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import (
    LINES,
    PARQUET,
    LinesReader,
    Located,
    Members,
    ParquetReader,
    Reader,
    ZipReader,
    sample_rows,
)

CHECKED_ROWS = 10_000  # at most, until a filter takes one: a dataset may be long


@dataclass(frozen=True)
class HubSource:
    """Where documents lie on the hub; the texts of `columns` are joined to one document.

    Chats among them become text, and answer options ("A. …").
    """

    dataset: str
    columns: tuple[str, ...] = ("text",)
    config: str | None = None
    split: str = "train"
    archive: str = ""
    """A zip of the repository, whose `members` are the data."""
    members: Members = field(default_factory=lambda: Members("*.txt"))
    keep: tuple[tuple[str, str], ...] = ()
    """Columns and the value that a row must have in each to be taken."""
    given: TextRecipe | None = field(default=None, repr=False)
    """What somebody asked for in place of `columns` and `keep`."""

    @property
    def recipe(self) -> TextRecipe:
        """What of a row is its text, and which rows are taken."""
        if self.given:
            return self.given
        wanted = " and ".join(f"{name} == {value!r}" for name, value in self.keep)
        several = "\n".join(f"{{{name}}}" for name in self.columns)
        return TextRecipe(several if len(self.columns) > 1 else self.columns[0], wanted, options=True)

    @property
    def identity(self) -> str:
        """What of it names a corpus, the same as ever where no more than a column was asked for."""
        asked = self.given.identity if self.given else self.columns[0]
        return repr(self) if isinstance(asked, str) else f"{self!r} {asked}"


def find_revisions(sources: tuple[HubSource, ...], kept: Path) -> list[str]:
    """Commits of hub datasets; without the hub those of the last time, from the file `kept`."""
    try:
        patient = not kept.exists()
        return [find_commit("dataset", source.dataset, patient).sha for source in sources]
    except UnknownRepository:
        raise
    except UserError:
        if not kept.exists():
            raise
        return json.loads(kept.read_text())


def keep_revisions(revisions: Sequence[str], kept: Path) -> None:
    """Write commits down, once what was made of them is there."""
    with replace_file(kept) as new:
        new.write_text(json.dumps(list(revisions)))


def check_source(source: HubSource, revision: str) -> None:
    """Read a first document, or the end of an archive, so that what can't be had or read is known early.

    Raises :class:`UserError` as :func:`sample_documents` does.
    """
    use_patient_client()
    recipe = source.recipe
    with explain_stream_errors(source):
        if not source.archive:
            rows = islice(find_rows(source, revision), CHECKED_ROWS)
            next((recipe.read(place, row) for place, row in rows if recipe.takes(place, row)), None)
            return
        file = open_ranged(locate_archive(source, revision))
        file.seek(max(0, file.size - TAIL))
        file.read(1)


def sample_documents(source: HubSource, revision: str) -> Iterator[str]:
    """The documents of a hub dataset, of which the first ones, however many, are a sample of all.

    Only what is read is fetched. Raises :class:`UserError` for what can't be had or read.
    """
    taken, recipe = False, source.recipe
    with explain_stream_errors(source):
        for place, row in find_rows(source, revision):
            if recipe.takes(place, row):
                taken = True
                yield recipe.read(place, row)
    if recipe.filter and not taken:
        raise UserError(f"hub dataset {source.dataset}: {recipe.refusal}")


@contextmanager
def explain_stream_errors(source: HubSource) -> Iterator[None]:
    """One sentence for what the hub refuses, and for what its readers stumble over."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # whatever the readers of a dozen formats raise on someone else's data
        problem = find_denial(source, problem) or problem
        if is_of_the_hub(problem):
            raise UserError(explain_hub_error(source.dataset, problem, "dataset")) from problem
        raise UserError(
            f"hub dataset {source.dataset}: can't be streamed: {shorten_error(problem)}"
        ) from problem


def find_denial(source: HubSource, problem: Exception) -> Exception | None:
    """What the hub says to whoever may not read a dataset: ``datasets`` keeps it to itself."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(problem, DatasetNotFoundError):
        try:
            HfApi().auth_check(source.dataset, repo_type="dataset")
        except HfHubHTTPError as denial:
            return denial
    return None


def locate_archive(source: HubSource, revision: str) -> str:
    """Where a source's archive lies."""
    return f"hf://datasets/{source.dataset}@{revision}/{source.archive}"


def find_rows(source: HubSource, revision: str) -> Iterator[Located]:
    """The rows of a source, a sample first."""
    use_patient_client()
    where = f"hub dataset {source.dataset}"
    readers: list[Reader]
    if source.archive:
        place = locate_archive(source, revision)
        readers = [ZipReader(place, f"{where}, {source.archive}", source.members)]
    else:
        files = list_data_files(source, revision)
        if not all(file.endswith(PARQUET + LINES) for file in files):
            return stream_rows(source, revision)
        readers = [open_reader(file, where, len(files) > 1) for file in files]
    return sample_rows(readers, source.recipe.columns, seed=name_seed(source))


def open_reader(place: str, where: str, among_others: bool) -> Reader:
    """The reader of a file's kind; of several files, messages name it."""
    where = f"{where}, {place.partition('@')[2].partition('/')[2]}" if among_others else where
    return ParquetReader(place, where) if place.endswith(PARQUET) else LinesReader(place, where)


def name_seed(source: HubSource) -> str:
    """The seed of a source's sample, the same for every commit and every filter."""
    return hashlib.sha256(f"{source.dataset} {source.config} {source.split}".encode()).hexdigest()


@lru_cache(maxsize=8)
def list_data_files(source: HubSource, revision: str) -> list[str]:
    """The files of a split, as ``datasets`` finds them. Raises :class:`UserError` for an unknown split."""
    import datasets

    datasets.disable_progress_bars()  # they would stand in logs, and between our own lines
    builder = datasets.load_dataset_builder(source.dataset, source.config, revision=revision)
    splits = builder.config.data_files or {}
    if source.split not in splits:
        known = ", ".join(map(str, splits)) or "none"
        raise UserError(f"hub dataset {source.dataset}: no split '{source.split}'; there are: {known}")
    return [str(file) for file in splits[source.split]]


def stream_rows(source: HubSource, revision: str) -> Iterator[Located]:
    """The rows of files of other kinds, by ``datasets``, from the first on."""
    from datasets import config, load_dataset

    config.STREAMING_READ_MAX_RETRIES = 1  # the client itself is patient, and for how long is its business
    rows = load_dataset(source.dataset, source.config, split=source.split, revision=revision, streaming=True)
    for number, row in enumerate(rows, 1):
        yield f"hub dataset {source.dataset}, row {number}", row
