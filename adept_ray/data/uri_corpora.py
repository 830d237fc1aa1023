"""Documents behind a URI: a sample of its files, read where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from adept_ray.config.errors import UserError
from adept_ray.config.places import drop_signature
from adept_ray.data.archives import open_reader
from adept_ray.data.formats import Selection, check_usable, find_ending, select_files
from adept_ray.data.hub_client import ask_once
from adept_ray.data.opening import locate_content, name_in_place
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import Omissions, Reader
from adept_ray.data.sampled_sources import check_first_rows
from adept_ray.data.uris import GLOB, FoundFile, explain_remote_errors, list_files, name_version


@dataclass(frozen=True)
class UriSource:
    """A file, a folder or a glob behind a URI."""

    place: str
    recipe: TextRecipe = field(default_factory=TextRecipe)
    """What of a row is its text, and which rows are taken."""

    @property
    def name(self) -> str:
        """How messages name it."""
        return name_in_place(self.place)

    @property
    def here(self) -> bool:
        """A URI is the same for all machines."""
        return False

    @property
    def identity(self) -> str:
        """What of it names a corpus."""
        return f"{drop_signature(self.place)} {self.recipe.identity}"

    @property
    def seed(self) -> str:
        """Decides its sample, the same for every version and every filter."""
        return hashlib.sha256(drop_signature(self.place).encode()).hexdigest()

    def find_version(self, patient: bool) -> str:
        """A fingerprint of its files' names, sizes and marks: their ETags, or when they were changed."""
        with self.explain_errors(), nullcontext() if patient else ask_once():
            return name_version(self.place, list_files(self.place))

    def check(self, version: str) -> None:
        """Read a first document. Raises :class:`UserError` for what can't be had or read."""
        check_first_rows(self, version)

    def open_readers(self, version: str, omissions: Omissions) -> Sequence[Reader]:
        """A reader of each of its files. Raises :class:`UserError` for a place that has changed since."""
        found = list_files(self.place)
        if name_version(self.place, found) != version:
            raise UserError(f"{self.name}: its files have changed since this command looked: run it again")
        files, left_out = choose_files(self.place, found)
        omissions.other.extend(left_out)
        contents = [locate_content(file.place, name_in_place(file.place), file.size) for file in files]
        return [open_reader(content, omissions) for content in contents]

    def explain_errors(self) -> AbstractContextManager[None]:
        """One sentence for what its file system refuses."""
        return explain_remote_errors(self.place)


def choose_files(place: str, found: list[FoundFile]) -> tuple[list[FoundFile], tuple[str, ...]]:
    """Which files of a place are read as text, and the names of the others.

    Raises :class:`UserError` where there are none, and for an empty one.
    """
    names = [name_in_folder(file.place, place) for file in found]
    if len(found) == 1 and find_ending(name_in_place(found[0].place)):  # asked for by its name
        chosen = Selection(tuple(names), ())
    else:
        chosen = select_files(names)
    usable = set(chosen.usable)
    files = [file for file, name in zip(found, names, strict=True) if name in usable]
    sizes = {name_in_place(file.place): file.size for file in files}
    check_usable(sizes, chosen.left_out, name_in_place(place))
    return files, chosen.left_out


def name_in_folder(file: str, place: str) -> str:
    """The path of a file behind what a glob leaves open, or in a folder."""
    file, place = name_in_place(file), name_in_place(place)
    fixed = place.rstrip("/") if not GLOB.search(place) else GLOB.split(place)[0].rpartition("/")[0]
    return file.removeprefix(f"{fixed}/") if file.startswith(f"{fixed}/") else file.rpartition("/")[2]
