"""A results folder, read and checked: what report and model card are made from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import describe_os_fault
from adept_ray.config.specs import ScoreWeights
from adept_ray.config.validation import load_yaml
from adept_ray.method.copies import RECORD
from adept_ray.method.scores import value_or_zero
from adept_ray.report.records import (
    Best,
    DialPoint,
    Importance,
    Rate,
    Record,
    Rival,
    RunRecord,
    check_record,
)
from adept_ray.search.answers import Depth, find_horizon
from adept_ray.search.front import Point, list_unbeaten
from adept_ray.search.trials import DIALS, UNTOUCHED, Reading, Trial

if TYPE_CHECKING:
    from adept_ray.method.memory_plan import InferenceCost

T = TypeVar("T")
R = TypeVar("R", bound=Record)
RIVALS = "comparison.csv"
# All that is read here; of a folder behind a URI no more has to be fetched.
FILES = (
    "best.yaml",
    "trials.csv",
    "importance.json",
    "rates.jsonl",
    "curves.jsonl",
    DIALS,
    "run.json",
    RIVALS,
    "model/config.json",
    f"model/{RECORD}",
)
# Columns of trials.csv that figures are drawn from; it may lack others.
TRIAL_NUMBERS = ("k", "general_delta", "domain_delta", "score", "score_se")
DIAL_NUMBERS = ("dial", "plain_score")  # an older one lacks these
TRAINING = "training"  # what a training at full length goes by in files that name trials


@dataclass(frozen=True)
class Evidence:
    """Everything that is known of a results folder."""

    name: str
    best: Best
    importance: Importance
    trials: list[Trial]
    """None for a training at full length. Their numbers only: `rows` has their settings and layers."""
    rows: list[dict[str, str]]
    """trials.csv as written, for the table."""
    rates: list[Rate]
    curves: dict[str, list[Reading]]
    """Trial → what it reported as it trained."""
    dials: dict[str, list[DialPoint]]
    """Trial → what it gains at each dial that was read, ascending; none where no dial was looked for."""
    rivals: list[Rival]
    run: RunRecord
    cost: InferenceCost | None
    """Cost of the exported model; None where it isn't there, or can't be run without data."""

    @property
    def is_grown(self) -> bool:
        """Whether the trials are the depths of one model, each grown from the one before."""
        return self.run.run.get("strategy") == "grow"

    @property
    def schedule(self) -> object:
        """How rates went with the steps: those of a search's trials, or of a training at full length."""
        return (self.run.training or self.run.run).get("schedule", "cosine")

    @property
    def depths(self) -> list[Depth]:
        """A row for each k, ascending: the choice's own, or what the trials say."""
        if self.best.choice and self.best.choice.depths:
            return list(self.best.choice.depths)
        return [summarise_depth(k, self.trials) for k in sorted({trial.k for trial in self.trials})]

    @property
    def chosen(self) -> str | None:
        """Under which name files have what was exported: a trial's, or that of a training."""
        return self.best.trial if self.trials else TRAINING

    @property
    def reason(self) -> str:
        """Why the exported model has its k, in sentences; empty where k was not searched."""
        choice = self.best.choice
        if choice is None:
            return ""
        tokens = self.best.training.get("tokens")
        if self.trials or not choice.horizons or not tokens:
            return choice.reason
        answer = find_horizon(choice.horizons, tokens)
        return f"The search said {answer.describe()}." if answer.k == self.best.k else choice.reason

    @property
    def advises_against(self) -> bool:
        """Whether the search that made this advises to leave the backbone as it is."""
        choice = self.best.choice
        return bool(self.trials and choice and choice.advised_k == 0 < choice.k)

    @property
    def front(self) -> list[Point]:
        """General and domain changes that no others beat on both sides, by general change.

        Of the untouched backbone and all finished trials at all dials; without dials of the trials that a
        search for all trade-offs found to be its front.
        """
        names: Collection[str] = self.best.choice.front if self.best.choice else ()
        if self.dials:
            names = [trial.name for trial in self.trials if trial.state in ("finished", UNTOUCHED)]
        points = [
            (value_or_zero(trial.general_delta), value_or_zero(trial.domain_delta))
            for trial in self.trials
            if trial.name in names
        ]
        if not self.dials:
            return sorted(points)
        points += [(each.general_delta, each.domain_delta) for own in self.dials.values() for each in own]
        weights = self.best.score
        return list_unbeaten(points, ScoreWeights(**weights.model_dump()) if weights else ScoreWeights())


def summarise_depth(k: int, trials: list[Trial]) -> Depth:
    """What the trials of one k say, where the choice says nothing of it: an older folder."""
    own = [trial for trial in trials if trial.k == k]
    finished = [trial for trial in own if trial.state == "finished" and trial.score is not None]
    if not finished:
        return Depth(k=k, trials=len(own))
    best = max(finished, key=lambda trial: trial.score or 0.0)
    return Depth(k=k, trials=len(own), trial=best.name, score=best.score, standard_error=best.score_se)


