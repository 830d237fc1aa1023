"""A search against the same trials each run alone from scratch: wall clock and winner.

python benchmarks/search.py                # the default search, then every trial of it alone: about an hour
python benchmarks/search.py --alone 3      # only the first three alone; the others are counted at their mean

Alone means: a Ray of its own, token blocks and stage 1 made anew, trained to the end. Fetched assets are
shared, since both have to fetch them once; the look at the test splits and the export are left out on
both sides.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from rivals import prepare_torch

from adept_ray.config.places import default_cache
from adept_ray.config.specs import TrainingSpec
from adept_ray.search.choice import choose_k
from adept_ray.search.trials import UNTOUCHED, Trial

ROOT = Path(__file__).parent.parent
ASSETS = ("assets", "backbones", "corpora", "wheels")


def timed_search(folder: Path, name: str, cache: Path, *flags: str) -> tuple[float, list[dict[str, str]]]:
    """Run tune_k.py; returns its wall clock without the last stage, seconds, and its trials.csv."""
    command = [sys.executable, str(ROOT / "scripts" / "tune_k.py"), "--name", name, *flags]
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=folder, env=os.environ | {"ADEPT_RAY_CACHE": str(cache)})
    wall = time.perf_counter() - started
    run = json.loads((folder / "results" / name / "run.json").read_text())
    with (folder / "results" / name / "trials.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["state"] != UNTOUCHED]
    return wall - run["seconds"]["test"], rows


def fresh_cache(folder: Path, name: str) -> Path:
    """A cache that holds the fetched assets and nothing else."""
    for part in ASSETS:
        if (default_cache() / part).exists():
            shutil.copytree(default_cache() / part, folder / name / part)
    return folder / name


def read_trial(row: dict[str, str]) -> Trial:
    """What a choice asks of a row of trials.csv."""
    score, error = float(row["score"]), float(row["score_se"])
    return Trial(row["trial"], int(row["k"]), state=row["state"], score=score, score_se=error)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--alone", type=int, help="how many of the trials to run alone; default: all")
    flags.add_argument("--folder", type=Path, help="where to work and keep the results folders")
    flags.add_argument("tune_k", nargs="*", help="flags for tune_k.py, after --")
    args = flags.parse_args()
    prepare_torch(2)
    with tempfile.TemporaryDirectory() as made:
        folder = (args.folder or Path(made)).resolve()
        together, rows = timed_search(folder, "together", fresh_cache(folder, "cache"), *args.tune_k)
        print(f"together: {together:.0f} s", flush=True)
        alone, found = [], []
        for row in rows[: args.alone]:
            searched = [name for name in row if name in TrainingSpec.model_fields and name != "tokens"]
            values = {name: {"fixed": yaml.safe_load(row[name])} for name in searched}
            (folder / "one.yaml").write_text(yaml.safe_dump({"parameters": values}))
            cache = fresh_cache(folder, row["trial"])
            one = ("--search-space", "one.yaml", "--trials", "1", *args.tune_k)
            seconds, (same,) = timed_search(folder, f"alone-{row['trial']}", cache, *one)
            shutil.rmtree(cache)
            alone.append(seconds)
            found.append({**same, "trial": row["trial"]})
            print(f"{row['trial']} alone: {seconds:.0f} s, score {same['score']}", flush=True)
            if row["state"] == "finished":
                assert same["score"] == row["score"], "the same trial must give the same score"
    total = sum(alone) + statistics.mean(alone) * (len(rows) - len(alone))
    print(f"\n{'together':24}{together:8.0f} s")
    print(f"{'each alone':24}{total:8.0f} s  ({len(alone)} of {len(rows)} measured)")
    print(f"{'ratio':24}{total / together:8.2f}")
    print(f"winner together: {choose_k([read_trial(row) for row in rows]).trial}", end="")
    if len(alone) == len(rows):
        print(f", alone: {choose_k([read_trial(row) for row in found]).trial}")


if __name__ == "__main__":
    main()
