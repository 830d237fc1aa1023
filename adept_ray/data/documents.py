"""Documents of local files, and how a corpus is written.

A corpus, wherever it comes from, ends as one Parquet file with one string column ``text`` under
``cache/corpora``, named by a fingerprint of what made it.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adept_ray.config.errors import UserError
from adept_ray.data.assets import replace_file

if TYPE_CHECKING:
    import pyarrow as pa

EXTENSIONS = (".jsonl", ".jsonl.gz", ".parquet", ".txt")
ROW_GROUP_BYTES = 4 << 20  # small enough for many parallel readers, large enough to compress well


def find_extension(path: Path) -> str:
    """Which of EXTENSIONS a file has; empty if none."""
    return next((known for known in EXTENSIONS if path.name.lower().endswith(known)), "")


def list_usable_files(root: Path) -> list[Path]:
    """The file `root`, or the files in that folder, that can be read as text.

    Raises :class:`UserError` where there are none, and for an empty one.
    """
    supported = f"supported: {', '.join(EXTENSIONS)}"
    if root.is_file():
        if not find_extension(root):
            raise UserError(f"{root}: not a supported kind of file; {supported}")
        files = [root]
    else:
        found = (p for p in sorted(root.rglob("*")) if find_extension(p) and p.is_file())
        # Hidden files and folders are copies that editors and notebooks made.
        files = [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    if not files:
        raise UserError(f"{root}: holds no file that can be read as text; {supported}")
    for file in files:
        if file.stat().st_size == 0:
            raise UserError(f"{file}: the file is empty")
    return files


def read_documents(path: Path, column: str) -> Iterator[str]:
    """The documents of a file, blank ones too; raises :class:`UserError` for the first thing wrong in it."""
    kind = find_extension(path)
    if kind == ".parquet":
        return _read_parquet(path, column)
    return _read_paragraphs(path) if kind == ".txt" else _read_jsonl(path, column)


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with gzip.open(path) if find_extension(path) == ".jsonl.gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                yield number, raw.decode()
    except UnicodeDecodeError as problem:
        bad = problem.object[problem.start]
        raise UserError(
            f"{path}, line {number}: byte {problem.start + 1} ({bad:#04x}) is not UTF-8"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(f"{path}: truncated or damaged gzip file; copy or download it again") from None
    except OSError as problem:
        raise UserError(f"{path}: can't be read: {problem.strerror}") from None


def _read_paragraphs(path: Path) -> Iterator[str]:
    paragraph: list[str] = []
    for _, line in _read_lines(path):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    for number, line in _read_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            raise UserError(f"{where}: not valid JSON at column {problem.colno}: {problem.msg}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{where}: not readable JSON: nested too deeply, or a number too long") from None
        if not isinstance(row, dict):
            raise UserError(
                f'{where}: must be a JSON object such as {{"{column}": "…"}}, not {type(row).__name__}'
            )
        yield read_text(row, column, where)


def read_text(row: Mapping[str, object], column: str, where: str) -> str:
    """The text of a row, "" for null. Raises :class:`UserError` when there is none."""
    check_column(row, column, where)
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: column '{column}' must hold strings, not {type(value).__name__}")
    try:
        (value or "").encode()
    except UnicodeEncodeError:  # "\ud800" is valid JSON but no text
        raise UserError(
            f"{where}: column '{column}' holds half of a surrogate pair, not valid text"
        ) from None
    return value or ""


def check_column(row: Mapping[str, object], column: str, where: str) -> None:
    """Refuse a row that lacks a column. Raises :class:`UserError` with those that there are."""
    if column not in row:
        raise UserError(
            f"{where}: no column '{column}'; there are: {', '.join(sorted(map(str, row))) or 'none'}"
        )


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise UserError(f"{path}: no column '{column}'; there are: {', '.join(sorted(schema.names))}")
            if not _is_string(kind := schema.field(column).type):
                raise UserError(f"{path}: column '{column}' must hold strings, not {kind}")
            for batch in file.iter_batches(columns=[column], batch_size=1024):
                for value in batch.column(0).to_pylist():
                    yield value or ""
    except UnicodeDecodeError:
        raise UserError(f"{path}: column '{column}' holds bytes that are not UTF-8") from None
    except (pa.ArrowException, OSError):
        raise UserError(f"{path}: truncated or damaged Parquet file; copy or download it again") from None


def _is_string(kind: pa.DataType) -> bool:
    import pyarrow.types as is_

    kind = kind.value_type if is_.is_dictionary(kind) else kind
    return bool(is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind))


def write_corpus(documents: Iterable[str], path: Path, where: str) -> int:
    """Write the documents that aren't blank as Parquet with a column ``text``; return their number.

    Raises :class:`UserError` naming `where` when there are none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("text", pa.string())])
    count = size = 0
    group: list[str] = []
    with replace_file(path) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for document in documents:
                if not (document := document.strip()):
                    continue
                count, size = count + 1, size + len(document)
                group.append(document)
                if size >= ROW_GROUP_BYTES:
                    writer.write_table(pa.table({"text": group}, schema))
                    group, size = [], 0
            if group:
                writer.write_table(pa.table({"text": group}, schema))
        if not count:
            raise UserError(f"{where}: holds no documents, only blank text")
    return count
