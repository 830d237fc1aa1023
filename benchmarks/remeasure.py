"""What measuring unit importance again costs, as a share of the training time.

python benchmarks/remeasure.py          # SmolLM2-135M, the layers of a default search, default settings
"""

from __future__ import annotations

import argparse

import torch
from rivals import adept, boolq, in_turn, prepare_torch, smollm2, step, table

from adept_ray.config.specs import RunSpec, TrainingSpec
from adept_ray.method.importance import unit_importance


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--layers", type=int, nargs="+", default=[12, 14, 17, 18])
    flags.add_argument("--every", type=int, default=TrainingSpec().recompute_every)
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--repeats", type=int, default=3)
    args = flags.parse_args()
    prepare_torch(args.threads)
    run = RunSpec()
    text = boolq(TrainingSpec().tokens_per_step + run.remeasure_tokens, run.seq_len)
    blocks = TrainingSpec().tokens_per_step // run.seq_len
    model = smollm2()
    one_step = step(model, adept(model, args.layers), text[:blocks])
    added = sorted({int(n.split(".")[2]) for n, p in model.named_parameters() if p.requires_grad})
    print(
        f"every {args.every} steps of {blocks * run.seq_len} tokens, {run.remeasure_tokens} tokens measured"
    )
    one_step()

    def steps() -> None:
        for _ in range(args.every):
            one_step()

    before = [p.clone() for p in model.parameters()]
    unit_importance(model, [{"input_ids": text[blocks:]}], added)
    pairs = zip(before, model.parameters(), strict=True)
    assert all(torch.equal(a, b) and b.grad is None for a, b in pairs)  # a measurement leaves no trace
    rivals = {
        f"{args.every} steps": steps,
        "one measurement": lambda: unit_importance(model, [{"input_ids": text[blocks:]}], added),
    }
    timed = in_turn(rivals, args.repeats)
    table(timed, f"{args.every} steps")
    training, measuring = (times.median for times in timed.values())
    print(f"\nmeasuring again takes {measuring / (training + measuring):.1%} of the training time")


if __name__ == "__main__":
    main()
