"""Documents of local files, and how a corpus is written.

A corpus, wherever it comes from, ends as one Parquet file with one string column ``text`` under
``cache/corpora``, named by a fingerprint of what made it.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from adept_ray.config.errors import UserError
from adept_ray.data.assets import replace_file
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import Located

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


def read_documents(path: Path, recipe: TextRecipe) -> Iterator[str]:
    """The documents of a file, blank ones too; raises :class:`UserError` for the first thing wrong in it.

    A .txt file has no columns: its documents are texts, whatever the `recipe` names.
    """
    kind = find_extension(path)
    if kind == ".txt":
        rows, recipe = _read_paragraphs(path), recipe.for_plain_text
    else:
        rows = (_read_parquet if kind == ".parquet" else _read_jsonl)(path, recipe.columns)
    return (recipe.read(where, row) for where, row in rows if recipe.takes(where, row))


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


def _read_paragraphs(path: Path) -> Iterator[Located]:
    paragraph: list[str] = []
    number = first = 1
    for number, line in _read_lines(path):
        if line.strip():
            first = first if paragraph else number
            paragraph.append(line)
        elif paragraph:
            yield f"{path}, line {first}", {"text": "".join(paragraph)}
            paragraph = []
    yield f"{path}, line {first if paragraph else number}", {"text": "".join(paragraph)}


def _read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[Located]:
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
                f'{where}: must be a JSON object such as {{"{columns[0]}": "…"}}, not {type(row).__name__}'
            )
        yield where, row


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = str(path)  # once: a path takes longer to write than a row to read
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            wanted = columns if set(columns) <= set(present) else present  # to say which there are
            batches = file.iter_batches(columns=list(wanted), batch_size=1024)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield f"{name}, row {number}", row
    except UnicodeDecodeError:
        names = " or ".join(f"'{column}'" for column in columns)
        raise UserError(f"{path}: column {names} holds bytes that are not UTF-8") from None
    except (pa.ArrowException, OSError):
        raise UserError(f"{path}: truncated or damaged Parquet file; copy or download it again") from None


def write_corpus(
    documents: Iterable[str], path: Path, where: str, nothing: str = "holds no documents, only blank text"
) -> int:
    """Write the documents that aren't blank as Parquet with a column ``text``; return their number.

    Raises :class:`UserError` when there are none: `where`, and what `nothing` says of that.
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
            raise UserError(f"{where}: {nothing}")
    return count
