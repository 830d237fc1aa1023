"""Losses and their gradient with logits whole, piece by piece, and by torch's linear_cross_entropy.

python benchmarks/head.py                              # a frozen head in SmolLM2's shapes, 256 tokens
python benchmarks/head.py --shapes qwen3-8b --tokens 4096 --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rivals import in_turn, prepare_torch, table
from shapes import SHAPES
from torch import nn

from adept_ray.method.head import CPU_LOGITS, GPU_LOGITS, count_rows, measure_losses, replace_logits

Losses = Callable[[torch.Tensor], torch.Tensor]


def take_gradient(
    losses: Losses, stream: torch.Tensor, factors: torch.Tensor
) -> Callable[[], list[torch.Tensor]]:
    """Computes the losses of `stream`, and the gradient in it of their sum, weighted with `factors`."""

    def run() -> list[torch.Tensor]:
        leaf = stream.detach().requires_grad_()
        found = losses(leaf)
        (found * factors).sum().backward()
        assert leaf.grad is not None
        if stream.device.type == "cuda":
            torch.cuda.synchronize()
        return [found.detach().float(), leaf.grad.float()]

    return run


def take_losses(losses: Losses, stream: torch.Tensor) -> Callable[[], list[torch.Tensor]]:
    """Computes the losses alone."""

    def run() -> list[torch.Tensor]:
        with torch.inference_mode():
            found = [losses(stream).float()]
        if stream.device.type == "cuda":
            torch.cuda.synchronize()
        return found

    return run


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--shapes", choices=sorted(SHAPES), default="smollm2-135m")
    flags.add_argument("--tokens", type=int, default=256)
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--repeats", type=int, default=5)
    args = flags.parse_args()
    prepare_torch(args.threads)
    width, vocabulary = SHAPES[args.shapes]["hidden_size"], SHAPES[args.shapes]["vocab_size"]
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(args.device):
        head = nn.Linear(width, vocabulary, bias=False).to(dtype).requires_grad_(False)
        stream = torch.randn(args.tokens, width).to(dtype)
        wanted, factors = torch.randint(0, vocabulary, (args.tokens,)), torch.rand(args.tokens)
    rows = count_rows(head.weight.T, CPU_LOGITS, GPU_LOGITS)
    pieces = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=min(rows, args.tokens), chunking_method=None, acc_policy="accurate"
    )

    def ours(stream: torch.Tensor) -> torch.Tensor:
        with replace_logits(head, wanted[None]):
            return head(stream[None])[0]

    def theirs(stream: torch.Tensor) -> torch.Tensor:
        return F.linear_cross_entropy(stream, head.weight, wanted, reduction="none", options=pieces)

    rivals: dict[str, Losses] = {
        "logits whole": lambda stream: measure_losses(head(stream), wanted),
        "piece by piece": ours,
        "torch's, pieces of the same size": theirs,
    }
    for what, make in (
        ("losses and gradient", lambda each: take_gradient(each, stream, factors)),
        ("losses", lambda each: take_losses(each, stream)),
    ):
        timed = in_turn({name: make(each) for name, each in rivals.items()}, args.repeats)
        table(timed, "logits whole")
        exact = timed["logits whole"].result
        for name, times in timed.items():
            apart = (float((a - b).abs().max()) for a, b in zip(times.result, exact, strict=True))
            print(f"{what}, {name}: at most {' and '.join(f'{each:.1e}' for each in apart)} apart")


if __name__ == "__main__":
    main()
