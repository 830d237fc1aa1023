"""Documents of the Hugging Face hub: a sample of each dataset, read where it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from adept_ray.config.errors import UserError, shorten_error
from adept_ray.data.archives import Members, ZipReader, open_reader
from adept_ray.data.formats import find_ending
from adept_ray.data.hub import find_commit
from adept_ray.data.hub_client import use_patient_client
from adept_ray.data.hub_faults import explain_hub_error, is_of_the_hub
from adept_ray.data.opening import ASSUMED_SIZE, TAIL, locate_content, open_ranged
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import Located, Omissions, Reader
from adept_ray.data.sampled_sources import check_first_rows


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
    revision: str = field(default="", repr=False)
    """Branch, tag or commit; empty for the main branch."""

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"hub dataset {self.dataset}"

    @property
    def place(self) -> str:
        """What its commit belongs to."""
        return self.dataset

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
        named = repr(self) if isinstance(asked, str) else f"{self!r} {asked}"
        return f"{named} @{self.revision}" if self.revision else named

    @property
    def here(self) -> bool:
        """The hub is the same for all machines."""
        return False

    @property
    def seed(self) -> str:
        """Decides its sample, the same for every commit and every filter."""
        return hashlib.sha256(f"{self.dataset} {self.config} {self.split}".encode()).hexdigest()

    def find_version(self, patient: bool) -> str:
        """Its commit."""
        return find_commit("dataset", self.dataset, patient, self.revision or None).sha

    def check(self, version: str) -> None:
        """Read a first document, or the end of an archive.

        Raises :class:`UserError` as :func:`~adept_ray.data.sampled_sources.check_first_rows` does.
        """
        if not self.archive:
            check_first_rows(self, version)
            return
        use_patient_client()
        with explain_stream_errors(self):
            file = open_ranged(locate_archive(self, version))
            file.seek(max(0, file.size - TAIL))
            file.read(1)

    def open_readers(self, version: str, omissions: Omissions) -> Sequence[Reader]:
        """A reader of each of its files; one for all of them where they are of other kinds."""
        use_patient_client()
        if self.archive:
            content = locate_content(locate_archive(self, version), f"{self.name}, {self.archive}")
            return [ZipReader(content, omissions, self.members)]
        files = list_data_files(self, version)
        if not all(map(find_ending, files)):
            return [StreamReader(self, version)]
        contents = [locate_content(file, name_file(self, file, len(files) > 1)) for file in files]
        return [open_reader(content, omissions) for content in contents]

    def explain_errors(self) -> AbstractContextManager[None]:
        """One sentence for what the hub refuses, and for what its readers stumble over."""
        return explain_stream_errors(self)


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


def name_file(source: HubSource, place: str, among_others: bool) -> str:
    """How messages name a file; among several by its path."""
    return f"{source.name}, {place.partition('@')[2].partition('/')[2]}" if among_others else source.name


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


@dataclass(frozen=True)
class StreamReader:
    """Files of other kinds, which ``datasets`` reads as one, from the first row on."""

    source: HubSource
    revision: str

    def list_pieces(self) -> Sequence[object]:
        """All of them."""
        return (0,)

    def measure(self, piece: object) -> int:
        """Nobody knows."""
        return ASSUMED_SIZE

    def close(self) -> None:
        """Nothing is kept open."""

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """All rows, with all their columns."""
        from datasets import config, load_dataset

        config.STREAMING_READ_MAX_RETRIES = (
            1  # the client itself is patient, and for how long is its business
        )
        name, split = self.source.config, self.source.split
        rows = load_dataset(self.source.dataset, name, split=split, revision=self.revision, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{self.source.name}, row {number}", row
