"""A results folder, read and checked: what report and model card are made from."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError, field_validator

from adept_ray.config.calls import format_command
from adept_ray.config.errors import UserError
from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.places import mask_password
from adept_ray.config.search_space import SIZES
from adept_ray.config.specs import PickRun, SearchRun
from adept_ray.config.validation import Spec, apply_changes, load_yaml, validate_spec
from adept_ray.data.backbones import PRESETS
from adept_ray.method.copies import RECORD
from adept_ray.search.edges import describe_edge

if TYPE_CHECKING:
    from adept_ray.method.memory_plan import InferenceCost

NAMED = 8  # layers that a sentence lists before it counts the rest
RIVALS = "comparison.csv"
# All that is read here; of a folder behind a URI no more has to be fetched.
FILES = (
    "best.yaml",
    "trials.csv",
    "importance.json",
    "rates.jsonl",
    "curves.jsonl",
    "run.json",
    RIVALS,
    "model/config.json",
    f"model/{RECORD}",
)
# Settings of a search that say how it goes on, and those that say where it lies, not what it does.
GOING_ON = ("name", *list_fields(SearchRun, Mark.COMMAND))
ELSEWHERE = (*GOING_ON, *list_fields(SearchRun, Mark.PLACE))
PICKED = list_fields(PickRun, Mark.PICK)  # what of pick.py's settings says what is picked


class Record(Spec):
    """A part of a results file; keys the report does not need are left alone."""

    model_config = ConfigDict(extra="ignore")


class Depth(Record):
    """The best finished trial of one k; 0 is the untouched backbone, which scores 0."""

    k: int
    trials: int | None = None
    trial: str | None = None
    score: float | None = None
    standard_error: float | None = None
    gain: float | None = None
    """Over the next smaller k, paired document by document."""
    gain_error: float | None = None
    differs: bool | None = None
    """Whether that gain stands out of its noise."""
    per_layer: float | None = None
    """That gain by the layers that earned it."""


class Edge(Record):
    """A searched parameter whose chosen value lies at the end of its range."""

    parameter: str
    value: float
    end: str
    command: str
    """Searches further; empty where that can't be."""
    held: str = ""
    """What ends a range of k that can't just be made wider."""

    @property
    def place(self) -> str:
        """The words that say where the value lies."""
        return describe_edge(self.parameter, self.value, self.end, self.held)


class Choice(Record):
    """Which k was chosen and why; scores in the search's own unit."""

    k: int
    advised_k: int | None = None
    """0 where nothing that was tried is surely better than the backbone; None in an older folder."""
    trial: str | None = None
    reason: str
    threshold: float | None = None
    depths: tuple[Depth, ...] = ()
    unfinished: dict[int, int] = Field(default_factory=dict)
    """k → number of trials, where none of them was trained to its end."""
    edges: tuple[Edge, ...] = ()
    hyperparameters: dict[str, float] = Field(default_factory=dict)
    """Share of each searched parameter in the differences between scores."""
    hyperparameters_reliable: bool = False
    front: tuple[str, ...] = ()
    """Trials that no other beats on both sides."""
    min_gain_per_layer: float | None = None


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


class Weights(Record):
    """What a score is made of."""

    general: float
    domain: float
    retain: bool = False

    @property
    def said(self) -> str:
        """The score as a formula, Δ being the change of a side."""
        general = "min(general Δ, 0)" if self.retain else "general Δ"
        return f"{self.general:g} · {general} + {self.domain:g} · domain Δ"


