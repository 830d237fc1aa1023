"""Which files are read as text, each format by a reader of its own: the one place to add one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adept_ray.config.errors import UserError
from adept_ray.data.opening import Content, split_endings
from adept_ray.data.rows import Reader, list_names
from adept_ray.data.table_readers import ArrowReader, ParquetReader
from adept_ray.data.text_readers import (
    DocumentReader,
    JsonReader,
    LinesReader,
    PageReader,
    ParagraphsReader,
    TableReader,
    WebArchiveReader,
)

FORMATS: dict[str, Callable[[Content], Reader]] = {
    ".jsonl": LinesReader,
    ".ndjson": LinesReader,
    ".json": JsonReader,
    ".csv": TableReader,
    ".tsv": TableReader,
    ".parquet": ParquetReader,
    ".arrow": ArrowReader,
    ".feather": ArrowReader,
    ".txt": ParagraphsReader,
    ".md": DocumentReader,
    ".html": PageReader,
    ".htm": PageReader,
    ".warc": WebArchiveReader,
    ".wet": WebArchiveReader,
}
"""Ending → what reads such a file; any of them may be compressed, or lie in an archive."""
ARCHIVES = (".zip", ".tar")
SUPPORTED = (
    f"supported: {', '.join((*FORMATS, *ARCHIVES))}, each also as .gz, .zst, .xz or .bz2, and folders of "
    "datasets' save_to_disk"
)
# Files that say something about a corpus, and are none of it.
ABOUT = ("readme.md", "license.md", "changelog.md")
# What datasets' save_to_disk writes beside the rows.
OF_SPLITS, OF_ROWS = "dataset_dict.json", ("state.json", "dataset_info.json")


@dataclass(frozen=True)
class Selection:
    """Files of a folder, by their paths in it."""

    usable: tuple[str, ...]
    left_out: tuple[str, ...]
    """Those that aren't read as text, in words."""


def find_ending(name: str) -> str:
    """The ending by which a file can be read as text, such as ``.jsonl.gz``; empty if by none."""
    form, compression = split_endings(name)
    known = form in FORMATS or (form in ARCHIVES and (form == ".tar" or not compression))
    return form + compression if known else ""


def is_text(name: str) -> bool:
    """Whether a file of that path is read where a folder or an archive is."""
    parts = name.lower().split("/")
    hidden = any(part.startswith(".") for part in parts) or "__macosx" in parts
    return bool(find_ending(name)) and not hidden and parts[-1] not in ABOUT


def check_usable(sizes: Mapping[str, int | None], left_out: Sequence[str], where: str) -> None:
    """Raise :class:`UserError` where no file is usable, and for an empty one.

    `sizes` are the usable files, by how messages name them, and their bytes where they are known.
    """
    if not sizes:
        there = f" (there are: {list_names(left_out)})" if left_out else ""
        raise UserError(f"{where}: holds no file that can be read as text; {SUPPORTED}{there}")
    for name, size in sizes.items():
        if size == 0:
            raise UserError(f"{name}: the file is empty: put text into it, or take it away")


def select_files(names: Sequence[str]) -> Selection:
    """Which files of a folder, by their paths in it, hold its text; the order stays.

    Of the splits that datasets' save_to_disk wrote the one called ``train`` is taken. Raises
    :class:`UserError` where there is none.
    """
    with_rows = {name.rpartition("/")[0] for name in names if name.endswith(".arrow")}
    saved = with_rows & {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == OF_ROWS[0]}
    written = {f"{folder}/{about}".lstrip("/") for folder in saved for about in OF_ROWS}
    dropped: dict[str, None] = {}
    for index in (name for name in names if name.rpartition("/")[2] == OF_SPLITS):
        inside = index.removesuffix(OF_SPLITS)
        splits = sorted(folder for folder in saved if folder.rpartition("/")[0] == inside.rstrip("/"))
        if not splits:
            continue
        written.add(index)
        if f"{inside}train" not in splits:
            raise UserError(
                f"{index}: these rows have no split 'train'; give the folder of one: {', '.join(splits)}"
            )
        dropped |= dict.fromkeys(folder for folder in splits if folder != f"{inside}train")
    usable, left_out, hidden = [], [], 0
    for name in names:
        folder, _, last = name.rpartition("/")
        if name in written or folder in dropped:
            continue
        if is_text(name) and not (folder in saved and last.startswith("cache-")):
            usable.append(name)
        elif any(part.startswith(".") for part in name.split("/")):
            hidden += 1
        else:
            left_out.append(name)
    told = [*left_out, *(f"split {split}" for split in dropped)]
    if hidden:  # copies that editors and notebooks made
        told.append(f"{hidden} hidden file{'s' * (hidden > 1)}")
    return Selection(tuple(usable), tuple(told))
