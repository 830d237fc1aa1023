"""How much the choice of layers depends on the length of the probe.

python benchmarks/sensitivity.py                # SmolLM2-135M, BoolQ, 256 to 16,384 tokens, two threads

One measurement of the longest probe serves all lengths: a shorter probe is its beginning, and the agreement
of two probes of a length is that of its pieces. How much the score depends on the layers chosen, and on how
often units are measured again, is for scripts/compare.py to say (see README.md here).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator

import pandas
import torch
from rich.progress import Progress
from rivals import prepare_torch
from scipy.stats import kendalltau

from adept_ray.config.machine import Machine
from adept_ray.config.specs import RunSpec
from adept_ray.config.validation import apply_changes
from adept_ray.data.blocks import Blocks, make_micro_batches
from adept_ray.data.loading import Backbone, load_model
from adept_ray.method.importance import measure_bypass_losses
from adept_ray.run.block_sets import build_block_sets, plan_packing
from adept_ray.run.context import open_context, open_session
from adept_ray.run.examination import plan_refusal
from adept_ray.run.load import describe_measuring
from adept_ray.run.sources import find_sources

SHORTEST = 256


def probe_blocks(run: RunSpec) -> tuple[Backbone, Blocks]:
    """The backbone, and the run's own probe split."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(apply_changes(run, {"storage": folder, "name": "sensitivity"}))
        sources = find_sources(session, with_domain=False)
        load = describe_measuring(run, run.probe_tokens)
        with open_context(session, load, plan_refusal(session, sources), trains=False) as context:
            sets = build_block_sets(context, plan_packing(run, sources), lambda *_: None)
    return sources.backbone, sets["general"].load_spread("probe", run.probe_tokens, run.seq_len)


def increases(backbone: Backbone, blocks: Blocks, micro_batch: int) -> torch.Tensor:
    """Loss increase without each layer on each sequence, nats, [layers, sequences]."""
    model, device = load_model(backbone), torch.device("cpu")
    layers = range(model.config.num_hidden_layers)
    found = []
    with Progress() as bar:
        task = bar.add_task("bypassing every layer", total=len(blocks))
        for batch in make_micro_batches(blocks, range(len(blocks)), micro_batch, device):
            found.append(measure_bypass_losses(model, batch, layers)[2])
            bar.update(task, advance=found[-1].shape[1])
    return torch.cat(found, 1)


def order(nats: torch.Tensor) -> list[int]:
    """Layers, least important first."""
    return nats.mean(1).argsort(stable=True).tolist()


def pieces(nats: torch.Tensor, sequences: int) -> Iterator[torch.Tensor]:
    """Disjoint probes of that length."""
    return (piece for piece in nats.split(sequences, 1) if piece.shape[1] == sequences)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--backbone", default="smollm2-135m")
    flags.add_argument("--general", default="boolq")
    flags.add_argument("--tokens", type=int, default=16384)
    flags.add_argument("--seq-len", type=int, default=128)
    flags.add_argument("--k", type=int, default=4)
    flags.add_argument("--micro-batch", type=int, default=8)
    flags.add_argument("--threads", type=int, default=2)
    args = flags.parse_args()
    run = RunSpec(
        backbone=args.backbone,
        general=args.general,
        seq_len=args.seq_len,
        probe_tokens=args.tokens,
        machine=Machine(dashboard=False),
    )
    backbone, blocks = probe_blocks(run)
    prepare_torch(args.threads)
    nats = increases(backbone, blocks.take_first(args.tokens), args.micro_batch)
    longest = order(nats)
    rows, tokens = [], max(SHORTEST, args.seq_len)
    while tokens <= args.tokens:
        sequences = tokens // args.seq_len
        prefix = nats[:, :sequences]
        sets = [set(order(piece)[: args.k]) for piece in pieces(nats, sequences)]
        shared = [len(a & b) / args.k for a, b in itertools.combinations(sets, 2)]
        chosen = order(prefix)[: args.k]
        rows.append(
            {
                "tokens": tokens,
                f"S_{args.k}": " ".join(map(str, sorted(chosen))),
                "of the longest": f"{len(set(chosen) & set(longest[: args.k]))} of {args.k}",
                "Kendall τ": f"{kendalltau(prefix.mean(1), nats.mean(1)).statistic:.3f}",
                "two probes share": f"{100 * statistics.fmean(shared):.0f} %" if shared else "",
                "pairs": len(shared),
            }
        )
        tokens *= 2
    print(f"least important of {args.tokens} tokens: {' '.join(map(str, longest[:12]))}")
    print(pandas.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
