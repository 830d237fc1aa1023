"""Where the causal LM to adapt comes from: presets, the Hugging Face hub, local folders, GGUF files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from adept_ray.config.errors import UserError, suggest_names
from adept_ray.config.validation import fingerprint
from adept_ray.data.assets import SMOLLM2, Asset, fetch_asset, hash_file, show_progress
from adept_ray.data.gguf import MANIFEST, check_gguf, dequantize_gguf, locate_gguf_folder, move_gguf_folder
from adept_ray.data.hub import HUB_ID, UnknownRepository, find_commit, list_kept_commits
from adept_ray.data.loading import Backbone
from adept_ray.data.model_files import check_listed_files, list_model_files


@dataclass(frozen=True)
class BackbonePreset:
    """A backbone with a name: a hub id or a pinned asset, and its licence."""

    source: str | Asset
    note: str
    model: str = ""
    """Its id on the Hugging Face hub."""
    license: str = ""
    """The hub's name of its licence."""
    sizes: Mapping[str, object] = field(default_factory=dict)
    """Flags whose defaults are others for this backbone."""


# One GPU of 80 GB or more. Held-out pieces are as large as the corpora that need no hub allow.
ON_GPUS: dict[str, object] = {
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


def resolve_backbone(
    name: str, cache: Path, trusted: bool = False, dtype: str = "float32", made_from: str = ""
) -> Backbone:
    """Find the backbone `name`: a name of :data:`PRESETS`, an existing folder or .gguf file, or a hub id.

    A GGUF file is dequantized once into ``cache/backbones``. A folder is fingerprinted by content,
    a hub id by its commit; without network, by the commit in the Hugging Face cache. If its code is
    `trusted`, that goes into the fingerprint, too. `dtype` is the torch type that it will be held in.
    A commit in that cache whose fingerprint is `made_from`, that of earlier results, is taken unasked.

    Raises :class:`UserError` for an unknown name and for a folder or file that can't be loaded.
    """
    path, asked = Path(name).expanduser(), Backbone(name, name, trusted=trusted, dtype=dtype)
    if name in PRESETS:
        preset = PRESETS[name]
        if isinstance(preset.source, Asset):
            return _find_asset(asked, preset.source, cache)
        return _find_on_hub(asked, preset.source, preset.note, made_from)
    if name and path.is_dir():
        return _find_folder(asked, path)
    if name and path.exists():
        return _find_gguf(replace(asked, name=path.name, note=str(path)), path, cache)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf"):
        raise UserError(f"{name}: no such folder or file")
    if HUB_ID.fullmatch(name) and ":" not in name:
        return _find_on_hub(asked, name, "", made_from)
    raise UserError(
        f"unknown backbone '{name}': {suggest_names(name, PRESETS)} (a folder, a .gguf file or a hub id "
        "owner/name will do as well)"
    )


def _find_on_hub(asked: Backbone, repo: str, note: str, made_from: str) -> Backbone:
    def name(commit: str) -> str:
        return fingerprint("hub", repo, commit, *(["trusted"] if asked.trusted else []))

    kept = list_kept_commits("model", repo, "config.json")
    revision = next((commit for commit in kept if name(commit) == made_from), "")
    if not revision:
        try:
            newest = find_commit("model", repo, patient=not kept)
            check_listed_files(repo, newest.files)
            revision = newest.sha
        except UnknownRepository:
            raise
        except UserError:
            if not kept:
                raise
            revision = kept[0]
    where = f"{repo}@{revision[:12]}"
    note = f"{where}, {note}" if note else where
    return replace(asked, source=repo, revision=revision, fingerprint=name(revision), note=note)


def _find_folder(asked: Backbone, folder: Path) -> Backbone:
    files = list_model_files(folder)
    if asked.trusted:
        files += sorted(folder.rglob("*.py"))
    hashing = show_progress(files, f"reading {folder}", len(files))
    made_of = fingerprint("folder", [(file.name, hash_file(file)) for file in hashing])
    where = folder.resolve()
    return replace(asked, name=where.name, source=str(where), fingerprint=made_of, note=str(folder))


def _find_asset(asked: Backbone, asset: Asset, cache: Path) -> Backbone:
    note = f"{asset.note} (package {asset.package} {asset.version})"
    folder = locate_gguf_folder(Path(asset.member), asset.member_sha256, cache)
    # after the conversion nobody needs the wheel or the GGUF file any more
    path = folder if (folder / MANIFEST).exists() else fetch_asset(asset, cache)
    return _convert_gguf(replace(asked, note=note), path, asset.member_sha256, folder)


def _find_gguf(asked: Backbone, path: Path, cache: Path) -> Backbone:
    sha256 = hash_file(check_gguf(path))
    return _convert_gguf(asked, path, sha256, locate_gguf_folder(path, sha256, cache))


def _convert_gguf(asked: Backbone, path: Path, sha256: str, folder: Path) -> Backbone:
    """The GGUF file `path` as a plain `folder`, made now unless it is there; it comes without code."""
    made_of = fingerprint("gguf", sha256)
    if not (folder / MANIFEST).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
            made = Path(making) / folder.name
            dequantize_gguf(path, made)
            (made / MANIFEST).write_text(
                json.dumps({"source": path.name, "sha256": sha256, "note": asked.note}, indent=1),
                encoding="utf-8",
            )
            move_gguf_folder(made, folder)
    return replace(asked, source=str(folder), fingerprint=made_of, trusted=False)
