"""Repositories of the Hugging Face hub: their last commit, and those that this machine keeps."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from adept_ray.config.errors import UserError
from adept_ray.data.hub_client import ask_once, use_patient_client
from adept_ray.data.hub_faults import Kind, explain_hub_error, find_refusal

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
HUB_TIMEOUT_S = 10
TOKEN = "HF_TOKEN"  # the hub client's environment variable


class UnknownRepository(UserError):
    """The hub has no repository of that name, or doesn't show it."""


@dataclass(frozen=True)
class Commit:
    """What a repository holds at one time."""

    sha: str
    files: tuple[str, ...]
    """Their paths."""


def find_commit(kind: Kind, name: str, patient: bool = True, revision: str | None = None) -> Commit:
    """The commit that a branch, tag or commit of a hub repository points to; by default the main branch.

    Unless `patient`, a hub that is out of order for a moment is not asked again. Raises
    :class:`UnknownRepository` when the hub doesn't know `name`, else :class:`UserError` when it can't be
    reached; ``__cause__`` is the hub client's own exception.
    """
    use_patient_client()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi()
    info = api.dataset_info if kind == "dataset" else api.model_info
    try:
        with nullcontext() if patient else ask_once():
            about = info(name, revision=revision, timeout=HUB_TIMEOUT_S)
    except (RepositoryNotFoundError, HFValidationError) as problem:
        if isinstance(problem, GatedRepoError):
            raise UserError(explain_hub_error(name, problem, kind)) from problem
        raise UnknownRepository(
            f"no local path and no {kind} on the Hugging Face hub is called '{name}'; check the spelling, "
            "and log in if it is private (`hf auth login`)"
        ) from problem
    except RevisionNotFoundError as problem:
        raise UnknownRepository(
            f"the {kind} '{name}' of the Hugging Face hub has no branch, tag or commit '{revision}'"
        ) from problem
    except Exception as problem:  # the client changes its HTTP library, and so its exceptions
        if find_refusal(problem):
            raise UserError(explain_hub_error(name, problem, kind)) from problem
        raise UserError(
            f"{explain_hub_error(name, problem, kind)}; if '{name}' is a local path, there is none"
        ) from problem
    return Commit(str(about.sha), tuple(each.rfilename for each in about.siblings or ()))


def list_kept_commits(kind: Kind, name: str, file: str) -> list[str]:
    """Commits of a repository of which this machine's cache has that `file`; that of main first, then by age.

    A download by commit, such as transformers makes of a pinned one, leaves no word of main.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    place = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    found = [folder for folder in place.glob("snapshots/*") if (folder / file).is_file()]
    main = place / "refs" / "main"
    named = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    found.sort(key=lambda folder: (folder.name == named, folder.stat().st_mtime), reverse=True)
    return [folder.name for folder in found]


def find_token() -> str:
    """The token with which this process asks the hub, of its environment or of a login; empty without one."""
    from huggingface_hub import get_token

    return get_token() or ""
