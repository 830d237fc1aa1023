"""The grammar of ``search_spaces/*.yaml``: ranges, conditions, first trials; mistakes with their line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from adept_ray.config.errors import UserError, suggest_names
from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.places import find_search_space
from adept_ray.config.specs import ScoreWeights, SearchRun, TrainingSpec
from adept_ray.config.validation import (
    Key,
    Spec,
    apply_changes,
    describe_line,
    load_yaml,
    read_number,
    validate_spec,
)

Values = tuple[Any, ...]
"""Of a searched parameter: numbers or words, which only :meth:`Range.check` tells apart."""
Number = int | float
KINDS: Mapping[str, type | UnionType] = {"int": int, "float": Number, "log": Number}


def wrap_in_list(value: object) -> Sequence[object]:
    """One value as a list of one."""
    return value if isinstance(value, list | tuple) else [value]


class MisplacedError(ValueError):
    """A mistake that shows only in a whole specification; `at` is the path of keys to it."""

    def __init__(self, message: str, *at: Key) -> None:
        super().__init__(message)
        self.at = at


class Range(Spec):
    """One searched parameter: exactly one of ``int``, ``float``, ``log``, ``choice``, ``fixed``.

    ``int``, ``float`` and ``log`` (a float on a logarithmic scale) take ``[low, high]``, both ends
    included; ``choice`` takes a list of values, ``fixed`` one value. ``when`` names other parameters and
    their values: without these this parameter isn't there.
    """

    model_config = ConfigDict(populate_by_name=True)

    int_: Values | None = Field(None, alias="int")
    float_: Values | None = Field(None, alias="float")
    log: Values | None = None
    choice: Values | None = None
    fixed: object = None
    when: dict[str, Annotated[Values, BeforeValidator(wrap_in_list)]] = Field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Which of the five forms this range has."""
        return self._list_forms()[0].rstrip("_")

    @property
    def values(self) -> Values:
        """``(low, high)``, the choices, or the one fixed value."""
        value = getattr(self, self._list_forms()[0])
        return (value,) if self.kind == "fixed" else tuple(value)

    def __contains__(self, value: object) -> bool:
        if self.kind in ("choice", "fixed"):
            return value in self.values
        return self.values[0] <= value <= self.values[1]

    def check(self, value: object) -> None:
        """Refuse a value that no range of this form takes, whatever its ends. Raises ValueError."""
        number = read_number(value) if isinstance(value, str) else value
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"'{self.kind}' takes finite numbers, not {value!r}")
        if isinstance(value, str) and number is not None:
            # YAML takes 1e-5 for a string: it wants a decimal point and a signed exponent.
            fix = format(Decimal(value), "f")
            raise ValueError(f"'{value}' is a string; write {fix} without quotes")
        if isinstance(value, bool):
            raise ValueError(f"'{self.kind}' takes no true or false, not {value!r}")
        if not isinstance(value, KINDS.get(self.kind, object)):
            raise ValueError(f"'{self.kind}' takes numbers of that kind, not {value!r}")

    def clip(self, value: Any) -> Any:
        """`value`, or the value that lies nearest to it; the first of choices that are no numbers."""
        if value in self:
            return value
        if self.kind in ("choice", "fixed"):
            numbers = all(isinstance(each, Number) for each in (*self.values, value))
            return min(self.values, key=lambda each: abs(each - value)) if numbers else self.values[0]
        return min(max(value, self.values[0]), self.values[1])

    @property
    def middle(self) -> Any:
        """The middle on the range's own scale, or the middle choice."""
        if self.kind in ("choice", "fixed"):
            return self.values[(len(self.values) - 1) // 2]
        low, high = self.values
        if self.kind == "log":
            return self.clip(float(f"{math.exp((math.log(low) + math.log(high)) / 2):.2g}"))
        return (low + high) // 2 if self.kind == "int" else (low + high) / 2

    def list_whole(self) -> tuple[int, ...]:
        """The whole numbers of a range of these, ascending, 0 left out."""
        low, high = min(self.values), max(self.values)
        every = range(low, high + 1) if self.kind == "int" else sorted(set(self.values))
        return tuple(value for value in every if value)

    def _list_forms(self) -> list[str]:
        return [name for name in FORMS if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _check(self) -> Range:
        if len(self._list_forms()) != 1:
            raise ValueError("needs exactly one of int, float, log, choice, fixed")
        values = self.values
        if not values or any(v is None for v in values):
            raise ValueError(f"'{self.kind}' has no values: give some, such as [1, 2]")
        for value in values:
            self.check(value)
        if self.kind in ("int", "float", "log"):
            self._check_ends(values)
        return self

    def _check_ends(self, values: Values) -> None:
        if len(values) != 2:
            raise ValueError(f"'{self.kind}' takes two numbers, [low, high], not {list(values)}")
        if values[0] > values[1]:
            raise ValueError(f"the range [{values[0]}, {values[1]}] is empty: low must not exceed high")
        if self.kind == "log" and values[0] <= 0:
            raise ValueError("a log range must start above 0")


FORMS = ("int_", "float_", "log", "choice", "fixed")
SEARCHABLE = tuple(
    n for n in TrainingSpec.model_fields if n not in list_fields(TrainingSpec, Mark.UNSEARCHED)
)
SIZES = list_fields(SearchRun, Mark.SIZE)  # a search space may say how much a run does, never on what


class SearchSpace(Spec):
    """A file of ``search_spaces/``: ranges, score weights and the trials to run first."""

    parameters: dict[str, Range]
    """Range of each searched field of :class:`TrainingSpec`."""
    score: ScoreWeights = ScoreWeights()
    """Weights of the two sides."""
    general: Literal["gain", "retain"] = "gain"
    """Whether a gain on the general side is paid for, or only a loss counts."""
    first: tuple[dict[str, Any], ...] = ()
    """Settings tried before the sampler proposes its own."""
    judge_after: int = Field(3, ge=1)
    """A trial can be stopped early only once this many others have come as far."""
    run: dict[str, int] = Field(default_factory=dict)
    """Defaults of the flags in :data:`SIZES` for a run that searches this space."""

    @property
    def weights(self) -> ScoreWeights:
        """The weights with what counts on the general side."""
        return apply_changes(self.score, {"retain": self.general == "retain"})

    def list_active(self, setting: Mapping[str, object]) -> list[str]:
        """The parameters that are there, given the values of those that others depend on."""
        names: list[str] = []
        for name, searched in self.parameters.items():
            if all(on in names and setting.get(on) in values for on, values in searched.when.items()):
                names.append(name)
        return names

    @model_validator(mode="after")
    def _check(self) -> SearchSpace:
        if "k" not in self.parameters:
            raise MisplacedError(
                "parameter 'k' is missing: give its range, such as {int: [1, 8]}", "parameters"
            )
        if self.score.general + self.score.domain <= 0:
            raise MisplacedError("score: one of the weights 'general' and 'domain' must be above 0", "score")
        if self.score.retain:
            raise MisplacedError("score.retain: write 'general: retain' beside 'score'", "score", "retain")
        for name, searched in self.parameters.items():
            self._check_parameter(name, searched)
            self._check_condition(name, searched)
        for number, setting in enumerate(self.first):
            self._check_first(number, setting)
        for name in self.run:
            if name not in SIZES:
                raise MisplacedError(f"run: unknown key '{name}': {suggest_names(name, SIZES)}", "run", name)
            try:
                validate_spec(SearchRun, {name: self.run[name]}, where="run", error=ValueError)
            except ValueError as problem:
                raise MisplacedError(str(problem), "run", name) from None
        return self

    def _check_parameter(self, name: str, searched: Range) -> None:
        at = ("parameters", name)
        if name not in SEARCHABLE:
            raise MisplacedError(f"unknown parameter '{name}': {suggest_names(name, SEARCHABLE)}", *at)
        whole = TrainingSpec.model_fields[name].annotation is int
        if whole and searched.kind in ("float", "log"):
            raise MisplacedError(
                f"parameter '{name}' is a whole number: give int or choice, not {searched.kind}", *at
            )
        for value in searched.values:
            self._check_value(name, value, *at)

    def _check_value(self, name: str, value: object, *at: Key) -> None:
        try:
            validate_spec(TrainingSpec, {name: value}, where=f"parameter '{name}'", error=ValueError)
        except ValueError as problem:
            raise MisplacedError(str(problem), *at) from None

    def _check_form(self, name: str, value: object, where: str, *at: Key) -> None:
        try:
            self.parameters[name].check(value)
        except ValueError as problem:
            raise MisplacedError(f"{where}: {name}: {problem}", *at) from None

    def _check_condition(self, name: str, searched: Range) -> None:
        at = ("parameters", name, "when")
        if name == "k" and searched.when:
            raise MisplacedError("parameter 'k' takes no 'when': every trial has a k", *at)
        before = list(self.parameters)[: list(self.parameters).index(name)]
        for on, values in searched.when.items():
            if on not in before:
                known = suggest_names(on, before) if before else "there is none"
                raise MisplacedError(
                    f"parameter '{name}': 'when' names '{on}', which isn't listed before it: {known}", *at, on
                )
            for value in values:
                self._check_form(on, value, f"parameter '{name}': 'when'", *at, on)
                if value not in self.parameters[on]:
                    raise MisplacedError(
                        f"parameter '{name}': 'when' asks for a {on} of {value!r}, which lies "
                        "outside its range",
                        *at,
                        on,
                    )

    def _check_first(self, number: int, setting: Mapping[str, object]) -> None:
        at = ("first", number)
        for name in (name for name in setting if name in self.parameters):
            self._check_form(name, setting[name], "first", *at, name)
        wanted = self.list_active(setting)
        if set(setting) != set(wanted):
            raise MisplacedError(
                f"a setting under 'first' must name exactly {', '.join(sorted(wanted))}", *at
            )
        for name in wanted:
            self._check_value(name, setting[name], *at, name)
            if setting[name] not in self.parameters[name]:
                raise MisplacedError(f"first: {name} {setting[name]!r} lies outside its range", *at, name)


def load_search_space(given: Path) -> SearchSpace:
    """Read and check a search space, by its path or the name of one that ships.

    Raises :class:`UserError` that names the mistake and its line.
    """
    path = find_search_space(given)
    values = load_yaml(path)
    document = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    refuse_repeated_keys(document, path)
    return validate_spec(
        SearchSpace, values, where=lambda at: f"{path}{describe_line(find_mark(document, at))}"
    )


def refuse_repeated_keys(node: yaml.Node | None, path: Path) -> None:
    """Refuse a key that a mapping has twice: YAML would take the last one. Raises :class:`UserError`."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise UserError(
                    f"{path}{describe_line(key.start_mark)}: the key '{key.value}' is there twice: keep one"
                )
            seen.add(key.value)
            refuse_repeated_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            refuse_repeated_keys(value, path)


def find_mark(node: yaml.Node, at: Iterable[Key]) -> yaml.Mark:
    """The mark in a YAML document to which the path of keys `at` leads, as far as it goes."""
    mark = node.start_mark
    for part in at:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                break
            mark, node = found[-1][0].start_mark, found[-1][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    return mark
