"""Readers of formats that are text: each file is one piece, read from its beginning to its end."""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from adept_ray.config.errors import BadContent, UserError, describe_kind, shorten_error
from adept_ray.data.opening import Content, explain_damage
from adept_ray.data.rows import Located, PlainText

READ_AT_ONCE = 2**20  # characters
UNDIVIDED_BYTES = 64 * 2**20  # of a file that is read from its beginning on, with the numbers of its lines
RANGE_BYTES = 8 * 2**20
LARGEST_OBJECT = 2**26  # characters of one object; what is longer is no JSON
LARGEST_FIELD = 2**30  # characters of one field of a table
NEAR_END = 16  # characters; where JSON breaks off, Python finds the mistake that near to the end
BETWEEN = re.compile(r"[\s,\[\]]*")  # what lies between the objects of a .json file


class TextReader:
    """A file of text; what it holds is for its children to say."""

    def __init__(self, content: Content) -> None:
        self.content = content

    def list_pieces(self) -> Sequence[object]:
        """The whole file."""
        return (0,)

    def measure(self, piece: object) -> int:
        """The size of the file."""
        return self.content.text_size

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """Its rows, from the first on. Raises :class:`BadContent` for what is wrong with it."""
        with explain_damage(self.content), self.content.open_sequential() as stream:
            yield from self.parse(stream)

    def close(self) -> None:
        """Nothing is kept open."""

    def parse(self, stream: BinaryIO) -> Iterator[Located]:
        """The rows of an open file."""
        raise NotImplementedError


class ByteRange(NamedTuple):
    """A part of a large file: the lines that begin there."""

    start: int
    end: int


class LinesReader(TextReader):
    """One JSON object a line. The pieces of a large file are ranges of its bytes, unless it is compressed."""

    def list_pieces(self) -> Sequence[object]:
        """Ranges of :data:`RANGE_BYTES`; a file of no more than :data:`UNDIVIDED_BYTES` is one piece."""
        size = self.content.size or 0
        if self.content.inside or self.content.compression or size <= UNDIVIDED_BYTES:
            return (0,)
        return [ByteRange(at, min(size, at + RANGE_BYTES)) for at in range(0, size, RANGE_BYTES)]

    def measure(self, piece: object) -> int:
        """The size of the range."""
        return piece.end - piece.start if isinstance(piece, ByteRange) else super().measure(piece)

    def read(self, piece: object, columns: Sequence[str]) -> Iterator[Located]:
        """The rows of a range, or all. Raises :class:`UserError` for what is wrong with them."""
        if not isinstance(piece, ByteRange):
            yield from super().read(piece, columns)
            return
        where = self.content.where
        with explain_damage(self.content), self.content.open_sequential() as stream:
            if piece.start:
                where += f", behind byte {piece.start:,}"
                stream.seek(piece.start - 1)
                stream.readline()  # whose beginning lies before
            yield from self._parse_lines(iterate_range(stream, piece.end), where)

    def parse(self, stream: BinaryIO) -> Iterator[Located]:
        """A row for each line that isn't blank."""
        return self._parse_lines(stream, self.content.where)

    def _parse_lines(self, lines: Iterable[bytes], name: str) -> Iterator[Located]:
        for number, line in iterate_lines(lines, name):
            if not line.strip():
                continue
            where = f"{name}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as problem:
                raise BadContent(
                    f"{where}: not valid JSON at column {problem.colno}: {problem.msg}"
                ) from None
            except (ValueError, RecursionError):
                raise BadContent(
                    f"{where}: not readable JSON: nested too deeply, or a number too long"
                ) from None
            yield where, check_object(row, where)


