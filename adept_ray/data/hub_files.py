"""The files of a backbone from the hub: what of them a machine lacks, and fetching it before anyone waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from adept_ray.config.errors import UserError
from adept_ray.data.hub_client import PATIENCE, use_patient_client
from adept_ray.data.hub_faults import explain_hub_error
from adept_ray.data.model_files import TOKENIZER_FILES, list_model_files

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

    `token` goes before the machine's own. Of what the cache holds whole the hub isn't asked.
    """
    if find_snapshot(repo, revision):
        return HubFiles()
    use_patient_client()
    from huggingface_hub import snapshot_download

    try:
        files: list[DryRunFileInfo] = snapshot_download(  # type: ignore[assignment]
            repo, **choose_files(revision, token), dry_run=True
        )
    except Exception as problem:  # the client changes its HTTP library, and so its exceptions
        return HubFiles(fault=explain_hub_error(repo, problem))
    return HubFiles(sum(file.file_size or 0 for file in files if file.will_download))


def choose_files(revision: str, token: str | None) -> dict[str, Any]:
    """What the hub's client is asked for."""
    return {"revision": revision, "allow_patterns": WANTED, "ignore_patterns": UNWANTED, "token": token}


def find_snapshot(repo: str, revision: str) -> Path | None:
    """The folder of this machine's cache that holds all that a backbone needs, if there is one."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, **choose_files(revision, None), local_files_only=True))
        list_model_files(folder)
    except (UserError, OSError):
        return None
    return folder if any(next(folder.glob(each), None) for each in TOKENIZER_FILES) else None


def fetch_files(repo: str, revision: str, token: str | None = None) -> Iterator[int | str]:
    """Fetch a repository's files into this machine's cache; yields, now and then, the bytes that came so far.

    Where the hub is asked again, it yields a line about that. Raises the hub client's errors.
    """
    use_patient_client()
    said: SimpleQueue[str] = SimpleQueue()
    PATIENCE.say, before_that = said.put, PATIENCE.say
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
    try:
        while thread.is_alive():
            thread.join(LOOK_EVERY)
            while not said.empty():
                yield said.get()
            yield max(0, measure_folder(blobs) - before)
    finally:
        PATIENCE.say = before_that
    if errors:
        raise errors[0]


def fetch_missing_files(repo: str, revision: str, update: Callable[[int, int], None]) -> None:
    """Fetch what this machine lacks of a repository's files.

    `update` hears of the bytes that came, and of all. Raises :class:`UserError` for what can't be had.
    """
    files, say = look_for_files(repo, revision), PATIENCE.say
    if files.fault:
        raise UserError(files.fault)
    try:
        for came in fetch_files(repo, revision) if files.missing else ():
            if isinstance(came, str):
                say(came)
            else:
                update(min(came, files.missing), files.missing)
    except Exception as problem:  # the client changes its HTTP library, and so its exceptions
        raise UserError(explain_hub_error(repo, problem)) from problem


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