class Best(Record):
    """``best.yaml``: the winner."""

    run: dict[str, Any]
    training: dict[str, Any]
    layers: list[int]
    score: Weights | None = None
    """None in an older folder."""
    choice: Choice | None = None
    """None where k was not searched."""
    test: Test

    @property
    def k(self) -> int:
        """How many layers were added."""
        return len(self.layers)

    @property
    def trial(self) -> str | None:
        """Name of the chosen trial."""
        return self.choice.trial if self.choice else None

    @field_validator("choice", mode="before")
    @classmethod
    def _none(cls, choice: Any) -> Any:
        return choice or None


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

    def open_between(self, layers: Collection[int]) -> tuple[list[int], list[int]]:
        """The chosen layers that the probe doesn't tell from others, and those others.

        Both are empty where the `layers` aren't the least important of all, as other placements choose.
        """
        k = len(layers)
        if set(layers) != set(self.order[:k]):
            return [], []
        open_ = {row.layer for row in self.layers if row.places and row.places[0] < k <= row.places[1]}
        return [i for i in self.order[:k] if i in open_], [i for i in self.order[k:] if i in open_]

    def doubt(self, layers: Collection[int]) -> str:
        """A sentence saying which of the chosen layers could as well be others.

        Empty when none could, and when they aren't the least important of all, as other placements choose.
        """
        chosen, others = self.open_between(layers)
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
    state: str
    """finished, stopped, failed, untouched (the backbone as it was), …"""


class Reading(Record):
    """A row of ``curves.jsonl``: what one trial reported at one point of its training.

    A depth of a grown model counts the steps and tokens of those before it, too.
    """

    trial: str
    step: int
    tokens: int
    general_delta: float | None = None
    domain_delta: float | None = None
    score: float | None = None
    loss: float | None = None
    """Of the training text at that step, nats per token."""


class Rival(Record):
    """A row of ``comparison.csv``: means over seeds and half of their 95 % intervals."""

    method: str
    score: float | None
    score_ci: float | None = None
    general_delta: float | None
    general_delta_ci: float | None = None
    domain_delta: float | None
    domain_delta_ci: float | None = None
    against_adept: float | None = None
    against_adept_ci: float | None = None


class RunRecord(Record):
    """``run.json``: how the folder was made."""

    run: dict[str, Any] = Field(default_factory=dict)
    """The command's settings."""
    training: dict[str, Any] | None = None
    """Of a training at full length, which has no trials."""
    space: dict[str, Any] = Field(default_factory=dict)
    """The search space that it began with."""
    pick: dict[str, Any] = Field(default_factory=dict)
    """By what pick.py has chosen anew since, if it has: see PICKED."""

    versions: dict[str, Any]
    fingerprints: dict[str, Any]
    seconds: dict[str, float]
    peak_memory_gib: float | None = None
    command: str
    notes: dict[str, Any]

    @property
    def repeats(self) -> str:
        """A command that does the same again, under another name and where the reader is.

        That of a search is made of its settings, since a resumed one was called with few of them. Where
        another trial was picked since that is a second line.
        """
        if self.training is not None or not self.run:
            return self.command
        settings = {name: value for name, value in self.run.items() if name in SearchRun.flat_fields()}
        run = validate_spec(SearchRun, settings, "run.json: run")
        search = format_command(f"tune-k {format_flags(run, ELSEWHERE)}".strip(), self.command)
        if not self.pick:
            return search
        name = f"{run.name}-again"
        given = {f"--{n.replace('_', '-')}": str(v) for n, v in self.pick.items() if v is not None}
        trust = ["--trust-remote-code"] if run.trust_remote_code else []
        words = [f"{SearchRun().storage}/{name}", *(word for pair in given.items() for word in pair), *trust]
        pick = format_command(f"pick {shlex.join(words)}", self.command)
        return f"{search} {shlex.join(['--name', name])}\n{pick}"


def format_flags(run: SearchRun, without: Collection[str] = (*GOING_ON, "range")) -> str:
    """The flags that start such a search again under another name; without the password of its study."""
    preset = PRESETS.get(run.backbone)
    brought = set(preset.sizes if preset else ())  # by something else, if no flag says what they are
    if run.search_space != SearchRun().search_space:
        brought |= set(SIZES)
    on_such = run.machine.model_copy(update={"precision": "auto"})
    usual, words = apply_changes(SearchRun(), {"precision": on_such.dtype}), []
    for name in SearchRun.flat_fields():
        value = mask_password(run.study) if name == "study" else run.read_field(name)
        if name in without or (value == usual.read_field(name) and name not in brought):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(value if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)


