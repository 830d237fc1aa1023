"""A trial of a search: what it tries, what is measured of it, and the files that list the trials."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from adept_ray.config.schedules import fix_warmup
from adept_ray.config.search_space import SEARCHABLE
from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.method.dial import Turned
from adept_ray.method.scores import Pulls, is_finite
from adept_ray.storage.files import format_json
from adept_ray.storage.results import Results

Value = int | float | str | bool | None  # of a searched parameter
Setting = Mapping[str, Value]  # searched parameter → its value
Facts = Mapping[str, Any]  # a worker's report, or a row of a file, as JSON has it
Row = dict[str, object]  # a trial as trials.json, the board and the display have it

UNTOUCHED = "untouched"  # name and state of the trial that stands for the backbone itself
DIALS = "dials.csv"
HIDDEN = ("saved", "error", "pulls", "curve", "turned")  # keys of a row that trials.csv leaves out
MEASURES = (
    "general_bpb",
    "domain_bpb",
    "general_accuracy",
    "domain_accuracy",
    "general_delta",
    "domain_delta",
    "score",
    "score_se",
    "dial",
    "plain_score",
    "tokens",
    "seconds",
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a training reported at one point.

    A depth of a grown model counts the steps and tokens of the depths before it, too.
    """

    step: int
    tokens: int
    general_delta: float | None = None
    domain_delta: float | None = None
    score: float | None = None
    plain_general_delta: float | None = None
    plain_domain_delta: float | None = None
    plain_score: float | None = None
    """As it was trained, at dial 1."""
    dial: float | None = None
    loss: float | None = None
    """Loss of the training text at that step, nats per token."""


@dataclass(frozen=True)
class Trial:
    """One training of a search. Its numbers are None until it reports for the first time."""

    name: str
    k: int
    layers: tuple[int, ...] = ()
    """The layers that it copies."""
    setting: Setting = field(default_factory=dict)
    """The values of the searched parameters other than k."""
    general_bpb: float | None = None
    domain_bpb: float | None = None
    general_accuracy: float | None = None
    domain_accuracy: float | None = None
    general_delta: float | None = None
    domain_delta: float | None = None
    score: float | None = None
    score_se: float | None = None
    dial: float | None = None
    """How far the model is turned from the backbone (0) to what was trained (1), where it scores that."""
    plain_score: float | None = None
    """Its score as it was trained, at dial 1."""
    tokens: int | None = None
    seconds: float | None = None
    state: str = "running"
    """running, finished, stopped, failed, interrupted, untouched, or given up (its weights are gone)."""
    saved: str | None = None
    """The place of its last checkpoint."""
    pulls: Pulls | None = None
    """How far each document or item pulls the change of a side."""
    turned: Turned = field(default_factory=Turned)
    """What it gains at each dial that was read at its end."""
    curve: tuple[Reading, ...] = ()
    error: str | None = ""
    """Why it failed, None if it didn't; empty as long as nobody has asked."""

    @property
    def config(self) -> dict[str, Value]:
        """The values of all searched parameters, k among them."""
        return {"k": self.k, **self.setting}

    @property
    def checkpoint(self) -> str:
        """The place of its last checkpoint; every trial that has reported has one."""
        assert self.saved is not None, f"{self.name} has saved nothing"
        return self.saved

    @property
    def folder(self) -> str:
        """The folder of its weights, among those of all trials: its own, or that of its last branch in it."""
        above, _, own = (self.saved or "").rpartition(f"/{self.name}/")
        branch = own.rpartition("/")[0] if above else ""
        return f"{self.name}/{branch}" if branch else self.name

    @property
    def is_comparable(self) -> bool:
        """Whether it was trained to its end and has a score: others saw fewer tokens."""
        return self.state == "finished" and is_finite(self.score)

    def as_row(self) -> Row:
        """The trial as it is written to trials.json and shown."""
        row: Row = {"trial": self.name, "k": self.k, "layers": " ".join(map(str, self.layers))}
        row |= dict(self.setting)
        row |= {name: getattr(self, name) for name in MEASURES}
        row |= {"state": self.state, "saved": self.saved, "pulls": self.pulls}
        row["turned"] = self.turned.to_json() if self.turned.turns else None
        row["curve"] = [vars(reading).copy() for reading in self.curve]
        return row if self.error == "" else {**row, "error": self.error}

    @classmethod
    def from_row(cls, row: Facts) -> Trial:
        """The trial that :meth:`as_row` gave as a row."""
        own_keys = {"trial", "k", "layers", "state", *MEASURES, *HIDDEN}
        return cls(
            name=row["trial"],
            k=row["k"],
            layers=tuple(int(layer) for layer in row["layers"].split()),
            setting={name: value for name, value in row.items() if name not in own_keys},
            **{name: row.get(name) for name in (*MEASURES, "saved", "pulls")},
            state=row["state"],
            turned=Turned.from_json(row.get("turned")),
            curve=read_curve(row.get("curve", ())),
            error=row.get("error", ""),
        )


