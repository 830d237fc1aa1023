"""What a person sees in the terminal: stages with their progress, a live table of trials.

For a machine it is one object of JSON a line: every event, and nothing else, on stdout.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic_core import to_json
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from adept_ray.method.dial import TRAINED
from adept_ray.rivals.table import is_dialled
from adept_ray.search.trials import Facts

if TYPE_CHECKING:
    from adept_ray.config.machine import Machine
    from adept_ray.data.benchmark_tasks import AccuracyRow
    from adept_ray.method.fit import Fit
    from adept_ray.method.memory_plan import MemoryPlan
    from adept_ray.rivals.table import ComparedTraining, Summary
    from adept_ray.run.check_list import Check
    from adept_ray.training.work import ImportanceRecord

Update = Callable[[int, int], None]
Show = Callable[[Mapping[str, tuple[int, int]], Sequence[Facts]], None]
Listener = Callable[[str, Mapping[str, object]], None]
COLUMNS = ("trial", "k", "rate", "step", "general Δ", "domain Δ", "score", "dial", "as trained", "state")
# The first to go where a terminal is narrow.
DISPENSABLE = ("as trained", "rate", "dial", "general Δ", "domain Δ", "step")
WIDE = 100  # columns of a terminal that has room for the scores of a comparison's models as they were trained
BESIDE_BAR = 30  # columns of a terminal for a short bar, its share and its times
PROGRESS_EVERY = 5.0  # seconds between two lines about the progress of a stage, for machines


class TimeLeft(ProgressColumn):
    """How long a stage still takes at its pace so far, known as soon as a part of it is done."""

    def render(self, task: Task) -> Text:
        """``0:01:05``, or dashes."""
        seconds = estimate_time_left(task.elapsed or 0.0, task.completed, (task.total or 0) - task.completed)
        text = "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))
        return Text(text, style="progress.remaining")


class Display:
    """Writes to the terminal; to a file or a pipe it writes a line per event instead of live pictures.

    With `json_lines` it writes events for machines and nothing for persons.
    """

    def __init__(self, json_lines: bool = False) -> None:
        self._out = sys.stdout  # the terminal's, even where other output is redirected
        self._json = json_lines
        self.console = Console(file=self._out, highlight=False, quiet=json_lines)
        self.live = self.console.is_terminal and not json_lines
        """Whether a person looks on."""
        self.seconds: dict[str, float] = {}
        """Wall clock of each stage so far."""
        self.listeners: list[Listener] = []
        """Called with the name of every event and its facts."""
        self._started = time.monotonic()

    def count_seconds(self) -> float:
        """Seconds since the command began."""
        return round(time.monotonic() - self._started, 1)

    def show(self, text: str) -> None:
        """One line (or more) for persons."""
        self.console.print(text, markup=False, soft_wrap=True)

    def emit(self, name: str, /, **facts: object) -> None:
        """Something that happened, for machines and listeners; what isn't finite becomes null."""
        for listener in self.listeners:
            listener(name, facts)
        if self._json:
            line = to_json({"event": name, "at": self.count_seconds(), **facts}, inf_nan_mode="null")
            self._out.write(line.decode() + "\n")
            self._out.flush()

    def say(self, text: str) -> None:
        """One line (or more) for persons and machines alike."""
        self.show(text)
        self.emit("note", text=text.strip())

    def warn(self, sentence: str) -> None:
        """Something that the user should look into."""
        self.show(f"warning: {sentence}")
        self.emit("warning", text=sentence)

    def show_check(self, check: Check) -> None:
        """A line about something that was looked at, with a mark for good or bad, and its faults."""
        self.emit("check", **asdict(check), good=not check.faults)
        mark = "✗" if check.faults else "✓" if check.looked_at else "–"
        self.show(f"{mark} {check.name:12} {check.found}")
        for fault in check.faults:
            self.show(f"    {fault}")

    @contextmanager
    def show_stage(self, name: str, what: str) -> Iterator[Update]:
        """Show that a stage runs; yields a function that takes (done, of)."""
        started = time.monotonic()
        room = max(BESIDE_BAR // 2, self.console.width - BESIDE_BAR)  # else the times would be cut, too
        shortened = Column(no_wrap=True, overflow="crop", max_width=room)
        bar = Progress(
            TextColumn("{task.description}", table_column=shortened),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeLeft(),
            console=self.console,
            transient=True,
            redirect_stdout=False,  # what others print is none of its business
            redirect_stderr=False,
        )
        self.emit("stage_began", stage=name, what=what)
        if not self.live:
            self.show(f"{what} …")
            bar.disable = True
        task = bar.add_task(what, total=None)
        last_event = started

        def update(done: int, of: int) -> None:
            nonlocal last_event
            bar.update(task, completed=done, total=of)
            if (now := time.monotonic()) - last_event > PROGRESS_EVERY:
                last_event = now
                self.emit(
                    "progress",
                    stage=name,
                    done=done,
                    of=of,
                    left=estimate_time_left(now - started, done, of - done),
                )

        try:
            with bar:
                yield update
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 1)
        self.show(f"{what}: {self.seconds[name]:.1f} s")
        self.emit("stage_ended", stage=name, seconds=self.seconds[name])

    def show_plan(self, needs: MemoryPlan, machine: Machine, fit: Fit, memory: int, what: str) -> None:
        """What a training takes of a worker of `memory` bytes."""
        share = machine.fewest_workers if fit.sharded else 1
        parts = {
            "weights": needs.weights // share,
            "gradients": needs.gradients // share,
            "optimizer": needs.optimizer // share,
            "activations" + (", computed again" if fit.recompute else ""): needs.casts
            + needs.count_activations(machine.micro_batch, fit, machine.on_gpus),
        }
        if origin := needs.count_origin(fit):
            parts["the backbone's own"] = origin // share
        if fit.sharded:
            parts["layers put together"] = needs.gathered
            if whole := needs.count_whole_copy(machine.on_gpus):
                parts["the first one's whole model"] = whole
        if copied := needs.count_checkpoint_copy(machine.on_gpus):
            parts["a checkpoint"] = copied
        sizes = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        total = needs.find_peak(machine, machine.micro_batch, fit) / 2**30
        sizes_of = ("parameters", "added", "trained", "flops")
        facts = {name: getattr(needs, name) for name in sizes_of}
        facts |= {"gib": total, "of_gib": memory / 2**30, **asdict(fit)}
        self.emit("plan", what=what, **facts)
        self.show(
            f"{what}: {needs.parameters / 1e6:.1f} M parameters, {needs.added / 1e6:.1f} M added, "
            f"{needs.trained / 1e6:.1f} M ({needs.share:.1%}) trained, "
            f"{needs.flops / 1e9:.2f} GFLOP a token\n"
            f"  a worker: {sizes}: {total:.2f} of {memory / 2**30:.1f} GiB"
            + (" (as it is without --compile)" if fit.compiled else "")
        )
        if fit.stream_bytes:
            where = " of its node's temporary folder, and a quarter of the room there" * machine.on_gpus
            self.show(
                "  what enters the lowest copy is computed once and kept, in at most "
                f"{fit.stream_bytes / 2**30:.1f} GiB more{where}"
            )

    def show_importance(self, importance: ImportanceRecord) -> None:
        """The importance of every layer as a table with bars, least important first."""
        facts = {"order": importance["order"], "ties": importance["ties"], "layers": importance["layers"]}
        self.emit("importance", **facts)
        rows = {row["layer"]: row for row in importance["layers"]}
        most = max(row["mean"] for row in rows.values())
        longest = max(4, min(40, self.console.width - 30))
        table = Table("layer", "nats per token", "", box=None, header_style="bold")
        for layer in importance["order"]:
            mean, error = rows[layer]["mean"], rows[layer]["standard_error"]
            # A square root keeps the small ones apart beside a first layer that is fifty times as large.
            bar = "█" * round(longest * math.sqrt(max(mean, 0) / most)) if most > 0 else ""
            table.add_row(str(layer), f"{mean:.4f} ± {'–' if error is None else f'{error:.4f}'}", bar)
        self.console.print(table)
        for group in importance["ties"]:
            names = " ".join(map(str, group))
            self.show(f"not told apart at {importance['confidence']:.0%} confidence: {names}")
        self.show(f"loss of the whole model: {importance['base_loss']:.4f} nats per token")

    def show_training(self, row: ComparedTraining) -> None:
        """A line about a training of a comparison that ended."""
        rate = f"  rate {row.base_lr:.3g}" if row.base_lr else ""
        deltas = map(format_signed, (row.general_delta, row.domain_delta, row.score))
        end = f"failed: {row.error}" if row.error else "general {}  domain {}  score {}".format(*deltas)
        if row.dial not in (None, TRAINED):
            end += f" at dial {row.dial:g}, as trained {format_signed(row.plain_score)}"
        self.emit("training", **asdict(row))
        self.show(f"{row.method}{rate}  seed {row.seed} ({row.phase})  {end}")

    def show_comparison(self, rows: Sequence[Summary]) -> None:
        """The methods of a comparison with their means and intervals, best first."""
        self.emit("comparison", rows=rows)
        numbers = {
            "score": "score",
            "plain_score": "as trained",
            "general_delta": "general Δ",
            "domain_delta": "domain Δ",
            "against_adept": "score − adept",
        }
        if self.console.width < WIDE or not any(is_dialled(row) for row in rows):
            del numbers["plain_score"]
        table = Table(Column("method", overflow="fold"), box=None)
        for name in numbers.values():
            table.add_column(name, no_wrap=True)
        for row in sorted(
            rows, key=lambda row: -math.inf if row["score"] is None else row["score"], reverse=True
        ):
            halves = [row[f"{name}_ci"] for name in numbers]
            texts = [
                format_signed(row[n]) + (f" ± {h:.2f}" if h is not None else "")
                for n, h in zip(numbers, halves, strict=True)
            ]
            table.add_row(row["method"], *texts)
        self.console.print(table)

    def show_overlaps(self, models: Mapping[str, Sequence[Facts]], layers: Sequence[int]) -> None:
        """How far the densities of both kinds of text overlap: mean over layers, and at the chosen ones."""
        self.emit("overlaps", models=models)
        table = Table("model", "mean overlap", *(f"layer {layer}" for layer in layers), box=None)
        for name, rows in models.items():
            mean = sum(row["overlap"] for row in rows) / len(rows)
            chosen = [[row["overlap"] for row in rows if row["layer"] == layer] for layer in layers]
            table.add_row(name, f"{mean:.3f}", *(" → ".join(f"{o:.3f}" for o in each) for each in chosen))
        self.console.print(table)

    def show_accuracies(self, rows: Sequence[AccuracyRow]) -> None:
        """Accuracy of each benchmark task beside that of guessing."""
        self.emit("accuracies", rows=rows)
        table = Table("task", "items", "accuracy %", "chance %", box=None)
        for row in rows:
            error = row["standard_error"]
            accuracy = f"{100 * row['accuracy']:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")
            chance = "–" if row["chance"] is None else f"{100 * row['chance']:.1f}"
            table.add_row(row["task"], str(row["items"]), accuracy, chance)
        self.console.print(table)

    @contextmanager
    def show_trials(self, total: int, resumed: bool = False) -> Iterator[Show]:
        """A live table; yields a function that takes the progress of each trial and the trials' rows.

        Where the search is `resumed`, what a trial has when it is first seen was done before. It says nothing
        about how long the other trials will take.
        """
        started = time.monotonic()
        before: dict[str, float] = {}
        live = Live(console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        shown: dict[str, Facts] = {}

        def show(progress: Mapping[str, tuple[int, int]], rows: Sequence[Facts]) -> None:
            elapsed, done = time.monotonic() - started, compute_shares(rows, progress)
            if resumed:
                before.update({trial: share for trial, share in done.items() if trial not in before})
            whole = sum(done.values())
            seconds = estimate_time_left(elapsed, whole - sum(before.values()), total - whole)
            if self.live:
                over = sum(row["state"] != "running" for row in rows)
                live.update(
                    Group(
                        build_trials_table(rows, progress, self.console.width),
                        format_clock(elapsed, over, total, seconds),
                    ),
                    refresh=True,
                )
            for row in rows:
                if row != shown.get(row["trial"]):
                    shown[row["trial"]] = row
                    short = {name: value for name, value in row.items() if not isinstance(value, list | dict)}
                    self.emit("trial", **short, left=seconds)
                    if not self.live and row["state"] != "running":
                        texts = zip(COLUMNS, format_cells(row, progress), strict=True)
                        self.show("  ".join(f"{name} {text}" for name, text in texts))

        self.emit("stage_began", stage="search", what=f"{total} trials")
        try:
            with live if self.live else nullcontext():
                yield show
        finally:
            self.seconds["search"] = round(time.monotonic() - started, 1)
        self.show(f"search: {self.seconds['search']:.1f} s")
        self.emit("stage_ended", stage="search", seconds=self.seconds["search"])


def estimate_time_left(elapsed: float, done: float, left: float) -> float | None:
    """Seconds that the part `left` will take if `done` took `elapsed`; None where nothing is done."""
    return round(elapsed * left / done, 1) if done > 0 else None


def compute_shares(rows: Sequence[Facts], progress: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Trial → the share of it that is done (0…1); a running trial without a step is left out."""
    shares = {name: done / of for name, (done, of) in progress.items()}
    over = {row["trial"]: 1.0 for row in rows if row["state"] != "running"}
    return {row["trial"]: shares[row["trial"]] for row in rows if row["trial"] in shares} | over


def format_clock(elapsed: float, over: int, total: int, seconds: float | None) -> str:
    """The line under the table of trials."""
    more = f", about {seconds:.0f} s left" if seconds else ""
    return f"search: {over} of {total} trials over, {elapsed:.0f} s{more}"


def build_trials_table(rows: Sequence[Facts], progress: Mapping[str, tuple[int, int]], width: int) -> Table:
    """The trials so far as a table; a terminal of `width` columns that is too narrow has fewer of ours."""
    table = Table(box=None, header_style="bold")
    texts = [dict(zip(COLUMNS, format_cells(row, progress), strict=True)) for row in rows]
    shown = choose_columns(texts, width)
    for name in shown:
        table.add_column(name, justify="left" if name in ("trial", "state") else "right", no_wrap=True)
    best = max((row["score"] for row in rows if row["state"] == "finished"), default=None)
    for row, text in zip(rows, texts, strict=True):
        leads = best is not None and row["score"] == best and row["state"] == "finished"
        table.add_row(
            *(text[name] for name in shown),
            style="green" if leads else "dim" if row["state"] == "stopped" else "",
        )
    return table


def choose_columns(texts: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """The columns of rows of texts for which `width` columns of a terminal have room, in our order."""
    sizes = {name: max(len(name), *(len(text[name]) for text in texts), 0) + 2 for name in COLUMNS}
    shown = list(COLUMNS)
    for name in DISPENSABLE:
        if sum(sizes[each] for each in shown) > width:
            shown.remove(name)
    return shown


def format_cells(row: Facts, progress: Mapping[str, tuple[int, int]]) -> list[str]:
    """A trial's row as short texts, in the order of COLUMNS."""
    done, of = progress.get(row["trial"], (0, 0))
    rate = f"{row['base_lr']:.1e}" if "base_lr" in row else "–"
    deltas = [format_signed(row[name]) for name in ("general_delta", "domain_delta", "score")]
    dial = "–" if row.get("dial") is None else f"{row['dial']:.2f}"
    turned = dial, format_signed(row.get("plain_score"))
    return [row["trial"], str(row["k"]), rate, f"{done}/{of}" if of else "–", *deltas, *turned, row["state"]]


def format_signed(value: float | None) -> str:
    """A percentage with its sign, or a dash where there is none yet."""
    return "–" if value is None else f"{value:+.2f}"