class JsonReader(TextReader):
    """An array of JSON objects, one object, or several one after the other; never held as a whole."""

    def parse(self, stream: BinaryIO) -> Iterator[Located]:
        """A row for each object."""
        for number, row in enumerate(self._decode(io.TextIOWrapper(stream, "utf-8-sig").read), 1):
            where = f"{self.content.where}, row {number}"
            yield where, check_object(row, where)

    def _decode(self, read: Callable[[int], str]) -> Iterator[object]:
        decode = json.JSONDecoder().raw_decode
        held, at, number, more, depth = "", 0, 0, True, 0
        while True:
            before, at = at, skip_between(held, at)
            depth += held.count("[", before, at) - held.count("]", before, at)
            if at == len(held) and more:
                held, at = read(READ_AT_ONCE), 0
                more = bool(held)
                continue
            if at == len(held):
                if depth:
                    raise BadContent(f"{self.content.where}: breaks off after row {number}, within the array")
                return
            number += 1
            row, end = None, 0
            while not end:
                try:
                    row, end = decode(held, at)
                except json.JSONDecodeError as problem:
                    inside = problem.pos < len(held) - NEAR_END and "Unterminated" not in problem.msg
                    if inside or not more or len(held) - at > LARGEST_OBJECT:
                        raise BadContent(
                            f"{self.content.where}, row {number}: not valid JSON: {problem.msg}"
                        ) from None
                    piece = read(max(READ_AT_ONCE, len(held) - at))
                    held, at, more = held[at:] + piece, 0, bool(piece)
                except (ValueError, RecursionError):
                    raise BadContent(
                        f"{self.content.where}, row {number}: not readable JSON: nested too deeply, or a "
                        "number too long"
                    ) from None
            at = end
            yield row


class TableReader(TextReader):
    """A table as .csv, or .tsv, whose first line names the columns; every value is text."""

    def parse(self, stream: BinaryIO) -> Iterator[Located]:
        """A row for each line of the table, blank ones left out."""
        csv.field_size_limit(LARGEST_FIELD)
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        number, where = 0, self.content.where
        rows = csv.reader(text, delimiter="\t" if self.content.format == ".tsv" else ",", strict=True)
        try:
            names = next(rows, [])
            if len(set(names)) < len(names):
                raise BadContent(
                    f"{where}: its first line names a column twice: {', '.join(names)}; "
                    "give each column its own name"
                )
            for number, fields in enumerate(rows, 1):
                if fields and len(fields) != len(names):
                    raise BadContent(
                        f"{where}, row {number}: {len(fields)} fields where the first line names {len(names)}"
                    )
                if fields:
                    yield f"{where}, row {number}", dict(zip(names, fields, strict=True))
        except csv.Error as problem:
            raise BadContent(f"{where}, row {number + 1}: no valid table: {problem}") from None


class ParagraphsReader(TextReader):
    """Plain text, where blank lines separate documents; in an archive each file is one document."""

    def parse(self, stream: BinaryIO) -> Iterator[Located]:
        """A row for each document."""
        where = self.content.where
        if self.content.inside:
            yield where, PlainText(text=read_document(stream, where))
            return
        paragraph: list[str] = []
        began = 1
        for number, line in iterate_lines(stream, where):
            if line.strip():
                began = began if paragraph else number
                paragraph.append(line)
            elif paragraph:
                yield f"{where}, line {began}", PlainText(text="".join(paragraph))
                paragraph = []
        yield f"{where}, line {began}", PlainText(text="".join(paragraph))


class DocumentReader(TextReader):
    """One document a file, as it stands."""

    def parse(self, stream: BinaryIO) -> Iterator[Located]:
        """One row."""
        yield self.content.where, PlainText(text=read_document(stream, self.content.where))


class PageReader(TextReader):
    """The main text of a web page, without what stands around it."""

    def __init__(self, content: Content) -> None:
        super().__init__(content)
        import_optional("trafilatura", content.where)  # before anything is read

    def parse(self, stream: BinaryIO) -> Iterator[Located]:
        """One row, blank where there is no such text."""
        trafilatura = import_optional("trafilatura", self.content.where)
        yield self.content.where, PlainText(text=extract_text(trafilatura, stream.read()))


