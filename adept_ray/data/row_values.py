"""Values of a row: by a column's name, or by a path into a column that holds structs or lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adept_ray.config.errors import UserError, describe_kind, suggest_names
from adept_ray.data.rows import Row

PATH = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[-?\d+\])*")
STEP = re.compile(r"\[(-?\d+)\]|([^.\[\]]+)")


@dataclass(frozen=True)
class ValuePath:
    """Where a value lies in a row."""

    text: str
    """As it was written, such as ``meta.abstract`` or ``turns[0].text``; a column of that name goes first."""
    steps: tuple[str | int, ...]
    """A column, then names in structs and positions in lists, from the end if negative."""

    @property
    def column(self) -> str:
        """The column in which it lies."""
        return str(self.steps[0])

    def find(self, where: str, row: Row) -> object:
        """The value; None where a null or a list's end is in the way.

        Raises :class:`UserError` for a column that isn't there, with the nearest that is.
        """
        if self.text in row:
            return row[self.text]
        value: object = row
        for step, before in zip(self.steps, self._list_places(), strict=True):
            if value is None:
                return None
            if isinstance(step, int):
                if not isinstance(value, list):
                    raise UserError(f"{where}: column '{before}' is no list: it holds {describe_kind(value)}")
                value = value[step] if -len(value) <= step < len(value) else None
                continue
            if not isinstance(value, Mapping):
                kind = describe_kind(value)
                raise UserError(f"{where}: no column '{step}' in '{before}', which holds {kind}, no struct")
            if step not in value:
                raise UserError(refuse_column(step, before, value, where))
            value = value[step]
        return value

    def _list_places(self) -> Iterable[str]:
        """For each step what lies before it, written as a path."""
        before = ""
        for step in self.steps:
            yield before
            before += f"[{step}]" if isinstance(step, int) else f".{step}" if before else step


def parse_path(text: str) -> ValuePath:
    """The path that somebody wrote; what looks like none is the name of a column."""
    if not PATH.fullmatch(text):
        return ValuePath(text, (text,))
    steps = ((number, name) for number, name in STEP.findall(text))
    return ValuePath(text, tuple(int(number) if number else name for number, name in steps))


def refuse_column(name: str, inside: str, there: Iterable[object], where: str) -> str:
    """A sentence about a column that isn't there: the nearest one, or those that there are."""
    known = suggest_names(name, names) if (names := [str(each) for each in there]) else "known: none"
    place = f" in '{inside}'" if inside else ""
    return f"{where}: no column '{name}'{place}; {known.replace('known:', 'there are:', 1)}"
