"""What a trial costs that trains nothing, against importing the libraries and against a trainer a trial.

python benchmarks/trial.py
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rivals import Timed, prepare_torch, table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from common import save_tiny_backbone, write_corpus  # noqa: E402

SPACE = "parameters: {k: {int: [1, 3]}, base_lr: {log: [0.001, 0.002]}}\njudge_after: 100\n"
SIZES = {
    "seq-len": 32,
    "probe-tokens": 64,
    "remeasure-tokens": 64,
    "validation-tokens": 64,
    "test-tokens": 64,
}


ROWS = (
    "import torch, transformers",
    "trainer a trial",
    "ours, the crew starting and a trial",
    "ours, each further trial",
)


def imports() -> float:
    """The yardstick, seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, transformers"], check=True)
    return time.perf_counter() - started


def nothing(config: dict[str, Any]) -> None:
    """A training that does nothing but say so."""
    import ray.train

    ray.train.report({"score": 0.0})


def trainer_a_trial(config: dict[str, Any]) -> None:
    """The pattern of Ray's guides: every trial starts a TorchTrainer with workers of its own."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        nothing,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=f"trial-{os.getpid()}-{time.time()}",
            storage_path=config["at"],
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # it is one to Ray Train
        ),
    ).fit()


def guides(trials: int) -> float:
    """Seconds a trial when each starts its own trainer; Ray itself is already up."""
    import ray
    from ray import tune

    ray.init(address="local", num_cpus=3, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        tune.Tuner(
            tune.with_resources(trainer_a_trial, {"CPU": 0.01}),
            param_space={"at": f"{folder}/train"},
            tune_config=tune.TuneConfig(
                num_samples=trials, max_concurrent_trials=1, metric="score", mode="max"
            ),
            run_config=tune.RunConfig(storage_path=f"{folder}/tune", verbose=0),
        ).fit()
        seconds = time.perf_counter() - started
    ray.shutdown()
    return seconds / trials


def search(folder: Path, trials: int) -> float:
    """Seconds of the search stage of tune_k.py with `trials` trials of one step on a tiny model."""
    name = f"{trials}-trials-{time.time():.0f}"
    flags = {"backbone": "backbone", "general": "general.jsonl", "domain": "domain.jsonl", **SIZES}
    flags |= {"search-space": "space.yaml", "trials": trials, "tokens-per-trial": 32, "name": name}
    command = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
    env = os.environ | {"ADEPT_RAY_CACHE": str(folder / "cache")}
    script = [sys.executable, str(ROOT / "scripts" / "tune_k.py"), *command]
    subprocess.run(script, check=True, cwd=folder, env=env, stdout=subprocess.DEVNULL)
    return json.loads((folder / "results" / name / "run.json").read_text())["seconds"]["search"]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--trials", type=int, default=21, help="of ours; more make the difference clearer")
    flags.add_argument("--guides", type=int, default=3, help="trials that start their own trainer")
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--repeats", type=int, default=2)
    args = flags.parse_args()
    prepare_torch(args.threads)
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_tiny_backbone(folder / "backbone")
        write_corpus(folder / "general.jsonl", seed=1)
        write_corpus(folder / "domain.jsonl", seed=2, domain="medical")
        (folder / "space.yaml").write_text(SPACE)
        search(folder, 1)  # token blocks and stage 1 are in the cache from here on
        rows: dict[str, list[float]] = {name: [] for name in ROWS}
        for turn in range(args.repeats):
            one, many = search(folder, 1), search(folder, args.trials)
            found = (imports(), guides(args.guides), one, (many - one) / (args.trials - 1))
            for name, seconds in zip(ROWS, found, strict=True):
                rows[name].append(seconds)
                print(f"  round {turn + 1} of {args.repeats}, {name}: {seconds:.2f} s", flush=True)
    table({name: Timed(seconds, None) for name, seconds in rows.items()}, ROWS[0])


if __name__ == "__main__":
    main()