def read_curve(readings: Sequence[Facts]) -> tuple[Reading, ...]:
    """The readings of a learning curve, as a worker reports them or a row has them."""
    names = [each.name for each in fields(Reading)]
    return tuple(Reading(**{name: row[name] for name in names if name in row}) for row in readings)


def title_trial(name: str, config: Setting) -> str:
    """A trial's name and its most telling settings."""
    digits, _, exponent = f"{config['base_lr']:.1e}".partition("e") if "base_lr" in config else ("", "", "")
    rate = f" lr={float(digits):g}e{int(exponent)}" if digits else ""
    return f"{name} k={config['k']}{rate}"


def name_end(metrics: Facts | None) -> str:
    """The state of a trial that ended without an error."""
    return "finished" if metrics and metrics.get("complete") else "stopped"


def describe_trial(name: str, config: Facts, metrics: Facts, state: str, layers: Sequence[int]) -> Trial:
    """The trial of a setting, with what its last report says."""
    return Trial(
        name=name,
        k=config["k"],
        layers=tuple(layers),
        setting={key: value for key, value in config.items() if key != "k"},
        **{key: metrics.get(key) for key in (*MEASURES, "saved", "pulls")},
        state=state,
        turned=Turned.from_json(metrics.get("turned")),
        curve=read_curve(metrics.get("curve") or ()),
    )


def resolve_training(trial: Trial, base: TrainingSpec) -> TrainingSpec:
    """The specification that a trial was trained with; `base` has what isn't searched."""
    searched = {name: trial.config[name] for name in SEARCHABLE if name in trial.config}
    return fix_warmup(apply_changes(base, searched))


def read_trials(results: Results) -> list[Trial]:
    """The trials of trials.json."""
    rows = json.loads((results.folder / "trials.json").read_text(encoding="utf-8"))["trials"]
    return [Trial.from_row(row) for row in rows]


def write_trials(results: Results, trials: Sequence[Trial], weights: ScoreWeights) -> None:
    """Write trials.csv, trials.json with all that a later choice needs, and the trials' curves and dials.

    Their scores are those that the `weights` give.
    """
    rows = [trial.as_row() for trial in trials]
    results.write("trials.csv", format_table(rows))
    results.write_json("trials.json", {"trials": rows})
    write_curves(results, {trial.name: trial.curve for trial in trials})
    write_dials(results, {trial.name: trial.turned for trial in trials}, weights)


def format_table(rows: Sequence[Row]) -> str:
    """The rows as trials.csv: searched parameters follow the layers; accuracies only if any is known."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    varied = [name for name in names if name in SEARCHABLE and name != "k"]
    names = [*names[:3], *varied, *(name for name in names[3:] if name not in (*varied, *HIDDEN))]
    names = [n for n in names if not n.endswith("_accuracy") or any(row[n] is not None for row in rows)]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_curves(results: Results, curves: Mapping[str, Sequence[Reading]]) -> None:
    """Write curves.jsonl: what every trial (or one training) reported as it trained, by its name."""
    rows = [{"trial": name, **vars(reading)} for name, curve in curves.items() for reading in curve]
    results.write("curves.jsonl", "".join(format_json(row) + "\n" for row in rows))


def write_dials(results: Results, turned: Mapping[str, Turned], weights: ScoreWeights) -> None:
    """Write dials.csv: what every trial (or one training) gains at each dial that was read, by its name.

    Nothing is written where no dial was looked for.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("trial", "dial", "general_delta", "domain_delta", "score"))
    rows = [
        (name, turn.dial, *turn.deltas, turn.weigh(weights))
        for name, at in turned.items()
        for turn in at.turns
    ]
    writer.writerows(rows)
    if rows:
        results.write(DIALS, text.getvalue())
