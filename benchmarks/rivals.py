"""What the benchmarks share: rivals timed in turn, the real backbone, random ones, a step on copies."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from adept_ray.config.places import default_cache
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.corpora import resolve_corpus
from adept_ray.data.loading import load_model, load_tokenizer
from adept_ray.data.shards import read_in_order
from adept_ray.engine.cluster import count_cpus
from adept_ray.method.anatomy import layer_parameters
from adept_ray.method.expansion import expand
from adept_ray.method.loss import next_token_nats
from adept_ray.method.rates import parameter_groups


@dataclass(frozen=True)
class Timed:
    """Seconds of each repetition, and what the last one returned."""

    seconds: list[float]
    result: Any

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        return f"{min(self.seconds):.2f}–{max(self.seconds):.2f}"


def in_turn(rivals: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timed]:
    """Run the rivals in turn, `repeats` times round, so that a slow spell of the machine hits them all."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    results = {}
    for turn in range(repeats):
        for name, rival in rivals.items():
            started = time.perf_counter()
            results[name] = rival()
            seconds[name].append(time.perf_counter() - started)
            print(f"  round {turn + 1} of {repeats}, {name}: {seconds[name][-1]:.2f} s", flush=True)
    return {name: Timed(seconds[name], results[name]) for name in rivals}


def table(timed: Mapping[str, Timed], against: str) -> None:
    """Print median, spread and the ratio to one of the rivals. Ratios are taken round by round."""
    print(f"\n{'':38}{'median s':>10}{'spread':>16}{'ratio':>8}")
    for name, times in timed.items():
        pairs = zip(times.seconds, timed[against].seconds, strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        print(f"{name:38}{times.median:10.2f}{times.spread:>16}{ratio:8.3f}")


def prepare_torch(threads: int) -> None:
    """Set the threads and say on what all this runs."""
    torch.set_num_threads(threads)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    print(f"{cpu_name()}, {threads} of {count_cpus()} threads{gpu}, torch {torch.__version__}", flush=True)


def cpu_name() -> str:
    """The processor's name as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def smollm2() -> PreTrainedModel:
    """The default backbone, from the cache."""
    backbone = resolve_backbone("smollm2-135m", default_cache())
    return load_model(backbone)


def boolq(tokens: int, seq_len: int) -> torch.Tensor:
    """Blocks [N, T] of general text for the default backbone."""
    backbone = resolve_backbone("smollm2-135m", default_cache())
    tokenizer = load_tokenizer(backbone)
    ids: list[int] = []
    for text in read_in_order(resolve_corpus("boolq", "text", default_cache()).shards):
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= tokens:
            break
    return torch.tensor(ids[: tokens // seq_len * seq_len]).view(-1, seq_len)


def random_llama(layers: int, hidden: int = 128, vocabulary: int = 1024) -> PreTrainedModel:
    """A random model with as many layers as asked for and a small head, so that layers are what costs."""
    config = AutoConfig.for_model(
        "llama",
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def adept(model: PreTrainedModel, layers: Sequence[int]) -> torch.optim.Optimizer:
    """Expand in place, as stage 2 does; only the copies are trained."""
    added = expand(model, layers)
    with torch.no_grad():  # a copy that has trained a while; in a fresh one most gradients are zero
        for name, parameter in layer_parameters(model, added).items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(std=1e-3)
    return torch.optim.AdamW(parameter_groups(model), lr=1e-4, fused=True)


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
