"""What a worker waits for its training text, and what that takes of its memory, however long the text is.

python benchmarks/blocks.py                              # 256 M and 1 B tokens, some 3 GB of temporary files
python benchmarks/blocks.py --tokens 64e6 --steps 200    # a try

Made-up blocks are written as packing writes them. Then a process of its own takes the batches of random
steps, as stage 2 does: once with files that the kernel doesn't hold (cold), once more, and, where the text
isn't too long, from memory, as blocks were held before. All must get the same token ids.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEQ_LEN = 1024
SHARD_BLOCKS = 2**16  # 64 M tokens, of about 256 MB of text
BUCKET_BLOCKS = 2**10  # made up; a shard repeats them
VOCABULARY = 49_152  # SmolLM2's


def write_split(folder: Path, tokens: int) -> list[dict[str, Any]]:
    """Shards of made-up blocks, no block like another; returns what a manifest would say of them."""
    from adept_ray.data.block_files import Shard, choose_token_type, describe_record

    record = describe_record(SEQ_LEN, choose_token_type(VOCABULARY), "|u1")
    made = np.empty(BUCKET_BLOCKS, record)
    random = np.random.default_rng(0)
    made["tokens"] = random.integers(0, VOCABULARY, made["tokens"].shape)
    made["bytes"] = random.integers(0, 9, made["bytes"].shape)
    made["starts"] = 0
    left, shards = tokens // SEQ_LEN, list[Shard]()
    (folder / "train").mkdir()
    while left:
        shard = Shard(f"train/{len(shards):06d}.blocks", min(left, SHARD_BLOCKS), "<u2", "|u1")
        with (folder / shard.name).open("wb") as file:
            for begin in range(0, shard.blocks, BUCKET_BLOCKS):
                made["tokens"][:, :2] = [len(shards), begin // BUCKET_BLOCKS]
                made[: shard.blocks - begin].tofile(file)
            file.flush()
            os.fsync(file.fileno())
        shards.append(shard)
        left -= shard.blocks
    return [asdict(shard) for shard in shards]


def read_memory(name: str) -> float:
    """``VmRSS`` or ``VmHWM``, its peak, of this process, MiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


@dataclass(frozen=True)
class Asked:
    """What the process is to do."""

    folder: str
    shards: list[dict[str, Any]]
    steps: int
    blocks: int
    """Of a step."""
    seconds: float
    """That a step computes."""
    held: bool
    """Whether the text is read into memory first."""


def take_steps(asked: Asked) -> dict[str, Any]:
    """Take the batches of so many steps, in this process."""
    import torch

    from adept_ray.data.block_files import Shard
    from adept_ray.data.blocks import BlockOrder, BlockSet, make_shared_batches, read_tokens_ahead

    device = torch.device("cpu")
    BlockOrder((1,), 0).list_batch(0, 1)  # what it imports is no text
    shards = [Shard(**each) for each in asked.shards]
    count = sum(shard.blocks for shard in shards)
    made = BlockSet(asked.folder, "", {"train": {"blocks": count}}, {"train": 1.0}, {"train": shards})
    before = read_memory("VmRSS")
    text = made.open_split("train", 0, SEQ_LEN, "made up")
    text = text.read() if asked.held else text
    order = BlockOrder((len(text),), 0)
    began = time.perf_counter()
    order.list_batch(0, asked.blocks)  # draws the order of the epoch
    drawing = time.perf_counter() - began
    seen, waits = hashlib.sha256(), []
    for step in range(asked.steps):
        began = time.perf_counter()
        read_tokens_ahead(text, order.list_batch(step + 1, asked.blocks))
        batches = list(make_shared_batches(text, order.list_batch(step, asked.blocks), asked.blocks, device))
        waits.append(time.perf_counter() - began)
        seen.update(batches[0]["digest"].numpy().tobytes())
        time.sleep(asked.seconds)
    return {
        "memory": read_memory("VmHWM") - before,
        "wait": statistics.mean(waits),
        "longest": max(waits),
        "drawing": drawing,
        "seen": seen.hexdigest(),
    }


def forget(folder: Path) -> None:
    """Ask the kernel to drop the pages of all files that it holds."""
    for file in folder.rglob("*.blocks"):
        number = os.open(file, os.O_RDONLY)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)


def measure(asked: Asked) -> dict[str, Any]:
    """What a process of its own finds."""
    command = [sys.executable, __file__, "--worker", json.dumps(asdict(asked))]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--tokens", type=float, nargs="+", default=[256e6, 1e9])
    flags.add_argument(
        "--held-up-to", type=float, default=256e6, help="tokens that are read from memory, too"
    )
    flags.add_argument("--steps", type=int, default=200)
    flags.add_argument("--blocks", type=int, default=16, help="a step of one worker")
    flags.add_argument("--step-ms", type=float, default=200, help="that a step computes; here it sleeps")
    flags.add_argument("--folder", help="where the files are written, which are deleted at the end")
    flags.add_argument("--worker", help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.worker:
        print(json.dumps(take_steps(Asked(**json.loads(args.worker)))))
        return
    print(
        f"{args.steps} steps of {args.blocks} blocks of {SEQ_LEN} tokens that compute for {args.step_ms:g} ms"
    )
    print("tokens   from         memory, MiB   wait, ms   longest   share of the step   an epoch's order, ms")
    for tokens in map(int, args.tokens):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            shards, seen = write_split(Path(folder), tokens), set()
            for place in ("cold files", "files", *["memory"] * (tokens <= args.held_up_to)):
                if place == "cold files":
                    forget(Path(folder))
                held, seconds = place == "memory", args.step_ms / 1000
                found = measure(Asked(folder, shards, args.steps, args.blocks, seconds, held))
                seen.add(found["seen"])
                wait = found["wait"]
                print(
                    f"{tokens / 1e6:,.0f} M".ljust(8),
                    place.ljust(12),
                    f"{found['memory']:11,.0f}   {1000 * wait:8.3f}   {1000 * found['longest']:7.1f}",
                    f"{wait / (wait + seconds):18.2%}   {1000 * found['drawing']:20.1f}",
                    flush=True,
                )
            assert len(seen) == 1, "the batches differ"


if __name__ == "__main__":
    main()
