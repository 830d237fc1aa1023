"""How cost grows: the probe with layers, tokens and workers, a step of stage 2 with layers and tokens.

python benchmarks/scaling.py                # prints a table and draws benchmarks/scaling.png

Random models with 8, 16 and 32 layers of width 128. A worker has one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rivals import adept, prepare_torch, random_llama, step

from adept_ray.method.race import Costs, RaceRules, estimate_head_cost, rank_layers

LAYERS, TOKENS, SEQ_LEN = (8, 16, 32), (256, 512, 1024), 64
BASE = 512  # tokens where layers or workers vary


def ids(tokens: int) -> torch.Tensor:
    """Random blocks."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 1024, (tokens // SEQ_LEN, SEQ_LEN), generator=generator)


def median(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of `run`, after one that isn't counted."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def probe_seconds(layers: int, tokens: int, repeats: int) -> float:
    """Seconds of the exhaustive probe on this rank's share."""
    model, probe = random_llama(layers), {"input_ids": ids(tokens)}
    return median(lambda: rank_layers(model, probe, 8, RaceRules(raced=False)), repeats)


def as_rank(rank: int, world: int, store: str, layers: int, repeats: int) -> None:
    """One of several workers; the first writes its seconds beside the store."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    seconds = probe_seconds(layers, BASE, repeats)
    if rank == 0:
        Path(f"{store}.seconds").write_text(str(seconds))
    dist.destroy_process_group()


def with_workers(world: int, layers: int, repeats: int) -> float:
    """Seconds of the exhaustive probe shared by `world` processes."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        mp.spawn(as_rank, (world, store, layers, repeats), nprocs=world)
        return float(Path(f"{store}.seconds").read_text())


def step_seconds(layers: int, tokens: int, repeats: int) -> float:
    """Seconds of an optimizer step with the middle layer copied."""
    model = random_llama(layers)
    return median(step(model, adept(model, [layers // 2]), ids(tokens)), repeats)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--repeats", type=int, default=3)
    args = flags.parse_args()
    prepare_torch(1)
    passes = {n: Costs(n, estimate_head_cost(random_llama(n))).estimate_sequence(range(n)) for n in LAYERS}
    print(
        f"\n{'layers':>8}{'tokens':>8}{'workers':>9}{'probe s':>10}{'µs/token/layer pass':>22}{'step s':>9}"
    )
    probes: dict[tuple[int, int], float] = {}
    steps: dict[tuple[int, int], float] = {}
    for layers in LAYERS:
        for tokens in TOKENS:
            seconds = probes[layers, tokens] = probe_seconds(layers, tokens, args.repeats)
            steps[layers, tokens] = step_seconds(layers, tokens, args.repeats)
            each = 1e6 * seconds / tokens / passes[layers]
            print(
                f"{layers:8}{tokens:8}{1:9}{seconds:10.2f}{each:22.1f}{steps[layers, tokens]:9.3f}",
                flush=True,
            )
    for workers in (1, 2):
        for layers in LAYERS:
            seconds = with_workers(workers, layers, args.repeats)
            print(f"{layers:8}{BASE:8}{workers:9}{seconds:10.2f}   (processes of their own)", flush=True)
    draw(probes, steps, passes)


def draw(
    probes: dict[tuple[int, int], float], steps: dict[tuple[int, int], float], passes: dict[int, float]
) -> None:
    """Probe against layer passes, step against tokens; straight lines mean that the formula holds."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for tokens in TOKENS:
        left.plot(
            [passes[n] for n in LAYERS], [probes[n, tokens] for n in LAYERS], "o-", label=f"{tokens} tokens"
        )
    left.set(xlabel="layer passes a token, about L²/2 + L", ylabel="probe, s", xlim=0, ylim=0)
    for layers in LAYERS:
        right.plot(TOKENS, [steps[layers, t] for t in TOKENS], "o-", label=f"{layers} layers")
    right.set(xlabel="tokens a step", ylabel="step, s", xlim=0, ylim=0)
    for axes in (left, right):
        axes.legend()
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).parent / "scaling.png", dpi=120)


if __name__ == "__main__":
    main()
