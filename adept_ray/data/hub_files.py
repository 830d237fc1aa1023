"""The files of a backbone from the hub: what of them a machine lacks, and fetching it before anyone waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adept_ray.config.errors import UserError, shorten_error
from adept_ray.data.backbones import list_model_files

if TYPE_CHECKING:
    from huggingface_hub.file_download import DryRunFileInfo

# What transformers reads of a repository. Some hold the same weights once more, under other names.
WANTED = ["model*.safetensors", "*.json", "tokenizer*", "vocab*", "*.model", "*.txt", "*.jinja", "*.py"]
UNWANTED = ["*/*"]
LOOK_EVERY = 1.0  # seconds between two looks at how much is there


@dataclass(frozen=True)
class HubFiles:
    """What a machine has of a backbone's files."""

    missing: int = 0
    """Bytes that it has to fetch."""
    fault: str = ""
    """Why it can't."""


def look_for_files(repo: str, revision: str, token: str | None = None) -> HubFiles:
    """What this machine lacks of a hub repository's files at that commit, and whether it could fetch them.

    `token` goes before the machine's own.
    """
    from huggingface_hub import snapshot_download

    choice = choose_files(revision, token)
    try:
        files: list[DryRunFileInfo] = snapshot_download(repo, **choice, dry_run=True)  # type: ignore
    except Exception as problem:  # the client changes its HTTP library, and so its exceptions
        if has_every_file(repo, choice):
            return HubFiles()
        return HubFiles(fault=explain_hub_error(repo, problem))
    return HubFiles(sum(file.file_size or 0 for file in files if file.will_download))


def choose_files(revision: str, token: str | None) -> dict[str, Any]:
    """What the hub's client is asked for."""
    return {"revision": revision, "allow_patterns": WANTED, "ignore_patterns": UNWANTED, "token": token}


def has_every_file(repo: str, choice: Mapping[str, Any]) -> bool:
    """Whether this machine's cache holds all that a backbone needs, so that nobody has to ask the hub."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repo, **choice, local_files_only=True)
        return bool(list_model_files(Path(folder)))
    except (UserError, OSError):
        return False


def explain_hub_error(repo: str, problem: Exception) -> str:
    """Why the hub gives no files of a repository, and what mends it."""
    from huggingface_hub.errors import HfHubHTTPError

    cause = problem if isinstance(problem, HfHubHTTPError) else problem.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else 0
    if status in (401, 403):
        return (
            f"the hub gives '{repo}' only to who may read it: ask for access on its page, and run `hf auth "
            "login` or set HF_TOKEN where the command runs"
        )
    why = cause if isinstance(cause, Exception) else problem
    return (
        f"the Hugging Face hub can't be asked for '{repo}' ({shorten_error(why)}): let that "
        "machine reach it (HTTPS_PROXY, HF_ENDPOINT), or give a folder that every node has"
    )


def fetch_files(repo: str, revision: str, token: str | None = None) -> Iterator[int]:
    """Fetch a repository's files into this machine's cache; yields, now and then, the bytes that came so far.

    Raises the hub client's errors.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    choice = choose_files(revision, token)
    errors: list[Exception] = []

    def fetch() -> None:
        try:
            snapshot_download(repo, **choice)
        except Exception as problem:
            errors.append(problem)

    before, thread = measure_folder(blobs), threading.Thread(target=fetch, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_EVERY)
        yield max(0, measure_folder(blobs) - before)
    if errors:
        raise errors[0]


def measure_folder(folder: Path) -> int:
    """Bytes of the files in a folder, those of half-fetched ones too; 0 if it isn't there."""
    if not folder.is_dir():
        return 0
    sizes = 0
    for file in folder.iterdir():
        try:
            sizes += file.stat().st_size
        except FileNotFoundError:  # it has just got its own name
            continue
    return sizes