@dataclass(frozen=True)
class Evidence:
    """Everything that is known of a results folder."""

    name: str
    best: Best
    importance: Importance
    trials: list[Trial]
    """None of a training at full length."""
    rows: list[dict[str, str]]  # trials.csv as written, for the table
    rates: list[Rate]
    curves: list[Reading]
    rivals: list[Rival]
    run: RunRecord
    cost: InferenceCost | None
    """Of the exported model; None where it isn't there, or can't be run without data."""

    @property
    def grown(self) -> bool:
        """Whether the trials are the depths of one model, each grown from the one before."""
        return self.run.run.get("strategy") == "grow"

    @property
    def depths(self) -> list[Depth]:
        """A row for each k, ascending: the choice's own, or what the trials say."""
        if self.best.choice and self.best.choice.depths:
            return list(self.best.choice.depths)
        rows = []
        for k in sorted({trial.k for trial in self.trials if trial.k is not None}):
            own = [trial for trial in self.trials if trial.k == k]
            ended = [t for t in own if t.state == "finished" and t.score is not None]
            best = max(ended, key=lambda trial: trial.score or 0.0, default=None)
            found = (
                {"trial": best.trial, "score": best.score, "standard_error": best.score_se} if best else {}
            )
            rows.append(Depth(k=k, trials=len(own), **found))
        return rows

    @property
    def unadvised(self) -> bool:
        """Whether the search that made this advises to leave the backbone as it is."""
        choice = self.best.choice
        return bool(self.trials and choice and choice.advised_k == 0 < choice.k)

    @property
    def front(self) -> list[Trial]:
        """The trials that a search for all trade-offs found to be its front, by general change."""
        names = self.best.choice.front if self.best.choice else ()
        shown = [trial for trial in self.trials if trial.trial in names]
        return sorted(shown, key=lambda trial: trial.general_delta or 0.0)


R = TypeVar("R", bound=Record)


def check_record(record: type[R], values: Any, where: str) -> R:
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


def _read_lines(record: type[R], path: Path) -> list[R]:
    """The rows of a .jsonl file."""
    places = [
        (f"{path}, line {i}", line) for i, line in enumerate(_text(path).splitlines(), 1) if line.strip()
    ]
    return [check_record(record, _json(line, where), where) for where, line in places]


def _read_table(record: type[R], path: Path) -> tuple[list[R], list[dict[str, str]]]:
    """The rows of a .csv file, checked and as written; an empty field is None."""
    reader = csv.DictReader(io.StringIO(_text(path)), restval="")
    found, rows = [], []
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row:
            raise UserError(f"{where}: has more fields than the header has columns")
        found.append(check_record(record, {name: value or None for name, value in row.items()}, where))
        rows.append(row)
    return found, rows


def _cost(model: Path, seq_len: int) -> InferenceCost | None:
    if not (model / "config.json").exists() or not (model / RECORD).exists():
        return None
    from transformers import AutoConfig

    from adept_ray.method.memory_plan import measure_inference

    added = _json(_text(model / RECORD), str(model / RECORD)).get("added_layers", [])
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)  # a page runs no code
        return measure_inference(build_skeleton(config), added, seq_len)
    except Exception:  # a pass without data is more than some architectures can do
        return None


def read_evidence(folder: Path) -> Evidence:
    """All of a results folder; raises :class:`UserError` that names the file and what is wrong in it."""
    best = check_record(Best, load_yaml(folder / "best.yaml"), str(folder / "best.yaml"))
    records = {}
    for name in ("importance.json", "run.json"):
        records[name] = _json(_text(folder / name), str(folder / name))
    run = check_record(RunRecord, records["run.json"], str(folder / "run.json"))
    trials: list[Trial] = []
    rows: list[dict[str, str]] = []
    if run.training is None:
        trials, rows = _read_table(Trial, folder / "trials.csv")
        if not trials:
            raise UserError(f"{folder / 'trials.csv'}: holds no trial")
    curves, rivals = folder / "curves.jsonl", folder / RIVALS
    return Evidence(
        name=run.run.get("name") or folder.resolve().name,
        best=best,
        importance=check_record(Importance, records["importance.json"], str(folder / "importance.json")),
        trials=trials,
        rows=rows,
        rates=_read_lines(Rate, folder / "rates.jsonl"),
        curves=_read_lines(Reading, curves) if curves.exists() else [],
        rivals=_read_table(Rival, rivals)[0] if rivals.exists() else [],
        run=run,
        cost=_cost(folder / "model", best.run.get("seq_len", 128)),
    )
