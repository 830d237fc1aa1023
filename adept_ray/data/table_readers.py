"""Readers of tables that are laid out by column: Parquet and Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, cast

from adept_ray.data.opening import Content, explain_damage
from adept_ray.data.row_values import parse_path
from adept_ray.data.rows import Located

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH = 1024  # rows that are held at once
ARROW_FILE = b"ARROW1"  # how an Arrow file begins, unlike a stream


class ParquetReader:
    """A Parquet file; its pieces are its row groups."""

    def __init__(self, content: Content) -> None:
        self.content = content

    @cached_property
    def _file(self) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.content.open_ranged())

    def list_pieces(self) -> Sequence[object]:
        """Numbers of the row groups."""
        with explain_damage(self.content, "Parquet"):
            return range(self._file.num_row_groups)

    def measure(self, piece: object) -> int:
        """Bytes of all columns of a row group without compression."""
        return self._file.metadata.row_group(cast(int, piece)).total_byte_size

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """The rows of a row group, of which only the `columns` are fetched, by this thread alone.

        Where a reader left off in the middle, threads that go on reading would meet Python's end.
        """
        group = cast(int, piece)
        with explain_damage(self.content, "Parquet"):
            present = self._file.schema_arrow.names
            before = sum(self._file.metadata.row_group(each).num_rows for each in range(group))
            wanted = choose_columns(present, columns)
            batches = self._file.iter_batches(BATCH, [group], wanted, use_threads=False)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, before + 1):
                yield f"{self.content.where}, row {number}", row

    def close(self) -> None:
        """Let go of the open file, and of what was unpacked for it."""
        vars(self).pop("_file", None)


class ArrowReader:
    """An Arrow or Feather file, whose pieces are its record batches; or a stream, which is one piece."""

    def __init__(self, content: Content) -> None:
        self.content = content

    @cached_property
    def _file(self) -> pa.ipc.RecordBatchFileReader | None:
        import pyarrow as pa

        raw = self.content.open_ranged()
        begins = raw.read(len(ARROW_FILE))
        raw.seek(0)
        options = pa.ipc.IpcReadOptions(use_threads=False)
        return pa.ipc.open_file(raw, options=options) if begins == ARROW_FILE else None

    def list_pieces(self) -> Sequence[object]:
        """Numbers of the record batches, of a stream the whole."""
        with explain_damage(self.content, "Arrow"):
            return range(self._file.num_record_batches) if self._file else (0,)

    def measure(self, piece: object) -> int:
        """An equal share of the file's size."""
        return self.content.text_size // max(1, len(self.list_pieces()))

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """The rows of a record batch, or of the stream."""
        with explain_damage(self.content, "Arrow"):
            if self._file:
                batch = self._file.get_batch(cast(int, piece))
                where = f"{self.content.where}, record batch {cast(int, piece) + 1}"
                yield from iterate_rows(batch, columns, where, 0)
                return
            with self.content.open_sequential() as stream:
                yield from self._read_stream(stream, columns)

    def close(self) -> None:
        """Let go of the open file, and of what was unpacked for it."""
        vars(self).pop("_file", None)

    def _read_stream(self, stream: BinaryIO, columns: Sequence[str]) -> Iterator[Located]:
        import pyarrow as pa

        before = 0
        for batch in pa.ipc.open_stream(stream, options=pa.ipc.IpcReadOptions(use_threads=False)):
            yield from iterate_rows(batch, columns, self.content.where, before)
            before += batch.num_rows


def iterate_rows(batch: pa.RecordBatch, columns: Sequence[str], where: str, before: int) -> Iterator[Located]:
    """The rows of a record batch before which there were others."""
    chosen = batch.select(choose_columns(batch.schema.names, columns))
    for start in range(0, batch.num_rows, BATCH):
        for number, row in enumerate(chosen.slice(start, BATCH).to_pylist(), before + start + 1):
            yield f"{where}, row {number}", row


def choose_columns(present: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The columns in which `columns`, names or paths, lie: one of that name goes before the path.

    They are all there are where some are missing: so these can be named.
    """
    wanted = [name if name in present else parse_path(name).column for name in columns]
    return list(dict.fromkeys(wanted)) if set(wanted) <= set(present) else list(present)
