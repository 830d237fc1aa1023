"""An optimizer step: ADEPT's against full-parameter training, and each against transformers' Trainer.

python benchmarks/step.py                                        # SmolLM2-135M, layers of a default search
python benchmarks/step.py --precision bfloat16 --rounds 1
python benchmarks/step.py --device cuda --shapes qwen3-8b --layers 14 16 18 20    # random weights in bf16

Steps are those of the product's own loop. Trainer gets the same model, parameters to train, text, rate and
clipping, and makes its step right after ours; both losses have to be the same. It prints FLOPs, seconds and
peak memory of ADEPT and of full-parameter training, Trainer's seconds over ours, and tokens a second. ADEPT's
step is timed twice: with all layers, as a first trial makes it, and with the streams that enter the lowest
copy kept, as every later trial of a search makes it.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rivals import Timed, boolq, prepare_torch, table
from shapes import SHAPES, config_of
from torch.utils.data import SequentialSampler
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from adept_ray.config.places import default_cache
from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.blocks import BlockOrder, Blocks
from adept_ray.data.loading import Backbone, load_model
from adept_ray.method.anatomy import layer_parameters
from adept_ray.method.precision import bfloat16_pays
from adept_ray.method.tuning import Tuning, build_tuning
from adept_ray.training.learner import Learner, build_optimizer, take_step
from adept_ray.training.streams import make_store
from adept_ray.training.work import TrainWork

GIB = 2**30
RATE = 1e-5  # so low that nothing diverges
PLAIN = {"base_lr": RATE, "warmup": 0.0, "final_lr": 1.0, "normalization": "none"}  # one rate, as Trainer has
KEPT = "ADEPT, kept"  # from the streams that an earlier training has kept
TUNED = {"ADEPT": "copies", KEPT: "copies", "full-parameter": "all", "LoRA": "lora"}
STREAM_BYTES = 2**33  # that may be kept
FOR_FLOPS = ("ADEPT", "full-parameter")


def load_backbone(args: argparse.Namespace, dtype: str) -> PreTrainedModel:
    """The real backbone, or a random one of the shapes asked for."""
    if not args.shapes:
        found = replace(resolve_backbone("smollm2-135m", default_cache()), dtype=dtype)
        return load_model(found).to(args.device)
    torch.manual_seed(0)  # the same weights for both sides
    with torch.device(args.device):
        model: Any = AutoModelForCausalLM.from_config(config_of(args.shapes), dtype=getattr(torch, dtype))
    return model.eval()


def tune(name: str, args: argparse.Namespace, dtype: str) -> Tuning:
    """A model made ready; copies have trained a while, for in fresh ones most gradients are zero."""
    model = load_backbone(args, dtype)
    layers = args.layers if TUNED[name] == "copies" else []
    units = dict.fromkeys(layer_parameters(model, layers), 1.0)
    tuning = build_tuning(model, make_spec(name, args), layers, units, seed=0)
    generator = torch.Generator(args.device).manual_seed(0)
    with torch.no_grad():
        for each, parameter in tuning.parameters.items():
            if layers and each.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(std=1e-3, generator=generator)
    return tuning


def make_spec(name: str, args: argparse.Namespace) -> TrainingSpec:
    """What the product would be told to train."""
    depth = len(args.layers) if TUNED[name] == "copies" else 0
    steps = args.blocks * args.seq_len
    return TrainingSpec(tunes=TUNED[name], k=depth, tokens_per_step=steps, tokens=steps * 2**20, **PLAIN)


def build_learner(name: str, args: argparse.Namespace, text: Blocks, dtype: str) -> Learner:
    """What the product's loop would train on `text`."""
    tuning, spec = tune(name, args, dtype), make_spec(name, args)
    work = TrainWork(
        Backbone("of the benchmark", "", dtype=dtype),
        spec,
        tuple(args.layers),
        {},
        {},
        ScoreWeights(),
        args.seq_len,
        micro_batch=args.blocks,
        seed=0,
    )
    device = torch.device(args.device)
    optimizer = build_optimizer(tuning.model, spec, device)
    assert optimizer is not None
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == {p for p in tuning.model.parameters() if p.requires_grad}  # nothing frozen gets a state
    return Learner(work, device, tuning, optimizer, text, BlockOrder((len(text),), 0))


