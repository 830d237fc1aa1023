"""Stage 2, full-parameter training and the probe on a GPU, with random weights in a backbone's shapes.

python benchmarks/gpu.py                                             # Qwen3-8B, four copies, 4,096 tokens
python benchmarks/gpu.py --shapes qwen3-4b --layers 20 22 24 26 --sequences 2 --rivals adept full
python benchmarks/gpu.py --device cpu --shapes smollm2-135m --layers 12 14 17 18 --seq-len 128

Utilisation is the operations that a step needs (nothing that is computed twice, and of attention the half
that isn't masked) over those of a plain product of large matrices of the same type, measured in the same run.
A training is made to fit as the product does it, by the plan and the card's memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from shapes import SHAPES, config_of
from transformers import AutoModelForCausalLM

from adept_ray.config.machine import Machine
from adept_ray.config.specs import TrainingSpec
from adept_ray.data.blocks import Blocks
from adept_ray.engine.memory import read_peak_memory, reset_peak_memory
from adept_ray.method.anatomy import layer_parameters
from adept_ray.method.fit import Fit
from adept_ray.method.importance import measure_bypass_losses
from adept_ray.method.memory_plan import GIB, MemoryPlan, choose_fit, plan_memory
from adept_ray.method.rates import parameter_groups, set_rates
from adept_ray.method.sharding import build_skeleton
from adept_ray.method.tuning import build_tuning
from adept_ray.training.learner import clip_gradients, compute_gradients
from adept_ray.training.state import TrainState

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


def random_model(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of random weights, made where it is used."""
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def find_fit(needs: MemoryPlan, name: str, args: argparse.Namespace) -> Fit:
    """How the product would make a training fit into this card; on a CPU memory is taken for endless."""
    on_gpu = args.device.type == "cuda"
    memory = torch.cuda.get_device_properties(args.device).total_memory if on_gpu else 2**60
    machine = Machine(
        micro_batch=args.sequences,
        gpus_per_worker=int(on_gpu),
        activation_checkpointing=args.recompute,
        compile="on" if args.compile else "off",
    )
    return choose_fit(needs, machine, memory, name)


def training(
    model: Any, spec: TrainingSpec, layers: Sequence[int], blocks: Blocks, fit: Fit, args: argparse.Namespace
) -> tuple[Callable[[], None], Callable[[], object]]:
    """One step of the product's own loop on all `blocks`, and the copy of a checkpoint with its moments."""
    units = dict.fromkeys(layer_parameters(model, layers), 1.0)
    tuning = build_tuning(model, spec, layers, units, seed=0)
    if fit.recompute:
        tuning.recompute_activations()
    if fit.compiled:
        tuning.compile_layers()
    parameters = list(tuning.parameters.values())
    optimizer = torch.optim.AdamW(parameter_groups(model), fused=args.device.type == "cuda")
    scales = tuning.compute_scales(tuning.importance, spec)

    def step() -> None:
        set_rates(optimizer, 1e-5, 1.0, scales)
        share = compute_gradients(model, parameters, blocks, range(len(blocks)), args.sequences, args.device)
        clip_gradients(parameters, 1.0, float(share), "a step")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    state = TrainState(tuple(layers), tuning.added, importance=tuning.importance)
    return step, lambda: state.take_files(model, optimizer)


def describe_memory(needs: MemoryPlan, fit: Fit, args: argparse.Namespace) -> str:
    """The largest memory so far, what the allocator held for it, and what the plan said."""
    reserved = ""
    if args.device.type == "cuda":
        reserved = f", reserved {torch.cuda.max_memory_reserved(args.device) / GIB:.2f}"
    planned = needs.count_memory(args.sequences, fit, on_gpus=args.device.type == "cuda") / GIB
    again = ", activations computed again" if fit.recompute else ""
    return f"peak {read_peak_memory(args.device)} GiB{reserved}, planned {planned:.1f}{again}"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--shapes", choices=sorted(SHAPES), default="qwen3-8b")
    flags.add_argument("--layers", type=int, nargs="+", default=[26, 28, 29, 30])
    flags.add_argument("--seq-len", type=int, default=4096)
    flags.add_argument("--sequences", type=int, default=1, help="in a forward pass")
    flags.add_argument("--passes", type=int, default=4, help="forward passes of a step")
    flags.add_argument(
        "--recompute", choices=("auto", "on", "off"), default="auto", help="as the product does"
    )
    flags.add_argument("--compile", action="store_true", help="layers by torch.compile")
    flags.add_argument("--rivals", nargs="+", choices=sorted(SPECS), default=["adept"])
    flags.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    flags.add_argument("--repeats", type=int, default=5)
    args = flags.parse_args()
    dtype = "bfloat16" if args.device.type == "cuda" else "float32"
    config = config_of(args.shapes)
    number = args.sequences * args.passes
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (number, args.seq_len)).astype(np.int32)
    blocks = Blocks(tokens, np.ones_like(tokens[:, 1:]), np.zeros(tokens.shape, bool))
    rate = product_rate(args.device, getattr(torch, dtype), args.repeats)
    print(f"product of {dtype} matrices: {rate / 1e12:.1f} TFLOP/s; {tokens.size:,} tokens a step")
    for name in args.rivals:
        spec = SPECS[name].model_copy(update={"k": len(args.layers)} if name == "adept" else {})
        layers = args.layers if spec.k else []
        needs = plan_memory(build_skeleton(config, dtype), spec, layers, args.seq_len)
        # Each token that one may attend to adds as many operations, and on average that is half of them.
        needed = plan_memory(build_skeleton(config, dtype), spec, layers, args.seq_len // 2).flops
        fit = find_fit(needs, name, args)
        reset_peak_memory(args.device)
        model = random_model(config_of(args.shapes), args.device, getattr(torch, dtype))
        step, save = training(model, spec, layers, blocks, fit, args)
        speed = tokens.size / timed(step, args.device, args.repeats)
        print(
            f"{name:8} {speed:10,.0f} tokens/s   {speed * needed / 1e12:8.2f} TFLOP/s   "
            f"{speed * needed / rate:6.1%} of the product's rate   {needs.trained / 1e6:8.1f} M trained   "
            f"{describe_memory(needs, fit, args)}   a checkpoint stops it for "
            f"{timed(save, args.device, 1):.2f} s",
            flush=True,
        )
        del model, step, save
    model = random_model(config_of(args.shapes), args.device, getattr(torch, dtype))
    batch = {"input_ids": torch.from_numpy(tokens[: args.sequences].astype(np.int64)).to(args.device)}
    middle = config.num_hidden_layers // 2
    seconds = timed(lambda: measure_bypass_losses(model, batch, [middle]), args.device, args.repeats)
    speed = batch["input_ids"].numel() / seconds
    print(f"probe    {speed:10,.0f} tokens/s through the model and past layer {middle}")


if __name__ == "__main__":
    main()
