"""One optimizer step of ADEPT against one of full-parameter training: FLOPs, seconds, peak memory.

python benchmarks/step.py                                        # SmolLM2-135M, layers of a default search
python benchmarks/step.py --device cuda --shapes qwen3-8b --layers 14 16 18 20    # random weights in bf16
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rivals import Timed, boolq, prepare_torch, smollm2, table
from shapes import SHAPES, config_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from adept_ray.method.anatomy import layer_parameters
from adept_ray.method.expansion import expand
from adept_ray.method.loss import next_token_nats
from adept_ray.method.rates import parameter_groups

GIB = 2**30


def adept(model: PreTrainedModel, layers: Sequence[int]) -> torch.optim.Optimizer:
    """Expand in place, as stage 2 does; only the copies are trained."""
    added = expand(model, layers)
    with torch.no_grad():  # a copy that has trained a while; in a fresh one most gradients are zero
        for name, parameter in layer_parameters(model, added).items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(std=1e-3)
    return torch.optim.AdamW(parameter_groups(model), lr=1e-4)


def full(model: PreTrainedModel, layers: Sequence[int]) -> torch.optim.Optimizer:
    """Every parameter of the backbone is trained."""
    model.requires_grad_(True)
    return torch.optim.AdamW(model.parameters(), lr=1e-6)


RIVALS = {"ADEPT": adept, "full-parameter": full}


def step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> Callable[[], float]:
    """One step on `ids`, with its loss."""

    def run() -> float:
        nats, tokens = next_token_nats(model, {"input_ids": ids})
        loss = nats.sum() / tokens.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return run


def flops(run: Callable[[], float]) -> int:
    """Floating-point operations of the matrix products and attention of a step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_memory(name: str, args: argparse.Namespace, ids: torch.Tensor) -> float:
    """Most memory of two steps, weights and optimizer included, GiB; on a CPU in a process of its own."""
    if args.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        two_steps(name, args, ids)
        return (torch.cuda.max_memory_allocated() - before) / GIB
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(resident, (name, args, ids))


def two_steps(name: str, args: argparse.Namespace, ids: torch.Tensor) -> None:
    """Build a rival and let it make two steps: the optimizer has its state in the second."""
    model = backbone(args)
    run = step(model, RIVALS[name](model, args.layers), ids)
    run()
    run()


def resident(name: str, args: argparse.Namespace, ids: torch.Tensor) -> float:
    """What this fresh process needs for two steps beyond its imports, GiB."""

    def status(what: str) -> int:
        return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) * 1024

    torch.set_num_threads(args.threads)
    before = status("VmRSS")
    two_steps(name, args, ids)
    return (status("VmHWM") - before) / GIB


def check(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer holds exactly what is trained, so nothing frozen can get a state of it."""
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == {p for p in model.parameters() if p.requires_grad}


def backbone(args: argparse.Namespace) -> PreTrainedModel:
    """The real backbone, or a random one of the shapes asked for."""
    if not args.shapes:
        return smollm2().to(args.device)
    config = config_of(args.shapes)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    return model


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--layers", type=int, nargs="+", default=[12, 14, 17, 18])
    flags.add_argument("--blocks", type=int, default=2, help="sequences a step")
    flags.add_argument("--seq-len", type=int, default=128)
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--shapes", choices=sorted(SHAPES))
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--steps", type=int, default=3, help="timed steps a round")
    args = flags.parse_args()
    prepare_torch(args.threads)
    if args.shapes:
        vocabulary = SHAPES[args.shapes]["vocab_size"]
        ids = torch.randint(0, vocabulary, (args.blocks, args.seq_len), device=args.device)
    else:
        ids = boolq(args.blocks * args.seq_len, args.seq_len).to(args.device)
    print(f"{ids.numel()} tokens a step, copies of layers {' '.join(map(str, args.layers))}")

    memory = {name: peak_memory(name, args, ids) for name in RIVALS}
    seconds: dict[str, list[float]] = {name: [] for name in RIVALS}
    counted = {}
    for turn in range(args.rounds):  # one at a time in memory, in turn
        for name, times in seconds.items():
            model = backbone(args)
            optimizer = RIVALS[name](model, args.layers)
            check(model, optimizer)
            run = step(model, optimizer, ids)
            counted[name] = flops(run)  # and the optimizer makes its state
            times += [timed(run) for _ in range(args.steps)]
            print(f"  round {turn + 1} of {args.rounds}, {name}: {times[-1]:.2f} s a step", flush=True)
            del model, optimizer, run
    table({name: Timed(times, None) for name, times in seconds.items()}, "full-parameter")
    speed_up = statistics.median(
        theirs / mine for mine, theirs in zip(seconds["ADEPT"], seconds["full-parameter"], strict=True)
    )
    by_flops = counted["full-parameter"] / counted["ADEPT"]
    for name in seconds:
        print(f"{name:16} {counted[name] / 1e9:10.1f} GFLOP a step, {memory[name]:6.2f} GiB at most")
    print(f"speed-up by FLOPs {by_flops:.2f}, measured {speed_up:.2f}: {speed_up / by_flops:.2f} of it")


def timed(run: Callable[[], float]) -> float:
    """Seconds of a step."""
    started = time.perf_counter()
    run()  # its loss is read, so a GPU has finished
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
