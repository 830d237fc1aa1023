"""What a search of many trials keeps on disk while it runs, and in the end.

python benchmarks/storage.py                            # 50 trials on SmolLM2-135M, some ten minutes
python benchmarks/storage.py -- --pareto                # with whatever flags of tune_k.py

What a checkpoint weighs depends on k and not on tokens, so the trials train for three steps only.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_GB = 3.0
SIZES = {
    "tokens-per-trial": 768,
    "probe-tokens": 768,
    "remeasure-tokens": 512,
    "validation-tokens": 1024,
    "test-tokens": 1024,
}


def bytes_of(folder: Path) -> int:
    """Bytes of all files under `folder`; one that goes meanwhile counts nothing."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
        except FileNotFoundError:
            continue
    return total


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--trials", type=int, default=50)
    flags.add_argument("tune_k", nargs="*", help="flags for tune_k.py, after --")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as made:
        results = Path(made) / "results" / "many"
        sizes = [part for name, value in SIZES.items() for part in (f"--{name}", str(value))]
        script = [sys.executable, str(ROOT / "scripts" / "tune_k.py"), "--name", "many"]
        command = [*script, "--trials", str(args.trials), *sizes, *args.tune_k]
        peak = 0
        with subprocess.Popen(command, cwd=made) as search:
            while search.poll() is None:
                peak = max(peak, bytes_of(results))
                time.sleep(0.2)
        if search.returncode:
            sys.exit(search.returncode)
        with (results / "trials.csv").open() as file:
            depths = [int(row["k"]) for row in csv.DictReader(file) if row["k"] != "0"]
        model, end = bytes_of(results / "model"), bytes_of(results)
        tried = ", ".join(f"{k}: {depths.count(k)}" for k in sorted(set(depths)))
    print(f"trials of each k: {tried}")
    print(f"at most {peak / 1e9:.2f} GB, in the end {end / 1e9:.2f} GB, {model / 1e9:.2f} GB of it the model")
    print(f"{'under' if peak < LIMIT_GB * 1e9 else 'NOT under'} {LIMIT_GB:g} GB")


if __name__ == "__main__":
    main()
