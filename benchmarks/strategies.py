"""Growing one model against independent trials: score against k, what it costs, the k that each chooses.

python benchmarks/strategies.py                      # SmolLM2-135M, k = 1, 2, 4, 6, 8, some ten minutes
python benchmarks/strategies.py --grow-tokens 15360  # grow on more text than a trial has

Both take the same layers at the same rate and are scored on the same validation blocks; no trial is stopped
early.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas
import yaml

from adept_ray.search.choice import UNTOUCHED

ROOT = Path(__file__).parent.parent


def space_of(depths: list[int], rate: float) -> dict[str, Any]:
    """A search space in which k alone varies; each depth is tried once."""
    fixed = {"base_lr": rate, "recompute_every": 16}
    return {
        "parameters": {"k": {"choice": depths}, **{name: {"fixed": value} for name, value in fixed.items()}},
        "first": [{"k": k, **fixed} for k in depths],
        "judge_after": len(depths) + 1,
    }


def searched(folder: Path, strategy: str, tokens: int, *flags: str) -> tuple[list[dict[str, str]], int]:
    """Run tune_k.py; returns the rows of its trials.csv and the k that it chose."""
    command = [sys.executable, str(ROOT / "scripts" / "tune_k.py"), "--search-space", "space.yaml", *flags]
    command += ["--name", strategy, "--strategy", strategy, "--tokens-per-trial", str(tokens)]
    subprocess.run(command, check=True, cwd=folder, env=os.environ)
    with (folder / "results" / strategy / "trials.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["state"] != UNTOUCHED]
    best = yaml.safe_load((folder / "results" / strategy / "best.yaml").read_text())
    return rows, best["choice"]["k"]


def curve(rows: list[dict[str, str]], name: str) -> pandas.DataFrame:
    """Score and tokens of each k, under columns of the strategy's name."""
    found = {int(row["k"]): row for row in rows if row["state"] == "finished"}
    return pandas.DataFrame(
        {
            f"{name} score": {
                k: f"{float(r['score']):+.2f} ± {float(r['score_se']):.2f}" for k, r in found.items()
            },
            f"{name} domain Δ": {k: f"{float(r['domain_delta']):+.2f}" for k, r in found.items()},
            f"{name} tokens": {k: r["tokens"] for k, r in found.items()},
            f"{name} s": {k: f"{float(r['seconds']):.0f}" for k, r in found.items()},
        }
    )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4, 6, 8])
    flags.add_argument("--rate", type=float, default=3e-3)
    flags.add_argument("--tokens", type=int, default=6144, help="of each trial")
    flags.add_argument("--grow-tokens", type=int, help="of the whole growth; default: those of a trial")
    flags.add_argument("--folder", type=Path, help="where to work and keep the results folders")
    flags.add_argument("tune_k", nargs="*", help="flags for tune_k.py, after --")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = (args.folder or Path(made)).resolve()
        folder.mkdir(exist_ok=True)
        (folder / "space.yaml").write_text(yaml.safe_dump(space_of(args.depths, args.rate)))
        more = ("--trials", str(len(args.depths)), *args.tune_k)
        trials, chosen = searched(folder, "trials", args.tokens, *more)
        grown, grown_to = searched(folder, "grow", args.grow_tokens or args.tokens, *args.tune_k)
    both = pandas.concat([curve(trials, "trials"), curve(grown, "grow")], axis=1)
    print(both.sort_index().to_string(na_rep=""))
    print(f"tokens in all: trials {sum(int(row['tokens']) for row in trials)}, grow {grown[-1]['tokens']}")
    print(f"chosen: trials k = {chosen}, grow k = {grown_to}")


if __name__ == "__main__":
    main()
