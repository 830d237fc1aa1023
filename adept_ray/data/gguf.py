"""GGUF files, dequantized once into plain folders."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import cache
from pathlib import Path

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import explain_os_faults, find_fault_number
from adept_ray.data.assets import print_status
from adept_ray.data.loading import describe_fault, load_whole_model, silence_transformers

MANIFEST = "adept_source.json"


def locate_gguf_folder(path: Path, sha256: str, cache: Path) -> Path:
    """Folder of the cache for the plain form of a GGUF file."""
    return (cache / "backbones" / f"{path.stem}-{sha256[:16]}").absolute()


def move_gguf_folder(made: Path, folder: Path) -> None:
    """Move a finished folder into place, unless another process was first."""
    if folder.exists() and not (folder / MANIFEST).exists():
        shutil.rmtree(folder)
    try:
        os.rename(made, folder)
    except OSError:
        if not (folder / MANIFEST).exists():  # else another process was first, with the same result
            raise


def check_gguf(path: Path) -> Path:
    """`path`; raises :class:`UserError` unless a GGUF file lies there."""
    with explain_os_faults(path), path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(
                f"{path}: not a GGUF file; give a folder made with save_pretrained, or a .gguf file"
            )
    return path


def dequantize_gguf(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a plain folder: float32, since fewer bits would round it again."""
    print_status(f"dequantizing {path.name} (once; 15 s for 135 M parameters)")
    try:
        with silence_transformers(), _parse_once():
            _save_plain_model(path, folder)
    except UserError:
        raise
    except Exception as problem:  # parsers of a binary format fail in many ways
        if isinstance(problem, OSError) and find_fault_number(problem):
            raise  # a full disk, say
        reason = (
            describe_fault(problem) if _is_whole(path) else "truncated or damaged; copy or download it again"
        )
        raise UserError(f"{path}: this GGUF file can't be read: {reason}") from problem


@contextmanager
def _parse_once() -> Iterator[None]:
    """Have a file parsed once, not three times, and the names of tensors listed once, not once a module.

    transformers asks so often, and both take longer than to compute the weights.
    """
    import gguf

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(reader), cache(names)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names  # type: ignore[misc]


def _is_whole(path: Path) -> bool:
    from gguf import GGUFReader

    try:
        return bool(GGUFReader(path).tensors)  # reads the header and lays every tensor over the file
    except Exception:
        return False


def _save_plain_model(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    # The conversion's bar can't be switched off. Where no one sees it, it would only fill logs.
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        model = load_whole_model(
            path, pretrained_model_name_or_path=path.parent, gguf_file=path.name, dtype=torch.float32
        )
    # transformers takes the model for a quantized one still, and doesn't save those
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
