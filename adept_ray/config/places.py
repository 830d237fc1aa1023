"""Paths and URIs as they are given: made absolute, without secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
)

from adept_ray.config.errors import UserError


def refuse_secret(place: Any) -> str:
    """A path or URI as it is kept; one with a secret in it is refused, for it is printed and written down."""
    text = os.path.expanduser(str(place))
    if re.search(r"://[^/@:]*:(?!\d+/).*@", text):  # but for HOST:PORT/, whose path may have an @
        raise ValueError(
            "a secret in a URI would be printed: leave it to the environment, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return text.rstrip("/") or text[:1]  # "/" is one, too


def make_absolute(place: str) -> str:
    """A path made absolute, for workers are in other folders; a URI as it is."""
    return place if "://" in place else os.path.abspath(place)


Place = Annotated[str, BeforeValidator(refuse_secret)]  # a path or a URI
Cache = Annotated[Place, AfterValidator(make_absolute)]


def default_cache() -> Path:
    """Where assets, token blocks and probes are kept: ``ADEPT_RAY_CACHE`` or ``~/.cache/adept_ray``.

    Raises :class:`UserError` for a URI: downloads are opened as files.
    """
    given = os.environ.get("ADEPT_RAY_CACHE", "~/.cache/adept_ray")
    if "://" in given:
        raise UserError(f"ADEPT_RAY_CACHE={given}: give a folder of this machine; --cache takes a URI")
    return Path(given).expanduser().absolute()


def mask_password(study: str) -> str:
    """A ``--study`` as it is printed: ``***`` in place of the password of a database's URL.

    It goes by the text alone, for a URL that can't be read is printed, too.
    """
    named = re.sub(r"(:/{1,2}[^:/@]*):.*@", r"\1:***@", study)  # up to the last @: some passwords have one
    return re.sub(r"([?&]\w*(?:password|passwd|pwd)=)[^&]*", r"\1***", named, flags=re.IGNORECASE)
