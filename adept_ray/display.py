"""What a person sees in the terminal: stages with their progress, a live table of trials."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

if TYPE_CHECKING:
    from adept_ray.config import RunSpec
    from adept_ray.plan import Plan
    from adept_ray.sharding import Fit

Update = Callable[[int, int], None]
COLUMNS = ("trial", "k", "rate", "step", "general Δ", "domain Δ", "score", "state")


class Display:
    """Writes to the terminal; to a file or a pipe it writes a line per event instead of live pictures."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.seconds: dict[str, float] = {}
        """Wall clock of each stage so far."""
        self._started = time.monotonic()

    def total(self) -> float:
        """Seconds since the command began."""
        return round(time.monotonic() - self._started, 1)

    def say(self, text: str) -> None:
        """One line (or more)."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[Update]:
        """Show that a stage runs; yields a function that takes (done, of)."""
        started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
        if not self.console.is_terminal:
            self.say(f"{what} …")
            bar.disable = True
        task = bar.add_task(what, total=None)
        try:
            with bar:
                yield lambda done, of: bar.update(task, completed=done, total=of)
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 1)
        self.say(f"{what}: {self.seconds[name]:.1f} s")

    def plan(self, needs: Plan, run: RunSpec, fit: Fit, memory: int, what: str) -> None:
        """What a training takes of a worker of `memory` bytes."""
        share = run.workers if fit.sharded else 1
        parts = {
            "weights": needs.weights // share,
            "gradients": needs.gradients // share,
            "optimizer": needs.optimizer // share,
            "activations" + (", computed again" if fit.recompute else ""): needs.casts
            + needs.activations(run.micro_batch, fit),
        }
        if fit.sharded:
            parts["layers put together"] = needs.gathered
        sizes = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        total = needs.memory(run.micro_batch, fit, run.workers) / 2**30
        self.say(
            f"{what}: {needs.parameters / 1e6:.1f} M parameters, {needs.added / 1e6:.1f} M added, "
            f"{needs.trained / 1e6:.1f} M ({needs.share:.1%}) trained, "
            f"{needs.flops / 1e9:.2f} GFLOP a token\n"
            f"  a worker: {sizes}: {total:.2f} of {memory / 2**30:.1f} GiB"
        )

    def importance(self, importance: Mapping[str, Any]) -> None:
        """The importance of every layer as a table with bars, least important first."""
        rows = {row["layer"]: row for row in importance["layers"]}
        most = max(row["mean"] for row in rows.values())
        table = Table("layer", "nats per token", "", box=None, header_style="bold")
        for layer in importance["order"]:
            mean, error = rows[layer]["mean"], rows[layer]["standard_error"]
            # A square root keeps the small ones apart beside a first layer that is fifty times as large.
            bar = "█" * round(40 * math.sqrt(max(mean, 0) / most)) if most > 0 else ""
            table.add_row(str(layer), f"{mean:.4f} ± {error:.4f}", bar)
        self.console.print(table)
        for group in importance["ties"]:
            names = " ".join(map(str, group))
            self.say(f"not told apart at {importance['confidence']:.0%} confidence: {names}")
        self.say(f"loss of the whole model: {importance['base_loss']:.4f} nats per token")

    def training(self, row: Mapping[str, Any]) -> None:
        """A line about a training of a comparison that ended."""
        rate = f"  rate {row['base_lr']:.3g}" if row["base_lr"] else ""
        deltas = [signed(row[name]) for name in ("general_delta", "domain_delta", "score")]
        end = f"failed: {row['error']}" if row["error"] else "general {}  domain {}  score {}".format(*deltas)
        self.say(f"{row['method']}{rate}  seed {row['seed']} ({row['phase']})  {end}")

    def comparison(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The methods of a comparison with their means and intervals, best first."""
        numbers = ("score", "general_delta", "domain_delta", "against_adept")
        table = Table(Column("method", overflow="fold"), box=None)
        for name in ("score", "general Δ", "domain Δ", "score − adept"):
            table.add_column(name, no_wrap=True)
        for row in sorted(
            rows, key=lambda row: -math.inf if row["score"] is None else row["score"], reverse=True
        ):
            halves = [row[f"{name}_ci"] for name in numbers]
            texts = [
                signed(row[n]) + (f" ± {h:.2f}" if h is not None else "")
                for n, h in zip(numbers, halves, strict=True)
            ]
            table.add_row(row["method"], *texts)
        self.console.print(table)

    def overlaps(self, models: Mapping[str, Sequence[Mapping[str, Any]]], layers: Sequence[int]) -> None:
        """How far the densities of both kinds of text overlap: mean over layers, and at the chosen ones."""
        table = Table("model", "mean overlap", *(f"layer {layer}" for layer in layers), box=None)
        for name, rows in models.items():
            mean = sum(row["overlap"] for row in rows) / len(rows)
            chosen = [[row["overlap"] for row in rows if row["layer"] == layer] for layer in layers]
            table.add_row(name, f"{mean:.3f}", *(" → ".join(f"{o:.3f}" for o in each) for each in chosen))
        self.console.print(table)

    def accuracies(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Accuracy of each benchmark task beside that of guessing."""
        table = Table("task", "items", "accuracy %", "chance %", box=None)
        for row in rows:
            error = row["standard_error"]
            accuracy = f"{100 * row['accuracy']:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")
            chance = "–" if row["chance"] is None else f"{100 * row['chance']:.1f}"
            table.add_row(row["task"], str(row["items"]), accuracy, chance)
        self.console.print(table)

    @contextmanager
    def trials(
        self, total: int
    ) -> Iterator[Callable[[Mapping[str, tuple[int, int]], Sequence[Mapping[str, Any]]], None]]:
        """A live table; yields a function that takes the progress of each trial and the trials' rows."""
        started, told = time.monotonic(), set()
        live = Live(console=self.console, auto_refresh=False, transient=False)

        def show(progress: Mapping[str, tuple[int, int]], rows: Sequence[Mapping[str, Any]]) -> None:
            over = [row for row in rows if row["state"] != "running"]
            clock = f"search: {len(over)} of {total} trials over, {time.monotonic() - started:.0f} s"
            if self.console.is_terminal:
                live.update(Group(trials_table(rows, progress), clock), refresh=True)
                return
            for row in over:
                if row["trial"] not in told:
                    told.add(row["trial"])
                    self.say(
                        "  ".join(f"{n} {v}" for n, v in zip(COLUMNS, cells(row, progress), strict=True))
                    )

        if not self.console.is_terminal:
            yield show
            return
        with live:
            yield show


def trials_table(rows: Sequence[Mapping[str, Any]], progress: Mapping[str, tuple[int, int]]) -> Table:
    """The trials so far as a table."""
    table = Table(box=None, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("trial", "state") else "right")
    best = max((row["score"] for row in rows if row["state"] == "finished"), default=None)
    for row in rows:
        leads = best is not None and row["score"] == best and row["state"] == "finished"
        table.add_row(
            *cells(row, progress), style="green" if leads else "dim" if row["state"] == "stopped" else ""
        )
    return table


def cells(row: Mapping[str, Any], progress: Mapping[str, tuple[int, int]]) -> list[str]:
    """A trial's row as short texts, in the order of COLUMNS."""
    done, of = progress.get(row["trial"], (0, 0))
    rate = f"{row['base_lr']:.1e}" if "base_lr" in row else "–"
    deltas = [signed(row[name]) for name in ("general_delta", "domain_delta", "score")]
    return [row["trial"], str(row["k"]), rate, f"{done}/{of}" if of else "–", *deltas, row["state"]]


def signed(value: float | None) -> str:
    """A percentage with its sign, or a dash where there is none yet."""
    return "–" if value is None else f"{value:+.2f}"
