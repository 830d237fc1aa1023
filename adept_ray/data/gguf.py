"""GGUF files, dequantized once into plain folders."""

from __future__ import annotations

import io
import os
import shutil
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from adept_ray.config.errors import UserError
from adept_ray.data.assets import print_status

if TYPE_CHECKING:
    pass

from adept_ray.data.loading import _first_line, _load_whole, _quiet_transformers

MANIFEST = "adept_source.json"


def _gguf_folder(path: Path, sha256: str, cache: Path) -> Path:
    return (cache / "backbones" / f"{path.stem}-{sha256[:16]}").absolute()


def _move_folder(made: Path, folder: Path) -> None:
    if folder.exists() and not (folder / MANIFEST).exists():
        shutil.rmtree(folder)
    try:
        os.rename(made, folder)
    except OSError:
        if not (folder / MANIFEST).exists():  # else another process was first, with the same result
            raise


def _check_gguf(path: Path) -> Path:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(
                f"{path}: not a GGUF file; give a folder made with save_pretrained, or a .gguf file"
            )
    return path


def _dequantize(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a plain folder: float32, since fewer bits would round it again."""
    print_status(f"dequantizing {path.name} (once; half a minute for 135 M parameters)")
    try:
        with _quiet_transformers():
            _convert(path, folder)
    except UserError:
        raise
    except Exception as problem:  # parsers of a binary format fail in many ways
        reason = (
            _first_line(problem) if _is_whole(path) else "truncated or damaged; copy or download it again"
        )
        raise UserError(f"{path}: this GGUF file can't be read: {reason}") from problem


def _is_whole(path: Path) -> bool:
    from gguf import GGUFReader

    try:
        return bool(GGUFReader(path).tensors)  # reads the header and lays every tensor over the file
    except Exception:
        return False


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    # the bar of the conversion can't be switched off; where no one sees it, it would only fill logs
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        model = _load_whole(
            path, pretrained_model_name_or_path=path.parent, gguf_file=path.name, dtype=torch.float32
        )
    # as far as transformers is concerned the model is still quantized, and such a one it won't save
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
