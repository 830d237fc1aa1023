"""The files of a model, checked as far as can be without loading them."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import explain_os_faults

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
ADAPTER = "adapter_config.json"
SETTINGS = ("config.json", "generation_config.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def list_model_files(folder: Path) -> list[Path]:
    """Config, weight and tokenizer files, checked as far as can be without loading them.

    Raises :class:`UserError` for what is missing or damaged, and for an adapter, which transformers would
    load with the weights.
    """
    with explain_os_faults():  # else what can't be looked at counts as missing
        check_readable(
            file for file in sorted(folder.iterdir()) if is_loaded(file.name) and not file.is_dir()
        )
    if (folder / ADAPTER).exists():
        raise UserError(f"{folder}: {refuse_adapter(folder / ADAPTER)}")
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
    settings = [file for file in (folder / name for name in SETTINGS) if file.is_file()]
    for file in [*settings, *indexes]:
        _check_json(file)
    for file in weights:
        _check_safetensors(file)
    for index in indexes:
        for shard in sorted(set(json.loads(index.read_bytes()).get("weight_map", {}).values())):
            if not (folder / shard).is_file():
                raise UserError(
                    f"{folder}: {shard} is missing, which {index.name} names; copy the folder again"
                )
    tokenizer = {file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)}
    return [*settings, *weights, *indexes, *sorted(tokenizer)]


def is_loaded(name: str) -> bool:
    """Whether transformers may read a file of that name with a model."""
    patterns = (ADAPTER, *SETTINGS, *TOKENIZER_FILES, "*.safetensors", "*.safetensors.index.json")
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def check_readable(files: Iterable[Path]) -> None:
    """Open files, and read a byte of each. Raises OSError for the first one of which that can't be done."""
    for file in files:
        with file.open("rb") as stream:
            stream.read(1)


def refuse_adapter(file: Path) -> str:
    """What to do with a folder that holds an adapter, given the file that describes it."""
    base = ""
    with suppress(OSError, ValueError, AttributeError):
        base = json.loads(file.read_bytes()).get("base_model_name_or_path") or ""
    whose = f" of {base}" if base else ""
    return (
        f"it holds an adapter{whose} ({ADAPTER}), which is no model by itself; merge it into its base with "
        "PEFT's merge_and_unload, save that, and give the folder"
    )


def _check_json(path: Path) -> None:
    try:
        if isinstance(json.loads(path.read_bytes()), dict):
            return
        problem = "not a JSON object; copy or download it again"
    except ValueError as error:
        problem = f"not valid JSON ({error}); copy or download it again"
    raise UserError(f"{path}: {problem}")


def _check_safetensors(path: Path) -> None:
    """Compare the file's length with what its header promises; reads no weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError:
        raise UserError(f"{path}: truncated or damaged safetensors file; copy or download it again") from None


def check_listed_files(repo: str, names: Iterable[str]) -> None:
    """Refuse a hub repository by the list of its files, before any is fetched.

    Raises :class:`UserError` where weights come as pickles alone, or there is no model.
    """
    names = [name for name in names if "/" not in name]
    if ADAPTER in names:
        raise UserError(
            f"{repo}: this repository of the hub holds an adapter ({ADAPTER}); merge it into its base with "
            "PEFT's merge_and_unload, save that, and give the folder"
        )
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