class WebArchiveReader(TextReader):
    """A WARC file, of whose pages the main text is taken, or a WET file, which holds their text."""

    def __init__(self, content: Content) -> None:
        super().__init__(content)
        import_optional("warcio.archiveiterator", content.where)  # before anything is read

    def parse(self, stream: BinaryIO) -> Iterator[Located]:
        """A row for each page, with its ``url``."""
        warcio = import_optional("warcio.archiveiterator", self.content.where)
        try:
            for number, record in enumerate(warcio.ArchiveIterator(stream), 1):
                where = f"{self.content.where}, record {number}"
                url = record.rec_headers.get_header("WARC-Target-URI")
                if record.rec_type == "conversion":
                    text = read_document(record.content_stream(), where)
                    check_length(record, where)
                    yield where, PlainText(text=text, url=url)
                elif record.rec_type == "response" and is_page(record):
                    trafilatura = import_optional("trafilatura", where)
                    page = record.content_stream().read()
                    check_length(record, where)
                    text = extract_text(trafilatura, page)
                    yield where, PlainText(text=text, url=url)
        except warcio.ArchiveLoadFailed as problem:
            raise BadContent(f"{self.content.where}: no valid WARC file: {shorten_error(problem)}") from None


def check_length(record: Any, where: str) -> None:
    """Raise :class:`BadContent` where a record that was read ends before the length that its head names."""
    if getattr(record.raw_stream, "limit", 0) > 0:
        raise BadContent(f"{where}: breaks off before its end; copy or download the file again")


def is_page(record: Any) -> bool:
    """Whether a record of a WARC file is a web page."""
    headers = record.http_headers
    return headers is not None and "html" in (headers.get_header("Content-Type") or "")


def extract_text(trafilatura: Any, page: bytes) -> str:
    """The main text of a web page; empty if there is none."""
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it says of each empty page that it is
    return trafilatura.extract(page, include_comments=False) or ""


def import_optional(module: str, where: str) -> Any:
    """A module that not everybody needs. Raises :class:`UserError`, naming what is to be installed."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        also = f" lxml_html_clean ({problem})" if "lxml_html_clean" in str(problem) else ""
        raise UserError(
            f"{where}: such files are read with the package '{package}', which isn't installed here: "
            f"pip install {package}{also}"
        ) from None


def iterate_range(stream: BinaryIO, end: int) -> Iterator[bytes]:
    """The lines of a file that begin before a byte of it."""
    while stream.tell() < end and (line := stream.readline()):
        yield line


def iterate_lines(stream: Iterable[bytes], where: str) -> Iterator[tuple[int, str]]:
    """The lines of a text in UTF-8, numbered from 1 on. Raises :class:`BadContent` for other bytes."""
    for number, raw in enumerate(stream, 1):
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        yield number, decode_text(raw, f"{where}, line {number}")


def decode_text(raw: bytes, where: str) -> str:
    """Bytes as text. Raises :class:`BadContent`, naming the first one that is none."""
    try:
        return raw.decode()
    except UnicodeDecodeError as problem:
        bad = problem.object[problem.start]
        raise BadContent(f"{where}: byte {problem.start + 1} ({bad:#04x}) is not UTF-8") from None


def read_document(stream: BinaryIO, where: str) -> str:
    """A whole text in UTF-8."""
    return decode_text(stream.read().removeprefix(codecs.BOM_UTF8), where)


def check_object(row: object, where: str) -> dict[str, object]:
    """A row of JSON. Raises :class:`BadContent` for what is no object."""
    if not isinstance(row, dict):
        raise BadContent(f'{where}: must be a JSON object such as {{"text": "…"}}, not {describe_kind(row)}')
    return row


def skip_between(held: str, at: int) -> int:
    """Where in a text the next object begins, or its end, from a place behind the object before."""
    found = BETWEEN.match(held, at)
    return found.end() if found else at