def read_evidence(folder: Path) -> Evidence:
    """All of a results folder; raises :class:`UserError` that names the file and what is wrong in it."""
    best = check_record(Best, load_yaml(folder / "best.yaml"), str(folder / "best.yaml"))
    run = read_json_file(RunRecord, folder / "run.json")
    importance = read_json_file(Importance, folder / "importance.json")
    trials: list[Trial] = []
    rows: list[dict[str, str]] = []
    if run.training is None:
        trials, rows = read_trials_table(folder / "trials.csv")
    rivals = folder / RIVALS
    return Evidence(
        name=run.run.get("name") or folder.resolve().name,
        best=best,
        importance=importance,
        trials=trials,
        rows=rows,
        rates=[check_record(Rate, row, where) for where, row in read_lines(folder / "rates.jsonl")],
        curves=read_curves(folder / "curves.jsonl"),
        dials=read_dials(folder / DIALS),
        rivals=read_rivals(rivals) if rivals.exists() else [],
        run=run,
        cost=measure_cost(folder / "model", best.run.get("seq_len", 128)),
    )


def read_trials_table(path: Path) -> tuple[list[Trial], list[dict[str, str]]]:
    """The trials of a trials.csv and its rows as written. Raises :class:`UserError`."""
    trials, rows = [], []
    for where, row in read_table(path):
        for name in ("trial", "state", *TRIAL_NUMBERS):
            if name not in row:
                raise UserError(f"{where}: '{name}' is missing")
        numbers = {name: row.get(name) or None for name in (*TRIAL_NUMBERS, *DIAL_NUMBERS)}
        trials.append(check_record(Trial, {"name": row["trial"], "state": row["state"], **numbers}, where))
        rows.append(row)
    if not trials:
        raise UserError(
            f"{path}: holds no trial: go on with that search by --resume, or give another results folder"
        )
    return trials, rows


def read_curves(path: Path) -> dict[str, list[Reading]]:
    """The readings of each trial in a curves.jsonl; an older folder has none. Raises :class:`UserError`."""
    curves: dict[str, list[Reading]] = {}
    for where, row in read_lines(path) if path.exists() else ():
        name = check_record(CurveOwner, row, where).trial
        curves.setdefault(name, []).append(check_record(Reading, row, where))
    return curves


def read_dials(path: Path) -> dict[str, list[DialPoint]]:
    """What each trial gains by dial in a dials.csv, if there is one. Raises :class:`UserError`."""
    dials: dict[str, list[DialPoint]] = {}
    for where, row in read_table(path) if path.exists() else ():
        point = check_record(DialPoint, row, where)
        dials.setdefault(point.trial, []).append(point)
    return {trial: sorted(points, key=lambda point: point.dial) for trial, points in dials.items()}


class CurveOwner(Record):
    """Whose reading a row of curves.jsonl is."""

    trial: str


def read_rivals(path: Path) -> list[Rival]:
    """The methods of a comparison.csv; an empty field is None. Raises :class:`UserError`."""
    rows = [(where, {name: value or None for name, value in row.items()}) for where, row in read_table(path)]
    return [check_record(Rival, row, where) for where, row in rows]


def read_text(path: Path) -> str:
    """The text of a file of the folder. Raises :class:`UserError`."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so this is not a whole results folder") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(describe_os_fault(problem, path) or f"{path}: not readable: {problem}") from None


def parse_json(text: str, where: str) -> object:
    """What a text of JSON holds. Raises :class:`UserError` that names `where`."""
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as problem:
        raise UserError(f"{where}: not JSON ({problem}): copy the results folder again") from None
    return value


def read_json_file(record: type[R], path: Path) -> R:
    """A .json file, checked. Raises :class:`UserError`."""
    return check_record(record, parse_json(read_text(path), str(path)), str(path))


def read_lines(path: Path) -> list[tuple[str, object]]:
    """The rows of a .jsonl file, each with its place in words. Raises :class:`UserError`."""
    lines = enumerate(read_text(path).splitlines(), 1)
    places = [(f"{path}, line {number}", line) for number, line in lines if line.strip()]
    return [(where, parse_json(line, where)) for where, line in places]


def read_table(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The rows of a .csv file as written, each with its place in words. Raises :class:`UserError`."""
    reader = csv.DictReader(io.StringIO(read_text(path)), restval="")
    rows = []
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row:
            raise UserError(
                f"{where}: has more fields than the header has columns: copy the results folder again"
            )
        rows.append((where, row))
    return rows


def measure_cost(model: Path, seq_len: int) -> InferenceCost | None:
    """Parameters and operations of an exported model, if it is there and can be traced without data."""
    if not (model / "config.json").exists() or not (model / RECORD).exists():
        return None
    from transformers import AutoConfig

    from adept_ray.method.memory_plan import measure_inference
    from adept_ray.method.sharding import build_skeleton

    added = check_record(CopiesRecord, parse_json(read_text(model / RECORD), RECORD), str(model / RECORD))
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)  # a page runs no code
        return measure_inference(build_skeleton(config), added.added_layers, seq_len)
    except Exception:  # a pass without data is more than some architectures can do
        return None


class CopiesRecord(Record):
    """What an exported model says of its copies."""

    added_layers: tuple[int, ...] = ()
