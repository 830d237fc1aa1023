"""Marks on the fields of a specification: facts that commands go by, stated where the field is."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


class Mark(StrEnum):
    """A fact about a field that more than one command goes by."""

    CHANGEABLE = "a resumed run may have another value: no result depends on it"
    FITTING = "it decides whether a k fits into the workers"
    UNPROBED = "stage 1 alone doesn't use it"
    COMMAND = "it says what one command does with a run, and is no setting of the run"
    RESULTS = "it says which results folder the run has"
    PLACE = "it says where something is kept, and not what is computed"
    REPORT = "a command that only writes the report again takes it"
    TRIALS = "it is for independent trials: a model that grows has none"
    SIZE = "a search space may give it another default"
    UNSEARCHED = "the run sets it, or a compared method, and no search space"
    PICK = "it says what is picked among the trials of a search"


class Fielded(Protocol):
    """What has fields: a specification."""

    @classmethod
    def flat_fields(cls) -> dict[str, FieldInfo]:
        """Its fields as files and flags name them."""
        ...


def setting(
    default: Any,
    *marks: Mark,
    flag: str = "",
    aliases: tuple[str, ...] = (),
    positional: bool = False,
    **constraints: Any,
) -> Any:
    """A field with its `marks`, the form of its flag, and pydantic's `constraints` such as ``ge=1``.

    `default` may be a function that makes the value, or ``...`` for a field that must be given. `flag` is the
    flag's name where that isn't the field's; `aliases` are others, with their dashes.
    """
    extra: Any = {"marks": marks, "flag": flag or None, "aliases": aliases or None, "positional": positional}
    if callable(default):
        return Field(default_factory=default, json_schema_extra=extra, **constraints)
    return Field(default, json_schema_extra=extra, **constraints)


def read_extra(field: FieldInfo, name: str) -> Any:
    """What :func:`setting` says of a field under that name; None where it says nothing."""
    return field.json_schema_extra.get(name) if isinstance(field.json_schema_extra, dict) else None


def name_flag(spec: type[Fielded], name: str) -> str:
    """How the command line names one of the fields of `spec`: ``--seq-len``; a positional one in capitals."""
    field = spec.flat_fields()[name]
    flag = read_extra(field, "flag") or name.replace("_", "-")
    return flag.upper() if read_extra(field, "positional") else f"--{flag}"


def list_fields(spec: type[Fielded], *marks: Mark) -> tuple[str, ...]:
    """Names of the fields of `spec` with one of the `marks`, those of its machine among them, in order."""
    fields = spec.flat_fields().items()
    return tuple(name for name, field in fields if set(marks) & set(read_extra(field, "marks") or ()))
