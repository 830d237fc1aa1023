"""A results folder, read and checked: what the report is made from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from adept_ray.config import Spec, UserError, load_yaml

NAMED = 8  # layers that a sentence lists before it counts the rest


class Record(Spec):
    """A part of a results file; keys the report does not need are left alone."""

    model_config = ConfigDict(extra="ignore")


class Choice(Record):
    """Which k was chosen and why; scores in the search's own unit."""

    k: int
    trial: str | None = None
    reason: str
    threshold: float | None = None


class Side(Record):
    """Test split before and after: bits per byte, and accuracy on the side's tasks if it has any.

    `delta` and its error are of `measure`: percent of bits per byte, or points of accuracy;
    positive is better.
    """

    before_bpb: float
    after_bpb: float
    before_accuracy: float | None = None
    after_accuracy: float | None = None
    measure: Literal["bpb", "accuracy"] = "bpb"
    delta: float
    standard_error: float | None = None

    @property
    def unit(self) -> str:
        """What `delta` is in."""
        return "%" if self.measure == "bpb" else "points"

    def levels(self, bpb: str) -> str:
        """Before and after in words; `bpb` is what to call bits per byte."""
        said = f"{self.before_bpb:.4f} → {self.after_bpb:.4f} {bpb}"
        if self.before_accuracy is None or self.after_accuracy is None:
            return said
        return f"accuracy {self.before_accuracy:.1%} → {self.after_accuracy:.1%}, {said}"


class Test(Record):
    """The one look at the test split."""

    __test__ = False  # the name must not make pytest collect it

    general: Side
    domain: Side
    score: float


class Best(Record):
    """``best.yaml``: the winner."""

    run: dict[str, Any]
    training: dict[str, Any]
    layers: list[int]
    choice: Choice
    test: Test


class LayerRow(Record):
    """Loss increase in nats per token when `layer` is bypassed."""

    layer: int
    mean: float
    standard_error: float
    places: tuple[int, int] | None = None
    """Lowest and highest place in the order that the probe leaves open."""


class Importance(Record):
    """``importance.json``: the layers of the untouched backbone."""

    base_loss: float | None = None
    layers: list[LayerRow]
    order: tuple[int, ...] = ()
    probe: str = "exhaustive"
    confidence: float = 0.95
    settled: tuple[int, ...] = ()
    ties: tuple[tuple[int, ...], ...] = ()
    made_from: dict[str, Any] = Field(default_factory=dict)
    seconds: float | None = None

    def doubt(self, layers: Collection[int]) -> str:
        """A sentence saying which of the chosen layers could as well be others.

        Empty when none could, and when they aren't the least important of all, as other placements choose.
        """
        k = len(layers)
        if set(layers) != set(self.order[:k]):
            return ""
        doubtful = {row.layer for row in self.layers if row.places and row.places[0] < k <= row.places[1]}
        chosen = [layer for layer in self.order[:k] if layer in doubtful]
        others = [layer for layer in self.order[k:] if layer in doubtful]
        if not chosen:
            return ""
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        return (
            f"At {self.confidence:.0%} confidence the probe doesn't tell the chosen layers "
            f"{' '.join(map(str, chosen))} from {' '.join(map(str, others[:NAMED]))}{more}; a longer one "
            "(--probe-tokens) may."
        )


class Rate(Record):
    """A row of ``rates.jsonl``: the scale of one unit from `step` on."""

    step: int
    unit: str
    scale: float


class Trial(Record):
    """The columns of ``trials.csv`` that the figures use; None where a failed trial has no number."""

    trial: str
    k: int | None
    general_delta: float | None
    domain_delta: float | None
    score: float | None
    score_se: float | None
    state: Literal["finished", "stopped", "failed", "untouched"]


class RunRecord(Record):
    """``run.json``: how the folder was made."""

    versions: dict[str, Any]
    fingerprints: dict[str, Any]
    seconds: dict[str, float]
    peak_memory_gib: float | None = None
    command: str
    notes: dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """Everything the report reads of a results folder."""

    name: str
    best: Best
    importance: Importance
    trials: list[Trial]
    rows: list[dict[str, str]]  # trials.csv as written, for the table
    rates: list[Rate]
    run: RunRecord


R = TypeVar("R", bound=Record)


def checked(record: type[R], values: Any, where: str) -> R:
    try:
        return record.model_validate(values)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UserError(f"{where}: '{key}' is missing") from None
        raise UserError(
            f"{where}: {key + ': ' if key else ''}{first['msg']}, not {first['input']!r}"
        ) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so this is not a whole results folder") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: not readable: {problem}") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise UserError(f"{where}: not JSON: {problem}") from None


def _read_rates(path: Path) -> list[Rate]:
    places = [
        (f"{path}, line {i}", line) for i, line in enumerate(_text(path).splitlines(), 1) if line.strip()
    ]
    return [checked(Rate, _json(line, where), where) for where, line in places]


def _read_trials(path: Path) -> tuple[list[Trial], list[dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(_text(path)), restval="")
    trials, rows = [], []
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row:
            raise UserError(f"{where}: has more fields than the header has columns")
        trials.append(checked(Trial, {name: value or None for name, value in row.items()}, where))
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no trial")
    return trials, rows


def read(folder: Path) -> Evidence:
    best = checked(Best, load_yaml(folder / "best.yaml"), str(folder / "best.yaml"))
    records = {}
    for name in ("importance.json", "run.json"):
        records[name] = _json(_text(folder / name), str(folder / name))
    trials, rows = _read_trials(folder / "trials.csv")
    return Evidence(
        name=folder.resolve().name,
        best=best,
        importance=checked(Importance, records["importance.json"], str(folder / "importance.json")),
        trials=trials,
        rows=rows,
        rates=_read_rates(folder / "rates.jsonl"),
        run=checked(RunRecord, records["run.json"], str(folder / "run.json")),
    )
