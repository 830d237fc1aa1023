"""Text like a chat model's own instruction data, drawn from the model itself: where it starts out strongest.

python benchmarks/own_text.py own.jsonl         # SmolLM2-135M, 192 conversations, one thread

Given no more than how its chat template opens a user's turn, an aligned model writes instructions such as it
was tuned on, and then answers them (Magpie, arXiv 2406.08464). Drawn at temperature 1, nothing cut off, so
no model can be expected to have a lower loss on a conversation than its writer (Gibbs' inequality): what a
training adds to the loss there is forgotten. Only what packing does, which cuts conversations and puts them
behind each other, can still be learned.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rivals import prepare_torch

from adept_ray.config.places import default_cache
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.loading import load_model, load_tokenizer

HERE = "{instruction}"


def opening(tokenizer: Any) -> str:
    """How the chat template begins a conversation, up to where the user's words go."""
    whole = tokenizer.apply_chat_template([{"role": "user", "content": HERE}], tokenize=False)
    return whole.partition(HERE)[0]


def drawn(model: Any, tokenizer: Any, opened: str, tokens: int, count: int) -> list[str]:
    """`count` texts that go on from `opened`, so many tokens each: turns of user and assistant."""
    prompt = tokenizer(opened, return_tensors="pt", add_special_tokens=False).input_ids
    # A turn ends in the EOS token, so it is no end here: the answer comes after it.
    ids = model.generate(
        prompt.expand(count, -1),
        attention_mask=torch.ones(count, prompt.shape[1], dtype=torch.long),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tokens,
        eos_token_id=[],
        pad_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.batch_decode(ids)


def texts(args: argparse.Namespace) -> Iterator[str]:
    backbone = resolve_backbone(args.backbone, default_cache())
    model = load_model(backbone)
    tokenizer = load_tokenizer(backbone)
    opened = opening(tokenizer)
    torch.manual_seed(args.seed)
    for _ in track(range(-(-args.conversations // args.at_once)), "drawing"):
        yield from drawn(model, tokenizer, opened, args.tokens, args.at_once)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("output", type=Path)
    flags.add_argument("--backbone", default="smollm2-135m")
    flags.add_argument("--conversations", type=int, default=192)
    flags.add_argument("--tokens", type=int, default=256, help="of a conversation, at most")
    flags.add_argument("--at-once", type=int, default=48)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--threads", type=int, default=1)
    args = flags.parse_args()
    prepare_torch(args.threads)
    lines = [json.dumps({"text": text}) for text in texts(args)]
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} conversations in {args.output}")


if __name__ == "__main__":
    main()
