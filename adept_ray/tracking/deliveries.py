"""From the events of a run to what its trackers are told; no tracker's library is needed here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adept_ray.search.trials import Facts, Trial
from adept_ray.tracking.tracker import MAIN, Setting, TrackedRun

BEGINS = ("search", "train")  # stages with which a run is worth tracking: it is refused no more
NO_VALUES = ("step", "k")  # numbers of a reading that are no curve
REPORT = "report.html"


@dataclass(frozen=True)
class Begin:
    """A run begins, goes on, or is seen to be over."""

    run: TrackedRun
    state: str = "running"


@dataclass(frozen=True)
class Values:
    """What a training reported at a step."""

    key: str
    values: Mapping[str, float]
    step: int


@dataclass(frozen=True)
class Numbers:
    """Numbers of a run that belong to no step."""

    key: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Note:
    """A text in Markdown about a run."""

    key: str
    text: str


@dataclass(frozen=True)
class File:
    """A file to be kept with a run."""

    key: str
    path: Path


@dataclass(frozen=True)
class End:
    """A run is over."""

    key: str
    state: str


Delivery = Begin | Values | Numbers | Note | File | End


@dataclass
class EventReader:
    """Reads the events of one command; see ``docs/monitoring.md`` for what each has."""

    main: TrackedRun
    """The search or the training of this command."""
    folder: Path
    """Holds the files of the results."""
    earlier: Mapping[str, Sequence[Facts]] = field(default_factory=dict)
    """Trial → readings that earlier commands of the run wrote down."""
    _waiting: list[Delivery] = field(default_factory=list)
    _begun: bool = False
    _states: dict[str, str] = field(default_factory=dict)
    _early: dict[str, list[Values]] = field(default_factory=dict)

    def read(self, event: str, facts: Facts) -> list[Delivery]:
        """What is to be delivered now that this has happened; nothing before a training begins."""
        self._waiting += self._list_deliveries(event, facts)
        if event == "stage_began" and facts["stage"] in BEGINS and not self._begun:
            self._begun = True
            self._waiting.insert(0, Begin(self.main))
        ready = self._waiting if self._begun else []
        self._waiting = [] if self._begun else self._waiting
        return ready

    def end(self, state: str) -> list[Delivery]:
        """What is to be delivered when the command ends; trials that still ran go on with the next one."""
        if not self._begun:
            return []
        running = [key for key, each in self._states.items() if each == "running"]
        return [*(End(key, "interrupted") for key in running), End(MAIN, state)]

    def _list_deliveries(self, event: str, facts: Facts) -> Iterator[Delivery]:
        if event == "stage_ended":
            yield Numbers(MAIN, {f"seconds/{facts['stage']}": facts["seconds"]})
        elif event == "reading":
            yield from self._read_reading(facts)
        elif event == "trial":
            yield from self._read_trial(facts)
        elif event == "summary":
            yield Numbers(MAIN, list_results(facts))
            yield Note(MAIN, format_note(facts))
            if (report := self.folder / REPORT).exists():
                yield File(MAIN, report)

    def _read_reading(self, facts: Facts) -> Iterator[Delivery]:
        values = read_values(facts)
        if not self.main.group:
            yield replace(values, key=MAIN)
        elif values.key in self._states:
            yield values
        else:  # its row is what says with which settings it trains
            self._early.setdefault(values.key, []).append(values)

    def _read_trial(self, facts: Facts) -> Iterator[Delivery]:
        trial = Trial.from_row({name: value for name, value in facts.items() if name != "left"})
        if trial.name not in self._states:
            yield Begin(self._describe_trial(trial), trial.state)
            earlier = map(read_values, self.earlier.get(trial.name, ()))
            yield from (replace(values, key=trial.name) for values in earlier)
            yield from self._early.pop(trial.name, ())
        if trial.state != "running" and self._states.get(trial.name) != trial.state:
            yield End(trial.name, trial.state)
        self._states[trial.name] = trial.state

    def _describe_trial(self, trial: Trial) -> TrackedRun:
        config = {name: value for name, value in trial.config.items() if value is not None}
        settings = {**config, "layers": " ".join(map(str, trial.layers))}
        return TrackedRun(trial.name, trial.name, self.main.group, settings)


def read_values(reading: Facts) -> Values:
    """The values of an event ``reading``, or of one that was written down; what isn't finite is left out."""
    flat = {name: value for name, value in reading.items() if name not in NO_VALUES}
    flat |= {f"scale/{unit}": value for unit, value in (reading.get("scales") or {}).items()}
    return Values(str(reading.get("trial", "")), keep_numbers(flat), reading["step"])


def keep_numbers(facts: Facts) -> dict[str, float]:
    """The finite numbers among facts."""
    numbers = {name: value for name, value in facts.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def list_results(summary: Facts) -> dict[str, float]:
    """The numbers of an event ``summary``: k, what the test gave, the seconds of every stage."""
    test = summary["test"]
    deltas = {f"test/{side}_delta": test[side]["delta"] for side in ("general", "domain")}
    scores = {f"test/{name}": test.get(name) for name in ("score", "score_se", "dial")}
    seconds = {f"seconds/{stage}": each for stage, each in summary["seconds"].items()}
    depths = {name: summary[name] for name in ("k", "advised_k")}
    return keep_numbers(depths | deltas | scores | seconds)


def format_note(summary: Facts) -> str:
    """The choice of an event ``summary`` in Markdown, and where its files are."""
    layers = " ".join(map(str, summary["layers"])) or "none"
    files = "\n".join(f"- {name}: `{place}`" for name, place in summary["files"].items())
    doubt = f"\n\n{summary['doubt']}" if summary["doubt"] else ""
    return f"**k = {summary['k']}**, layers copied: {layers}\n\n{summary['reason']}{doubt}\n\n{files}\n"


def flatten_settings(settings: Mapping[str, object]) -> dict[str, Setting]:
    """The settings of a run as trackers take them: nested ones by their path, lists as text."""
    flat: dict[str, Setting] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": each for key, each in flatten_settings(value).items()}
        elif isinstance(value, int | float | str):
            flat[name] = value
        elif value is not None:
            flat[name] = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return flat
