"""Stage 2, full-parameter training and the probe on GPUs, with random weights in a backbone's shapes.

python benchmarks/gpu.py                                             # Qwen3-8B, four copies, 4,096 tokens
python benchmarks/gpu.py --shapes qwen3-4b --layers 20 22 24 26 --sequences 2 --rivals adept full
torchrun --nproc-per-node 8 benchmarks/gpu.py --passes 1             # on eight cards
torchrun --nproc-per-node 8 benchmarks/gpu.py --sharding on          # which share the model out
python benchmarks/gpu.py --device cpu --shapes smollm2-135m --layers 12 14 17 18 --seq-len 128

Utilisation is the operations that a step needs (nothing that is computed twice, and of attention the half
that isn't masked) over those of a plain product of large matrices of the same type, measured in the same run.
A training is made ready, made to fit and stepped by the product itself, by its plan and the card's memory.
With several cards each of them has as many sequences a step as one has alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from shapes import SHAPES, config_of

from adept_ray.config.machine import Machine
from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.data.blocks import Blocks
from adept_ray.data.loading import Backbone, borrow, borrow_sharded, build_outline
from adept_ray.engine.memory import read_peak_memory, reset_peak_memory
from adept_ray.method.anatomy import layer_parameters
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.importance import measure_bypass_losses
from adept_ray.method.memory_plan import GIB, MemoryPlan, choose_fit, plan_memory
from adept_ray.method.ranks import rank, world_size
from adept_ray.training.learner import prepare_learner, take_step
from adept_ray.training.speed import time_reduction
from adept_ray.training.state import TrainState
from adept_ray.training.work import TrainWork

SPECS = {
    "adept": TrainingSpec(),
    "full": TrainingSpec(tunes="all", k=0),
    "lora": TrainingSpec(tunes="lora", k=0),
}


def timed(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of `run`, after one that doesn't count."""
    found = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def product_rate(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Operations per second of a product of two dense matrices of that type."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    many = 20 if device.type == "cuda" else 1

    def run() -> None:
        for _ in range(many):
            a @ b

    return many * 2 * side**3 / timed(run, device, repeats)


@contextmanager
def join_ranks(args: argparse.Namespace) -> Iterator[None]:
    """This process among those that torchrun has started, each on a card of its own; alone without it."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    backend = "gloo"
    if args.device.type == "cuda":
        args.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(args.device)
        backend = "nccl"
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def say(text: str) -> None:
    """Print a line, once for all ranks."""
    if rank() == 0:
        print(text, flush=True)


def find_fit(needs: MemoryPlan, name: str, args: argparse.Namespace) -> Fit:
    """How the product would make a training fit into this card; on a CPU memory is taken for endless."""
    on_gpu = args.device.type == "cuda"
    memory = torch.cuda.get_device_properties(args.device).total_memory if on_gpu else 2**60
    machine = Machine(
        micro_batch=args.sequences,
        workers=world_size(),
        gpus_per_worker=int(on_gpu),
        sharding=args.sharding,
        activation_checkpointing=args.recompute,
        compile="on" if args.compile else "off",
    )
    return choose_fit(needs, machine, memory, name)


def training(
    backbone: Backbone,
    spec: TrainingSpec,
    layers: Sequence[int],
    blocks: Blocks,
    fit: Fit,
    args: argparse.Namespace,
) -> tuple[Callable[[], object], Callable[[], object]]:
    """One step of the product's own loop on all `blocks`, and the copy of a checkpoint with its moments."""
    units = dict.fromkeys(layer_parameters(build_outline(backbone), layers), 1.0)
    sizes = {"seq_len": args.seq_len, "micro_batch": args.sequences, "seed": 0}
    work = TrainWork(backbone, spec, tuple(layers), units, {}, ScoreWeights(), **sizes, fit=fit)
    learner = prepare_learner(work, {"train": blocks}, args.device)
    tuning, optimizer = learner.tuning, learner.optimizer
    scales = tuning.compute_scales(tuning.importance, spec)
    state = TrainState(tuple(layers), tuning.added, importance=tuning.importance)
    return (
        lambda: take_step(learner, scales, 0, range(len(blocks))),
        lambda: state.take_files(tuning.model, optimizer),
    )


def describe_memory(needs: MemoryPlan, fit: Fit, args: argparse.Namespace) -> str:
    """The largest memory so far, what the allocator held for it, and what the plan said."""
    reserved = ""
    if args.device.type == "cuda":
        reserved = f", reserved {torch.cuda.max_memory_reserved(args.device) / GIB:.2f}"
    on_gpus = args.device.type == "cuda"
    planned = needs.count_memory(args.sequences, fit, world_size(), on_gpus) / GIB
    again = ", activations computed again" if fit.recompute else ""
    shared = ", shared out" if fit.sharded else ""
    return f"peak {read_peak_memory(args.device)} GiB{reserved}, planned {planned:.1f}{again}{shared}"


def describe_reduction(needs: MemoryPlan, args: argparse.Namespace) -> str:
    """How long the gradients of a step travel where nothing else goes on."""
    if world_size() == 1:
        return ""
    seconds = time_reduction(needs.trained, args.device)
    return f"   its gradients over {world_size()} ranks {4 * needs.trained / seconds / 1e9:.1f} GB/s"


def measure_rival(
    name: str, backbone: Backbone, blocks: Blocks, rate: float, args: argparse.Namespace
) -> Fit:
    """Measure a way to train, and say what was found; returns how it was made to fit."""
    spec = SPECS[name].model_copy(update={"k": len(args.layers)} if name == "adept" else {})
    layers = args.layers if spec.k else []
    needs = plan_memory(build_outline(backbone), spec, layers, args.seq_len)
    # Each token that one may attend to adds as many operations, and on average that is half of them.
    needed = plan_memory(build_outline(backbone), spec, layers, args.seq_len // 2).flops
    fit = find_fit(needs, name, args)
    reset_peak_memory(args.device)
    step, save = training(backbone, spec, layers, blocks, fit, args)
    speed = np.asarray(blocks.tokens).size / timed(step, args.device, args.repeats)
    say(
        f"{name:8} {speed:10,.0f} tokens/s   {speed * needed / 1e12:8.2f} TFLOP/s   "
        f"{speed * needed / rate / world_size():6.1%} of the product's rate   "
        f"{needs.trained / 1e6:8.1f} M trained   {describe_memory(needs, fit, args)}   "
        f"a checkpoint stops it for {timed(save, args.device, 1):.2f} s{describe_reduction(needs, args)}"
    )
    return fit


def measure_probe(backbone: Backbone, blocks: Blocks, fit: Fit, args: argparse.Namespace) -> None:
    """Measure a pass through the backbone and past its middle layer, on every rank the same."""
    model = (borrow_sharded if fit.sharded else borrow)(backbone, args.device)
    tokens = torch.from_numpy(np.asarray(blocks.tokens[: args.sequences], np.int64))
    batch, middle = {"input_ids": tokens.to(args.device)}, model.config.num_hidden_layers // 2
    seconds = timed(lambda: measure_bypass_losses(model, batch, [middle]), args.device, args.repeats)
    speed = world_size() * tokens.numel() / seconds
    say(f"probe    {speed:10,.0f} tokens/s through the model and past layer {middle}")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--shapes", choices=sorted(SHAPES), default="qwen3-8b")
    flags.add_argument("--layers", type=int, nargs="+", default=[26, 28, 29, 30])
    flags.add_argument("--seq-len", type=int, default=4096)
    flags.add_argument("--sequences", type=int, default=1, help="in a forward pass of a rank")
    flags.add_argument("--passes", type=int, default=4, help="forward passes of a step on each rank")
    switches = ("auto", "on", "off")
    flags.add_argument("--recompute", choices=switches, default="auto", help="as the product does")
    flags.add_argument("--sharding", choices=switches, default="auto", help="as the product does")
    flags.add_argument("--compile", action="store_true", help="layers by torch.compile")
    flags.add_argument("--rivals", nargs="+", choices=sorted(SPECS), default=["adept"])
    flags.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    flags.add_argument("--repeats", type=int, default=5)
    args = flags.parse_args()
    with join_ranks(args), tempfile.TemporaryDirectory() as folder:
        config = config_of(args.shapes)
        config.save_pretrained(folder)
        dtype = "bfloat16" if args.device.type == "cuda" else "float32"
        backbone = Backbone(args.shapes, folder, dtype=dtype, random=True)
        size = (args.sequences * args.passes * world_size(), args.seq_len)
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, size).astype(np.int32)
        blocks = Blocks(tokens, np.ones_like(tokens[:, 1:]), np.zeros(tokens.shape, bool))
        rate = product_rate(args.device, getattr(torch, dtype), args.repeats)
        say(
            f"product of {dtype} matrices: {rate / 1e12:.1f} TFLOP/s a rank; "
            f"{tokens.size:,} tokens a step on {world_size()} ranks"
        )
        fit = PLAIN
        for name in args.rivals:
            fit = measure_rival(name, backbone, blocks, rate, args)
        measure_probe(backbone, blocks, fit, args)


if __name__ == "__main__":
    main()
