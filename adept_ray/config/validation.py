"""Specifications that can't be changed and refuse unknown keys; files of settings."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from adept_ray.config.errors import UserError, describe_kind, suggest_names
from adept_ray.config.fields import name_flag
from adept_ray.config.os_faults import describe_os_fault

SIZES = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}


class Spec(BaseModel):
    """Base of all specifications: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def flat_fields(cls) -> dict[str, FieldInfo]:
        """Its fields as files and flags name them."""
        return dict(cls.model_fields)

    @classmethod
    def shorten_path(cls, path: tuple[Key, ...]) -> tuple[Key, ...]:
        """A path of keys into a specification, as files and flags name it."""
        return path

    @property
    def given(self) -> frozenset[str]:
        """Names of the fields that somebody gave, of those in :meth:`flat_fields`."""
        return frozenset(self.model_fields_set)

    def read_field(self, name: str) -> Any:
        """The value of one of :meth:`flat_fields`."""
        return getattr(self, name)


S = TypeVar("S", bound=Spec)
Key = int | str  # of a mapping or a list, in a path of keys


def join_keys(path: Sequence[Key]) -> str:
    """A path of keys as files of settings name it."""
    return ".".join(map(str, path))


# pydantic's words for what YAML calls otherwise → ours
PLAINLY = ((r"valid dictionary( or instance of \w+)?", "mapping"), ("valid tuple", "list"))


def validate_spec(
    spec: type[S],
    values: Mapping[str, Any],
    where: str | Callable[[Sequence[Key]], str],
    error: type[Exception] = UserError,
    name_key: Callable[[Sequence[Key]], str] = join_keys,
) -> S:
    """Build `spec` from `values`, turning pydantic's report into one sentence.

    `where` names their place, or is called with the path of keys to the mistake and names it; it is empty
    where `name_key`, which names the key at a path, says enough.
    Raises `error` (default :class:`UserError`) that names `where`, the key and what would be right.
    """
    try:
        return spec.model_validate(dict(values))
    except ValidationError as problem:
        first = problem.errors()[0]
        path = spec.shorten_path(first["loc"])
        key = name_key(path) if path else ""
        if callable(where):
            cause = first.get("ctx", {}).get("error")
            where = where((*first["loc"], *getattr(cause, "at", ())))
        if first["type"] == "extra_forbidden":
            known = suggest_names(str(path[-1]), _list_keys(spec, path[:-1]))
            message = f"unknown key '{key}': {known}"
        else:
            text = first["msg"].removeprefix("Value error, ")
            text = text[0].lower() + text[1:] if text.startswith("Input") else text
            for words, plain in PLAINLY:
                text = re.sub(words, plain, text)
            got = "" if first["type"] == "value_error" else f", not {first['input']!r}"
            message = f"{key + ': ' if key else ''}{text}{got}"
        raise error(f"{where}: {message}" if where else message) from None


def _list_keys(spec: Any, path: Iterable[Key]) -> list[str]:
    """The keys that the sub-spec at `path` of `spec` knows."""
    for part in path:
        fields = getattr(spec, "model_fields", None)
        spec = fields[part].annotation if fields else get_args(spec)[-1]
    return [field.alias or name for name, field in spec.flat_fields().items()]


def apply_changes(spec: S, changes: Mapping[str, Any], where: str = "override") -> S:
    """A validated copy of `spec` with `changes` applied; keys may be dotted to reach into sub-specs.

    Its :attr:`Spec.given` is that of `spec`: what somebody gave, whatever it has become since.
    Raises :class:`UserError` for an unknown key or a bad value.
    """
    values = spec.model_dump()
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        target = values
        for depth, part in enumerate([*path, last]):
            if not isinstance(target, dict) or part not in target:
                known = target if isinstance(target, dict) else {}
                at = ".".join([*path, last][: depth + 1])
                raise UserError(f"{where}: unknown key '{at}': {suggest_names(part, known)}")
            if depth < len(path):
                target = target[part]
        target[last] = value
    changed = validate_spec(type(spec), values, where)
    return cast("S", type(spec).model_construct(set(spec.given), **dict(changed)))


def refuse_flags(spec: Spec, unused: Collection[str], why: str) -> None:
    """Refuse the first of the `unused` flags that was given.

    Raises :class:`UserError` with the flag and `why` it would change nothing.
    """
    for name in type(spec).flat_fields():
        if name in unused and name in spec.given:
            raise UserError(f"{name_flag(type(spec), name)} {why}")


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises :class:`UserError` naming the file, and the line, of what can't be read."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(describe_os_fault(problem, path) or f"{path}: can't be read: {problem}") from None
    except (ValueError, yaml.YAMLError) as problem:  # a day that no month has is a ValueError
        mark = getattr(problem, "problem_mark", None)
        fault = getattr(problem, "problem", None) or " ".join(str(problem).split())
        raise UserError(f"{path}{describe_line(mark)}: not readable as YAML: {fault}") from None
    if not isinstance(data, dict):
        held = "is empty" if data is None else f"holds {describe_kind(data)}"
        raise UserError(f"{path}: must hold a mapping, lines such as `key: value`, but it {held}")
    return data


def describe_line(mark: yaml.Mark | None) -> str:
    """A place that PyYAML marked, in words that follow a file's name."""
    return f", line {mark.line + 1}" if mark else ""


def fingerprint(*parts: object) -> str:
    """16 hex digits that name what `parts` (values that JSON knows) describe."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_tokens(text: str) -> int:
    """A number of tokens, such as 50M, 2e7 or 50_000_000. Raises ValueError for another text."""
    number, size = text.strip(), 1.0
    if number[-1:] in SIZES:
        number, size = number[:-1], SIZES[number[-1]]
    tokens = read_number(number)
    if tokens is None or not 1 <= tokens * size < math.inf:
        raise ValueError(f"'{text}' is no number of tokens: give one such as 50M, 2e7 or 50_000_000")
    return round(tokens * size)


def check_length(text: str) -> str:
    """Refuse a text that is neither empty nor a number of tokens. Raises ValueError."""
    if text:
        read_tokens(text)
    return text


def read_written(value: object) -> object:
    """A number of tokens that somebody wrote, as a number; anything else unchanged."""
    return read_tokens(value) if isinstance(value, str) else value


Length = Annotated[str, AfterValidator(check_length)]
"""A number of tokens as somebody wrote it, or nothing."""
WRITTEN = BeforeValidator(read_written)
Tokens = Annotated[int, WRITTEN]
"""A number of tokens, which a flag takes as people write it."""


def read_number(text: str) -> float | None:
    """The number that a text is; None if it is none."""
    try:
        return float(text)
    except ValueError:
        return None
