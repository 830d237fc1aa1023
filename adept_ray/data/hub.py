"""Repositories of the Hugging Face hub."""

from __future__ import annotations

import re
from typing import Literal

from adept_ray.config.errors import UserError, shorten_error

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
HUB_TIMEOUT_S = 10
TOKEN = "HF_TOKEN"  # the hub client's environment variable


def find_hub_revision(kind: Literal["dataset", "model"], name: str) -> str:
    """Commit sha that the main branch of a hub repository points to.

    Raises :class:`UserError` when the hub can't be reached (at once or after 10 s) or doesn't know
    `name`; ``__cause__`` is the hub client's own exception.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    api = HfApi()
    info = api.dataset_info if kind == "dataset" else api.model_info
    try:
        return str(info(name, timeout=HUB_TIMEOUT_S).sha)
    except (RepositoryNotFoundError, HFValidationError) as problem:
        raise UserError(
            f"no local path and no {kind} on the Hugging Face hub is called '{name}'; check the spelling, "
            "and log in if it is private"
        ) from problem
    except Exception as problem:  # the client changes its HTTP library, and so its exceptions
        raise UserError(
            f"can't ask the Hugging Face hub about the {kind} '{name}' ({shorten_error(problem)}); check the "
            "network, or the path if it is a local one"
        ) from problem


def find_token() -> str:
    """The token with which this process asks the hub, of its environment or of a login; empty without one."""
    from huggingface_hub import get_token

    return get_token() or ""
