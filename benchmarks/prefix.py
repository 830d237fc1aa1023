"""What is kept of the frozen layers below the lowest copy: a step and a validation pass with it and without.

python benchmarks/prefix.py                                      # SmolLM2-135M's shapes, random weights
python benchmarks/prefix.py --dtype bfloat16 --disk              # kept in a file, as for GPUs
python benchmarks/prefix.py --device cuda --shapes qwen3-8b --dtype bfloat16 --layers 26 28 29 30
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from rivals import Timed, in_turn, prepare_torch, table
from shapes import SHAPES, config_of
from transformers import PreTrainedModel

from adept_ray.config.specs import TrainingSpec
from adept_ray.data.blocks import digest_tokens
from adept_ray.method.anatomy import layer_parameters, layers_of
from adept_ray.method.loss import Batch, next_token_nats
from adept_ray.method.prefix import StreamStore
from adept_ray.method.sharding import build_skeleton, disable_gradients
from adept_ray.method.tuning import Tuning, build_tuning
from adept_ray.training.learner import build_optimizer
from adept_ray.training.streams import DiskStreams, MemoryStreams

LIMIT = 2**33  # bytes that may be kept
Rival = Callable[[], list[torch.Tensor]]


def prepare_tuning(model: PreTrainedModel, layers: Sequence[int]) -> Tuning:
    """Copies of `layers` that have trained a while: in fresh ones most gradients are zero."""
    units = dict.fromkeys(layer_parameters(model, range(len(layers_of(model)))), 1.0)
    torch.manual_seed(0)
    tuning = build_tuning(model, TrainingSpec(k=len(layers)), layers, units, seed=0)
    with torch.no_grad():
        for name, parameter in tuning.parameters.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(std=1e-3)
    return tuning


def build_batches(args: argparse.Namespace) -> list[Batch]:
    """The batches of a few steps, in the order in which they come again; the last ones are for validation."""
    vocabulary = SHAPES[args.shapes]["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    size = (args.steps + args.validation, args.blocks, args.seq_len)
    every = torch.randint(0, vocabulary, size, generator=generator, dtype=torch.int32)
    return [{"input_ids": ids.long().to(args.device), "digest": digest_tokens(ids.numpy())} for ids in every]


def make_steps(tuning: Tuning, batches: Sequence[Batch], args: argparse.Namespace) -> Rival:
    """Optimizer steps at rate zero, so that both sides go on computing the same; returns the gradients."""
    spec = TrainingSpec()
    optimizer = build_optimizer(tuning.model, spec, torch.device(args.device))
    assert optimizer is not None
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0

    def run() -> list[torch.Tensor]:
        found = []
        for batch in batches:
            nats, tokens = next_token_nats(tuning.model, batch)
            (nats.sum() / tokens.sum()).backward()
            found = [
                nats.detach(),
                *(p.grad.clone() for p in tuning.parameters.values() if p.grad is not None),
            ]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return wait(found)

    return run


def validate(tuning: Tuning, batches: Sequence[Batch]) -> Rival:
    """A validation pass, as trials are scored; returns the losses."""

    def run() -> list[torch.Tensor]:
        with tuning.use_exported_weights(), disable_gradients(tuning.model):
            return wait([next_token_nats(tuning.model, batch)[0] for batch in batches])

    return run


def wait(found: list[torch.Tensor]) -> list[torch.Tensor]:
    """What was found, on the CPU, so a GPU has finished."""
    return [tensor.cpu() for tensor in found]


@contextmanager
def count_frozen_runs(tuning: Tuning) -> Iterator[list[int]]:
    """How often the lowest layer computes something."""
    lowest, runs = layers_of(tuning.model)[0], [0]
    attention = lowest.get_submodule("self_attn")
    hook = attention.register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    try:
        yield runs
    finally:
        hook.remove()


def compare(what: str, plain: Rival, kept: Rival, tuning: Tuning, rounds: int) -> None:
    """Check that both sides are equal bit for bit and that one runs no frozen layer; time both in turn."""
    plain(), kept()  # this one keeps
    with count_frozen_runs(tuning) as runs:
        assert all(map(torch.equal, plain(), kept()))
        assert not runs[0], "something wasn't kept"
    rivals = {f"{what}, every layer": plain, f"{what}, from what is kept": kept}
    timed: dict[str, Timed] = in_turn(rivals, rounds)
    table(timed, f"{what}, every layer")
    pairs = zip(*(each.seconds for each in timed.values()), strict=True)
    print(f"{what}: {statistics.median(all_ / rest for all_, rest in pairs):.2f} times as fast\n")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--layers", type=int, nargs="+", default=[12, 14, 17, 18])
    flags.add_argument("--blocks", type=int, default=2, help="sequences a step, and a batch of validation")
    flags.add_argument("--seq-len", type=int, default=128)
    flags.add_argument("--steps", type=int, default=4, help="a round")
    flags.add_argument("--validation", type=int, default=6, help="batches a round")
    flags.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--disk", action="store_true", help="keep in a file, as is always done for GPUs")
    flags.add_argument("--shapes", choices=sorted(SHAPES), default="smollm2-135m")
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--rounds", type=int, default=5)
    args = flags.parse_args()
    prepare_torch(args.threads)
    config, device = config_of(args.shapes), torch.device(args.device)
    plain, kept = (
        prepare_tuning(build_skeleton(config, args.dtype, device=device), args.layers) for _ in range(2)
    )
    kept.model.load_state_dict(plain.model.state_dict())
    on_disk = args.disk or device.type != "cpu"
    store: StreamStore = (DiskStreams if on_disk else MemoryStreams)(LIMIT, device)
    kept.keep_prefix(store, keeps_text=True)
    batches = build_batches(args)
    print(
        f"{args.shapes} in {args.dtype}, copies of layers {' '.join(map(str, args.layers))}, "
        f"{args.blocks} sequences of {args.seq_len}, kept {'in a file' if on_disk else 'in memory'}"
    )
    text, held_out = batches[: args.steps], batches[args.steps :]
    compare("step", make_steps(plain, text, args), make_steps(kept, text, args), kept, args.rounds)
    compare("validation", validate(plain, held_out), validate(kept, held_out), kept, args.rounds)


if __name__ == "__main__":
    main()
