"""From a row to its text, by a column, a path into one, or a template of several."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from adept_ray.config.errors import UserError
from adept_ray.data.chats import NAMES, TURN, ChatTemplate, find_names, is_chat, join_turns
from adept_ray.data.row_filters import parse_filter
from adept_ray.data.row_values import ValuePath, parse_path
from adept_ray.data.rows import Row

ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}  # which a shell passes on as they were typed


@dataclass(frozen=True)
class TextRecipe:
    """What of a row is its text, and which rows are taken. It is plain data, which workers take, too."""

    column: str = "text"
    r"""A column, a path such as ``meta.abstract`` or ``turns[0].text``, or a template: these in braces, with
    ``{{`` for a brace and ``\n`` for a new line."""
    filter: str = ""
    """Which rows are taken, as ``lang == 'en'`` (see :mod:`adept_ray.data.row_filters`); empty: all."""
    chat: ChatTemplate | None = None
    """What writes a list of turns as text; None puts their texts one after the other."""
    options: bool = False
    """Whether a struct holds answer options, which become lines such as ``A. …``. Else it is refused."""

    @property
    def identity(self) -> object:
        """What of it names a corpus that was made by it."""
        return [self.column, self.filter, repr(self.chat)] if self.filter or self.chat else self.column

    @property
    def columns(self) -> list[str]:
        """The columns that must be read, or paths into them, each once."""
        paths = [path.text for _, path in parse_column(self.column) if path]
        return list(dict.fromkeys([*paths, *(parse_filter(self.filter).columns if self.filter else ())]))

    @property
    def refusal(self) -> str:
        """What is said of rows none of which gives a text."""
        if self.filter:
            return f"no row with text meets the filter {self.filter}"
        return "holds no documents, only blank text"

    @property
    def for_plain_text(self) -> TextRecipe:
        """The same for a file that has no columns, whose rows are texts."""
        return replace(self, column="text")

    def takes(self, where: str, row: Row) -> bool:
        """Whether a row is taken. Raises :class:`UserError` as :meth:`RowFilter.takes` does."""
        return not self.filter or parse_filter(self.filter).takes(where, row)

    def read(self, where: str, row: Row) -> str:
        """The text of a row, empty for null, and where all columns of a template are blank.

        Raises :class:`UserError` for a column that isn't there, and for one that holds no text.
        """
        value = row.get(self.column)  # most rows of most corpora have their text here
        text = value if isinstance(value, str) else self._join_values(where, row)
        try:
            text.encode()
        except UnicodeEncodeError:  # "\ud800" is valid JSON but no text
            raise UserError(
                f"{where}: column '{self.column}' holds half of a surrogate pair, not valid text"
            ) from None
        return text

    def _join_values(self, where: str, row: Row) -> str:
        parts = parse_column(self.column)
        texts = [self._read_value(path, where, row) if path else "" for _, path in parts]
        if not any(text.strip() for text in texts):
            return ""
        return "".join(before + text for (before, _), text in zip(parts, texts, strict=True))

    def _read_value(self, path: ValuePath, where: str, row: Row) -> str:
        value = path.find(where, row)
        if value is None or isinstance(value, str):
            return value or ""
        if is_chat(value):
            return self._write_chat(value, f"{where}, column '{path.text}'")
        if isinstance(value, Mapping) and self.options:
            return "\n".join(f"{key}. {text}" for key, text in value.items() if text)
        if is_template(self.column) and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise UserError(f"{where}: column '{path.text}' {describe_fault(value, path.text)}")

    def _write_chat(self, turns: object, where: str) -> str:
        assert isinstance(turns, list)
        if self.chat is None or not turns:
            return join_turns(turns)
        return self.chat.write(turns, where)


def describe_fault(value: object, name: str) -> str:
    """Why a value is no text, and what would be one."""
    inside = next((each for each in value if each), None) if isinstance(value, list) else value
    if isinstance(inside, Mapping):
        place = f"{name}[0]" if isinstance(value, list) else name
        nested = [f"{place}.{key}" for key in inside]
        if isinstance(value, list) and any(map(find_names, value)):
            number = next(number for number, each in enumerate(value, 1) if not find_names(each))
            return f"holds a chat whose turn {number} has no text that is known: {TURN}"
        what = "structs" if isinstance(value, list) else "a struct"
        if isinstance(value, list) and not {name for names in NAMES for name in names}.isdisjoint(inside):
            what = f"structs ({TURN})"
        return f"holds {what}; give one of its columns: {', '.join(nested) or 'none'}"
    return f"must hold strings, not {type(value).__name__}"


def is_template(column: str) -> bool:
    """Whether it has braces, which the names of columns don't."""
    return "{" in column or "}" in column


@lru_cache(maxsize=64)
def parse_column(column: str) -> tuple[tuple[str, ValuePath | None], ...]:
    """A column or template as pieces: what stands before a value, and where the value lies, if one follows.

    Raises :class:`UserError` for a template that can't be read.
    """
    if not is_template(column):
        return (("", parse_path(column)),)
    try:
        pieces = list(string.Formatter().parse(re.sub(r"\\[nt\\]", lambda found: ESCAPES[found[0]], column)))
    except ValueError as problem:
        raise UserError(f"{first_lower(str(problem))}; {{{{ and }}}} write a brace") from None
    for _, name, form, conversion in pieces:
        if name == "" or form or conversion:
            raise UserError("braces hold a column or a path alone, such as {question} or {meta.abstract}")
    if not any(name for _, name, _, _ in pieces):
        raise UserError("a template names a column at least, such as {question}")
    return tuple((before, parse_path(name) if name else None) for before, name, _, _ in pieces)


def first_lower(text: str) -> str:
    """A text that begins small."""
    return text[:1].lower() + text[1:]
