"""The files of a model, checked as far as can be without loading them."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from pathlib import Path

from adept_ray.config.errors import UserError

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def list_model_files(folder: Path) -> list[Path]:
    """Config, weight and tokenizer files, checked as far as can be without loading them.

    Raises :class:`UserError` for what is missing or damaged.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; give a folder made with save_pretrained")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = [file.name for pattern in PICKLES for file in sorted(folder.glob(pattern))]
        found = f"{pickles[0]} is a pickle, which can run code" if pickles else "there are none"
        raise UserError(
            f"{folder}: weights must be *.safetensors, {found}; save the model again as safetensors"
        )
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    for index in [folder / "config.json", *indexes]:
        _check_json(index)
    for file in weights:
        _check_safetensors(file)
    for index in indexes:
        for shard in sorted(set(json.loads(index.read_bytes()).get("weight_map", {}).values())):
            if not (folder / shard).is_file():
                raise UserError(
                    f"{folder}: {shard} is missing, which {index.name} names; copy the folder again"
                )
    tokenizer = {file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)}
    return [folder / "config.json", *weights, *indexes, *sorted(tokenizer)]


def _check_json(path: Path) -> None:
    try:
        if isinstance(json.loads(path.read_bytes()), dict):
            return
        problem = "not a JSON object"
    except ValueError as error:
        problem = f"not valid JSON: {error}"
    raise UserError(f"{path}: {problem}")


def _check_safetensors(path: Path) -> None:
    """Compare the file's length with what its header promises; reads no weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass
    except (SafetensorError, OSError):
        raise UserError(f"{path}: truncated or damaged safetensors file; copy or download it again") from None


def check_listed_files(repo: str, names: Iterable[str]) -> None:
    """Refuse a hub repository by the list of its files, before any is fetched.

    Raises :class:`UserError` where weights come as pickles alone, or there is no model.
    """
    names = [name for name in names if "/" not in name]
    if "config.json" not in names:
        raise UserError(
            f"{repo}: this repository of the hub has no config.json; give one that transformers loads"
        )
    if not fnmatch.filter(names, "*.safetensors"):
        pickles = sorted(name for pattern in PICKLES for name in fnmatch.filter(names, pattern))
        found = f"{pickles[0]} is a pickle, which can run code" if pickles else "there are none"
        raise UserError(
            f"{repo}: weights must be *.safetensors, and in this repository of the hub {found}; give another "
            "one of that model, or a folder where you saved it as safetensors"
        )
