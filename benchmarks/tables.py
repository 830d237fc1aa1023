"""The tables of README.md, from the trainings that scripts/compare.py ran.

python benchmarks/tables.py benchmarks/results/medical.csv
python benchmarks/tables.py benchmarks/results/*.csv --only adept adept-uniform adept:placement=random

Each file is the runs.csv of a comparison; several of the same settings and seeds are put together.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adept_ray.rivals.table import ComparedTraining, parse_runs, summarise_methods

COLUMNS = {
    "method": "method",
    "score": "score",
    "against_adept": "score − adept",
    "general_delta": "general Δ %",
    "domain_delta": "domain Δ %",
    "general_accuracy": "general tasks, % right",
    "base_lr": "rate",
    "trained_parameters": "trained, M",
    "training_seconds": "seconds",
    "peak_gib": "GiB",
}


def cell(row: Mapping[str, Any], name: str) -> str:
    """A number with half its 95 % interval, short."""
    value, half = row[name], row.get(f"{name}_ci")
    if value is None or value == "":
        return "–"
    if name == "general_accuracy":
        return f"{100 * value:.1f}" + (f" ± {100 * half:.1f}" if half is not None else "")
    if name == "trained_parameters":
        return f"{value / 1e6:.1f}"
    if name == "training_seconds":
        return f"{value:.0f}"
    if name == "peak_gib":
        return f"{value:.2f}"
    if name == "base_lr":
        return f"{value:.2g}" + (" (edge)" if row["rate_at_edge"] else "")
    if isinstance(value, float):
        return f"{value:+.2f}" + (f" ± {half:.2f}" if half is not None else "")
    return str(value)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows, best score first."""
    ranked = sorted(rows, key=lambda row: -row["score"])
    shown = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    lines = [[COLUMNS[name] for name in shown], ["---"] * len(shown)]
    lines += [[cell(row, name) for name in shown] for row in ranked]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def distinct(rows: Sequence[ComparedTraining]) -> list[ComparedTraining]:
    """Each training once; of one that several files hold, the first."""
    return list({row.key: row for row in reversed(rows)}.values())[::-1]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("runs", type=Path, nargs="+")
    flags.add_argument("--only", nargs="*", default=())
    args = flags.parse_args()
    rows = distinct([row for file in args.runs for row in parse_runs(file.read_text())])
    found = [row for row in summarise_methods(rows) if row["score"] is not None]
    print(markdown([row for row in found if not args.only or row["method"] in args.only]))
    seeds = sorted({row.seed for row in rows if row.phase == "test" and row.base_lr})
    tokens = sorted({row.tokens for row in rows if row.tokens})
    print(f"\n{len(rows)} trainings, seeds that count: {seeds}, tokens: {tokens}")


if __name__ == "__main__":
    main()
