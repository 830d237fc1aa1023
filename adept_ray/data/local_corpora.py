"""Documents of large files and folders of this machine: a sample of them, as of what lies elsewhere."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import explain_os_faults
from adept_ray.config.validation import fingerprint
from adept_ray.data.archives import open_reader
from adept_ray.data.documents import LocalFiles
from adept_ray.data.formats import find_ending
from adept_ray.data.opening import locate_content
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import Omissions, Reader
from adept_ray.data.sampled_sources import check_first_rows

PROBE_BYTES = 16 * 2**10  # of a file that are hashed at each of some places
PROBES = 6  # places besides its beginning and its end


@dataclass(frozen=True)
class LocalSource:
    """Files of this machine, of which too much is there to be read whether it is needed or not."""

    root: Path
    files: LocalFiles
    recipe: TextRecipe = field(default_factory=TextRecipe)
    """What of a row is its text, and which rows are taken."""

    @property
    def name(self) -> str:
        """How messages name them."""
        return str(self.root)

    @property
    def place(self) -> str:
        """Where they lie."""
        return f"{self.root} ({len(self.files.usable)} files)"

    @property
    def here(self) -> bool:
        """Other machines may not see them."""
        return True

    @property
    def identity(self) -> str:
        """What of them names a corpus; not where they lie, so that they may be moved."""
        kinds = [find_ending(file.name) for file in self.files.usable]
        return f"files {self.recipe.identity} {kinds}"

    @property
    def seed(self) -> str:
        """Decides their sample."""
        return "files"

    def find_version(self, patient: bool) -> str:
        """A fingerprint of their sizes, of when they were changed and of parts of what they hold.

        Reading all would take too long. Raises :class:`UserError` for a file that can't be read.
        """
        with explain_os_faults():
            stats = [(file, file.stat()) for file in self.files.usable]
            probes = [probe_file(file, stat.st_size, stat.st_ctime_ns) for file, stat in stats]
        return fingerprint("probes", [(stat.st_size, stat.st_mtime_ns) for _, stat in stats], probes)

    def check(self, version: str) -> None:
        """Read a first document. Raises :class:`UserError` for what can't be read."""
        check_first_rows(self, version)

    def open_readers(self, version: str, omissions: Omissions) -> Sequence[Reader]:
        """A reader of each file. Raises :class:`UserError` where one has changed since."""
        if self.find_version(patient=False) != version:
            raise UserError(f"{self.name}: its files have changed since this command looked: run it again")
        return [open_reader(locate_content(str(file)), omissions) for file in self.files.usable]

    def explain_errors(self) -> AbstractContextManager[None]:
        """Their readers say themselves what is wrong."""
        return nullcontext()


@functools.lru_cache(maxsize=2**16)
def probe_file(file: Path, size: int, changed: int) -> str:
    """The hash of a file's beginning, its end and some places between, all of it where it is small.

    Sizes and times alone don't tell files apart where these are all one time, as in reproducible archives.
    The places follow from the `size`, bytes. A file is looked into again once it was `changed`, a time in ns.
    """
    last, drawn = max(0, size - PROBE_BYTES), random.Random(size)
    between = [drawn.randint(0, last) for _ in range(PROBES)]
    hashed = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        for place in sorted({0, last, *between}):
            stream.seek(place)
            hashed.update(stream.read(PROBE_BYTES))
    return hashed.hexdigest()