def step_of(learner: Learner, blocks: int) -> Callable[[], float]:
    """Makes the next step on the next so many blocks; returns its loss."""
    scales = dict.fromkeys(learner.tuning.parameters, 1.0)
    count = iter(range(len(learner.text) // blocks))

    def run() -> float:
        step = next(count)
        return take_step(learner, scales, step, range(step * blocks, (step + 1) * blocks))

    return run


def clock(run: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a step and its loss, which has been read, so a GPU has finished."""
    started = time.perf_counter()
    loss = run()
    return time.perf_counter() - started, loss


@dataclass
class SideBySide(TrainerCallback):
    """Our step and Trainer's, in turn: seconds and losses of both."""

    run: Callable[[], float]
    ours: list[tuple[float, float]] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.ours.append(clock(self.run))
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.theirs.append(time.perf_counter() - self._started)


class InOrder(Trainer):
    """transformers' Trainer on blocks as they come; it hands its losses on."""

    side: SideBySide

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.side.losses.append(float(loss))
        return loss


def build_later_learner(name: str, args: argparse.Namespace, text: Blocks, dtype: str) -> Learner:
    """A learner that finds what an earlier one, which made the same steps, has kept of its frozen layers."""
    device = torch.device(args.device)
    store = make_store(device, STREAM_BYTES)
    earlier = build_learner(name, args, text, dtype)
    earlier.tuning.keep_prefix(store, keeps_text=True)
    run = step_of(earlier, args.blocks)
    for _ in range(len(text) // args.blocks):
        run()
    del earlier, run
    later = build_learner(name, args, text, dtype)
    later.tuning.keep_prefix(store, keeps_text=True)
    return later


def train_side_by_side(name: str, args: argparse.Namespace, text: Blocks, dtype: str) -> SideBySide:
    """As many steps as `text` holds, ours and Trainer's, the first of which counts for neither."""
    build = build_later_learner if name == KEPT else build_learner
    side = SideBySide(step_of(build(name, args, text, dtype), args.blocks))
    theirs = tune(name, args, "float32").model  # Trainer's bfloat16 is autocast over float32 weights
    data = [{"input_ids": ids, "labels": ids} for ids in torch.from_numpy(np.asarray(text.tokens, np.int64))]
    with tempfile.TemporaryDirectory() as folder:
        told = TrainingArguments(
            folder,
            per_device_train_batch_size=args.blocks,
            max_steps=len(text) // args.blocks,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            bf16=dtype == "bfloat16",
            use_cpu=args.device == "cpu",
            dataloader_pin_memory=args.device != "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = InOrder(theirs, told, train_dataset=data, callbacks=[side])  # type: ignore[arg-type]
        trainer.side = side
        trainer.train()
    close = 1e-5 if dtype == "float32" else 1e-2
    for (_, ours), loss in zip(side.ours, side.losses, strict=True):
        assert abs(ours - loss) < close * loss, f"{name}: our losses {side.ours}, Trainer's {side.losses}"
    return side


def count_flops(run: Callable[[], float]) -> int:
    """Floating-point operations of the matrix products and attention of a step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_memory(name: str, args: argparse.Namespace, text: Blocks) -> float:
    """Most memory of two steps, weights and optimizer included, GiB; on a CPU in a process of its own."""
    if args.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        two_steps(name, args, text)
        return (torch.cuda.max_memory_allocated() - before) / GIB
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(resident, (name, args, text))


def two_steps(name: str, args: argparse.Namespace, text: Blocks) -> None:
    """Build a rival and let it make two steps: the optimizer has its state in the second."""
    run = step_of(build_learner(name, args, text, args.dtype), args.blocks)
    run()
    run()


def resident(name: str, args: argparse.Namespace, text: Blocks) -> float:
    """What this fresh process needs for two steps beyond its imports, GiB."""

    def status(what: str) -> int:
        return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) * 1024

    torch.set_num_threads(args.threads)
    before = status("VmRSS")
    two_steps(name, args, text)
    return (status("VmHWM") - before) / GIB


def compare_with_full(args: argparse.Namespace, text: Blocks) -> None:
    """ADEPT's step against full-parameter training's, by operations, seconds and memory."""
    memory = {name: peak_memory(name, args, text) for name in FOR_FLOPS}
    seconds: dict[str, list[float]] = {name: [] for name in FOR_FLOPS}
    counted = {}
    for turn in range(args.rounds):  # one at a time in memory, in turn
        for name, times in seconds.items():
            run = step_of(build_learner(name, args, text, args.dtype), args.blocks)
            counted[name] = count_flops(run)  # and the optimizer makes its state
            times += [clock(run)[0] for _ in range(args.steps)]
            print(f"  round {turn + 1} of {args.rounds}, {name}: {times[-1]:.2f} s a step", flush=True)
            del run
    table({name: Timed(times, None) for name, times in seconds.items()}, "full-parameter")
    speed_up = compare(seconds["full-parameter"], seconds["ADEPT"])
    by_flops = counted["full-parameter"] / counted["ADEPT"]
    for name in seconds:
        print(f"{name:16} {counted[name] / 1e9:10.1f} GFLOP a step, {memory[name]:6.2f} GiB at most")
    print(f"speed-up by FLOPs {by_flops:.2f}, measured {speed_up:.2f}: {speed_up / by_flops:.2f} of it")


def compare_with_trainer(args: argparse.Namespace, text: Blocks, dtype: str) -> None:
    """Each of ours against transformers' Trainer, and ADEPT's tokens a second against LoRA's."""
    ours: dict[str, list[float]] = {name: [] for name in TUNED}
    theirs: dict[str, list[float]] = {name: [] for name in TUNED}
    for turn in range(args.rounds):
        for name in TUNED:
            side = train_side_by_side(name, args, text, dtype)
            ours[name] += [seconds for seconds, _ in side.ours[1:]]
            theirs[name] += side.theirs[1:]
            print(f"  round {turn + 1} of {args.rounds}, {name}: losses equal Trainer's", flush=True)
            del side
            gc.collect()
    tokens = args.blocks * args.seq_len
    print(f"\n{dtype:16}{'ours, s':>10}{'Trainer, s':>12}{'Trainer/ours':>14}{'our tokens/s':>14}")
    for name in TUNED:
        mine, other = statistics.median(ours[name]), statistics.median(theirs[name])
        ratio = compare(theirs[name], ours[name])
        print(f"{name:16}{mine:10.3f}{other:12.3f}{ratio:14.2f}{tokens / mine:14,.0f}")
    for name in ("ADEPT", KEPT):
        print(f"tokens a second of {name} over LoRA's: {compare(ours['LoRA'], ours[name]):.2f}")
    print(f"{KEPT}: {compare(ours['ADEPT'], ours[KEPT]):.2f} times as fast as with all layers")


def compare(slower: list[float], faster: list[float]) -> float:
    """Median ratio of seconds, step by step."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def take_text(args: argparse.Namespace) -> Blocks:
    """Blocks for all the steps of a round and the one that doesn't count."""
    count = args.blocks * (args.steps + 1)
    if args.shapes:
        vocabulary = SHAPES[args.shapes]["vocab_size"]
        tokens = np.random.default_rng(0).integers(0, vocabulary, (count, args.seq_len)).astype(np.int32)
    else:
        tokens = boolq(count * args.seq_len, args.seq_len).numpy().astype(np.int32)
    return Blocks(tokens, np.ones_like(tokens[:, 1:]), np.zeros(tokens.shape, bool))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--layers", type=int, nargs="+", default=[12, 14, 17, 18])
    flags.add_argument("--blocks", type=int, default=2, help="sequences a step")
    flags.add_argument("--seq-len", type=int, default=128)
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--shapes", choices=sorted(SHAPES))
    flags.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--steps", type=int, default=5, help="timed steps a round")
    args = flags.parse_args()
    prepare_torch(args.threads)
    text = take_text(args)
    args.dtype = "bfloat16" if args.device == "cuda" else "float32"
    print(
        f"{args.blocks * args.seq_len} tokens a step, copies of layers {' '.join(map(str, args.layers))}",
        flush=True,
    )
    compare_with_full(args, text)
    if args.device == "cuda":
        compare_with_trainer(args, text, "bfloat16")
        return
    fast = bfloat16_pays()
    for dtype in ("float32", "bfloat16") if args.precision == "auto" else (args.precision,):
        if dtype == "bfloat16" and args.precision == "auto" and not fast:
            print("\nbfloat16 is left out: this CPU multiplies no faster in it")
            continue
        compare_with_trainer(args, text, dtype)


if __name__ == "__main__":
    main()
