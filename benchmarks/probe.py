"""The probe, exact and raced, against L+1 whole passes.

python benchmarks/probe.py                      # SmolLM2-135M, 4,096 BoolQ tokens, two threads
python benchmarks/probe.py --tokens 8192 --repeats 3
"""

from __future__ import annotations

import argparse

import torch
from rivals import boolq, in_turn, prepare_torch, smollm2, table
from torch import nn

from adept_ray.method.anatomy import layers_of
from adept_ray.method.importance import limit_sequences
from adept_ray.method.race import RaceRules, rank_layers


class Skipped(nn.Module):
    """Identity on the residual stream."""

    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden_states


def whole_passes(model: nn.Module, ids: torch.Tensor, micro_batch: int) -> list[float]:
    """The plain way: transformers' own loss of the whole model, then without each of its layers."""
    layers = layers_of(model)

    def loss() -> float:
        means = [(len(piece), float(model(piece, labels=piece).loss)) for piece in ids.split(micro_batch)]
        return sum(sequences * mean for sequences, mean in means) / len(ids)

    with torch.inference_mode():
        base, without = loss(), []
        for number, layer in enumerate(layers):
            layers[number] = Skipped()
            without.append(loss() - base)
            layers[number] = layer
    return without


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--tokens", type=int, default=4096)
    flags.add_argument("--seq-len", type=int, default=128)
    flags.add_argument("--k-max", type=int, default=8)
    flags.add_argument("--micro-batch", type=int, default=8)
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--repeats", type=int, default=2)
    args = flags.parse_args()
    prepare_torch(args.threads)
    model, ids = smollm2().eval(), boolq(args.tokens, args.seq_len)
    most = limit_sequences(model, args.seq_len)
    print(f"{len(ids)} sequences of {args.seq_len}; within its memory the probe may take {most} at once")

    def ranked(raced: bool):
        rules = RaceRules(raced, micro_batch=min(most, args.micro_batch))
        return rank_layers(model, {"input_ids": ids}, args.k_max, rules)

    rivals = {
        "L+1 whole passes": lambda: whole_passes(model, ids, args.micro_batch),
        "exhaustive": lambda: ranked(False),
        "raced": lambda: ranked(True),
    }
    timed = in_turn(rivals, args.repeats)
    table(timed, "L+1 whole passes")
    plain, exact, raced = (times.result for times in timed.values())
    worst = max(abs(a - b) for a, b in zip(plain, exact.importance.mean, strict=True))
    print(f"\nlargest difference of a mean, exhaustive against whole passes: {worst:.1e} nats per token")
    assert worst < 1e-5
    print(f"order, exhaustive: {' '.join(map(str, exact.importance.order))}")
    print(f"order, raced:      {' '.join(map(str, raced.importance.order))}")
    print(f"settled k: exhaustive {exact.settled}, raced {raced.settled}; ties, raced: {raced.ties}")
    print(f"sequences a layer, raced: {' '.join(map(str, raced.sequences))}")
    for k in raced.settled:
        assert set(raced.importance.order[:k]) == set(exact.importance.order[:k]), k
    print("S_k of every settled k is the exhaustive one")


if __name__ == "__main__":
    main()
