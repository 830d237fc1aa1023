"""Does a branch read what a whole training of its length reads, and how far is that from a cosine schedule's?

python benchmarks/branches.py                          # SmolLM2-135M, medical, k = 4, up to 6,144 tokens
python benchmarks/branches.py --tokens 98304 --branches 5 --seeds 0 1 2 --k 4 8 --decay 0.15

For each seed and k: branches of one plateau at lengths that double, and of each length a whole training by
wsd and one by cosine. All are read on the validation splits. Their rows are added to results/branches.jsonl.
On a CPU a branch and its whole training are to have the same score to the last bit. Seeds say how much a
difference to cosine is worth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas
import torch
from rivals import prepare_torch

from adept_ray.config.machine import Machine
from adept_ray.config.schedules import count_trial_steps, fix_warmup, list_lengths
from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.data.blocks import Blocks
from adept_ray.method.placement import resolve_layers
from adept_ray.run.context import open_context, open_session
from adept_ray.run.examination import plan_refusal
from adept_ray.run.load import describe_load
from adept_ray.run.preparing import prepare
from adept_ray.run.sources import Needs, count_train_tokens, find_sources
from adept_ray.run.training import build_work, plan_fit
from adept_ray.storage.checkpoints import save_checkpoint
from adept_ray.training.callbacks import FROM_BACKBONE, Callbacks, ResumePoint
from adept_ray.training.stage2 import train
from adept_ray.training.work import TrainWork

ROWS = Path(__file__).parent / "results" / "branches.jsonl"
READ = ("score", "score_se", "general_delta", "domain_delta", "dial", "plain_score", "loss")
Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """What is trained on which text: by wsd, with as many reports as there are branches."""

    work: TrainWork
    blocks: Mapping[str, Blocks]

    def change(self, **changes: object) -> Trial:
        """The same with another training."""
        training = apply_changes(self.work.training, changes)
        return replace(self, work=replace(self.work, training=training))


def prepare_trial(run: RunSpec, training: TrainingSpec) -> Trial:
    """Blocks, stage 1 and the placed layers of a trial, as a search makes them ready."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(apply_changes(run, {"storage": folder, "name": "branches"}))
        sources = find_sources(session, train_tokens=count_train_tokens(training.tokens, False))
        load = describe_load(run, sources, [training])
        with open_context(session, load, plan_refusal(session, sources)) as context:
            fit = plan_fit(context, sources, training)
            prepared = prepare(context, sources, Needs(training.k, training.tokens, fit=fit))
    layers = resolve_layers(prepared.layer_importance, training, run.seed)
    return Trial(build_work(run, prepared, training, layers, ScoreWeights()), prepared.blocks)


def read_end(trial: Trial, folder: str, start: ResumePoint = FROM_BACKBONE) -> tuple[Row, ResumePoint]:
    """Train to the end; returns what is read there, and where a longer training may go on."""
    heard: list[Row] = []
    places: list[str] = []
    callbacks = Callbacks(
        lambda metrics, _: heard.append(metrics),
        keep_plateau=lambda kept: places.append(save_checkpoint(kept, folder)) if kept else None,
    )
    began = time.perf_counter()
    train(trial.work, trial.blocks, torch.device("cpu"), callbacks, start)
    row = {name: heard[-1][name] for name in READ} | {"seconds": round(time.perf_counter() - began, 1)}
    return row, ResumePoint(Path(places[-1])) if places else FROM_BACKBONE


def read_lengths(trial: Trial) -> Iterator[Row]:
    """A row for each length: as a branch of one plateau, as a whole training, and by cosine."""
    training = fix_warmup(trial.work.training)
    start = FROM_BACKBONE
    with tempfile.TemporaryDirectory() as folder:
        for tokens in list_lengths(training):
            alone = {"tokens": tokens, "reports": 1}
            by_wsd = trial.change(**alone, warmup_tokens=training.warmup_tokens)
            row, start = read_end(by_wsd, f"{folder}/plateau", start)
            yield {"how": "branch", "tokens": tokens, **row}
            yield {"how": "whole", "tokens": tokens, **read_end(by_wsd, f"{folder}/whole")[0]}
            by_cosine = trial.change(**alone, schedule="cosine")
            yield {"how": "cosine", "tokens": tokens, **read_end(by_cosine, folder)[0]}


def keep_row(row: Row, rows: Path) -> Row:
    """Add a row to the results."""
    with rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{row['how']:>7} {row['tokens']:>9,} tokens: {row['score']:+.4f}, {row['seconds']} s", flush=True)
    return row


def print_table(rows: list[Row]) -> None:
    """Scores by seed, k and length, and how far a branch is from the others."""
    at = ["k", "seed", "tokens"]
    table = pandas.DataFrame(rows).pivot(index=at, columns="how", values="score")
    table["branch - whole"] = table["branch"] - table["whole"]
    table["branch - cosine"] = table["branch"] - table["cosine"]
    print(f"\n{table.to_string(float_format=lambda value: f'{value:+.4f}')}")
    spread = table.groupby(["k", "tokens"])[["branch", "cosine", "branch - cosine"]].agg(["mean", "std"])
    print(f"\nover seeds:\n{spread.to_string(float_format=lambda value: f'{value:+.3f}')}")


def read_flags() -> argparse.Namespace:
    """The command line."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--backbone", default="smollm2-135m")
    flags.add_argument("--general", default="boolq")
    flags.add_argument("--domain", default="medical")
    flags.add_argument("--tokens", type=int, default=6144, help="of the longest training")
    flags.add_argument("--branches", type=int, default=3)
    flags.add_argument("--decay", type=float, default=0.15)
    flags.add_argument("--k", type=int, nargs="+", default=[4])
    flags.add_argument("--rate", type=float, default=3e-3)
    flags.add_argument("--seeds", type=int, nargs="+", default=[0])
    flags.add_argument("--validation-tokens", type=int, default=1536)
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--rows", type=Path, default=ROWS, help="file to which rows are added")
    return flags.parse_args()


def main() -> None:
    args = read_flags()
    rows = []
    for seed in args.seeds:
        run = RunSpec(
            backbone=args.backbone,
            general=args.general,
            domain=args.domain,
            validation_tokens=args.validation_tokens,
            seed=seed,
            machine=Machine(dashboard=False),
        )
        sizes = {"tokens": args.tokens, "reports": args.branches}
        for k in args.k:
            training = TrainingSpec(k=k, base_lr=args.rate, schedule="wsd", decay=args.decay, **sizes)
            trial = prepare_trial(run, training)
            prepare_torch(args.threads)
            steps = count_trial_steps(training, run.seq_len)
            print(f"seed {seed}, k = {k}: {steps} steps in branches of {trial.work.steps}", flush=True)
            about = {"backbone": args.backbone, "domain": args.domain, "seed": seed, "k": k}
            about |= {"rate": args.rate, "decay": args.decay, "longest": args.tokens}
            rows += [keep_row(about | row, args.rows) for row in read_lengths(trial)]
    print_table(rows)


if __name__ == "__main__":
    main()
