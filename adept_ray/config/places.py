"""Paths and URIs as they are given, made absolute, without secrets; where the search spaces are that ship."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
)

from adept_ray.config.errors import UserError, suggest_names

PACKAGE = Path(__file__).parents[1]
# A wheel holds them inside the package; a checkout has them beside it.
SEARCH_SPACES = next(
    (home / "search_spaces" for home in (PACKAGE, PACKAGE.parent) if (home / "search_spaces").is_dir()),
    PACKAGE / "search_spaces",
)


QUERY, WEB_QUERY = re.compile(r"\?[\w.%-]+=[^?]*$"), re.compile(r"\?.*$", re.DOTALL)


WEIGHT_MARK = "/="
"""What divides any place from its weight, also one in whose own name or query an ``=`` is."""
# What of a signed web address changes each time that it is signed.
SIGNED = re.compile(
    r"(?<=[?&])(?:X-(?:Amz|Goog)-[\w-]+|Signature|Expires|AWSAccessKeyId|"
    r"sig|se|st|sv|skoid|sktid|skt|ske|sks|skv)=[^&]*&?"
)


def refuse_secret(place: object) -> str:
    """A path or URI as it is kept; one with a secret is refused, because it is printed and written down."""
    text = os.path.expanduser(str(place))
    if re.search(r"://[^/@:]*:(?!\d+/).*@", text):  # but for HOST:PORT/, whose path may have an @
        raise ValueError(
            "a secret in a URI would be printed: leave it to the environment, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return text.rstrip("/") or text[:1]  # "/" is one, too


def split_query(place: str) -> tuple[str, str]:
    """A place without its query, which may hold a signature, and that; it is empty where there is none.

    Outside the web a ``?`` is a glob's, unless ``name=value`` follows.
    """
    if "://" not in place:
        return place, ""
    mark = WEB_QUERY if place.startswith(("http://", "https://")) else QUERY
    found = mark.search(place)
    return (place[: found.start()], found[0][1:]) if found else (place, "")


def drop_signature(place: str) -> str:
    """A place without what signs it, the rest of its query included: it names the same text."""
    return SIGNED.sub("", place)


def drop_queries(text: str) -> str:
    """A text without the queries of its web addresses: some are signed, which is as good as a password."""
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)


def suggest_weight(place: str) -> str:
    """For a place that isn't there: how its end is written as a weight; empty where it can't be one."""
    found = re.fullmatch(r"(.*[^/])/*=(\d[\d.]*)", place)
    if not found:
        return ""
    return f"; with {found[2]} as its weight it is written {found[1]}{WEIGHT_MARK}{found[2]}"


def make_absolute(place: str) -> str:
    """A path made absolute, because workers are in other folders; a URI unchanged."""
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
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:  # this user has none
        raise UserError(
            f"{given}: this user has no home folder: set HOME, or set ADEPT_RAY_CACHE to a folder"
        ) from None


def mask_password(study: str) -> str:
    """A ``--study`` as it is printed: ``***`` in place of the password of a database's URL.

    It goes by the text alone, because a URL that can't be read is printed, too.
    """
    named = re.sub(r"(:/{1,2}[^:/@]*):.*@", r"\1:***@", study)  # up to the last @: some passwords have one
    return re.sub(r"([?&]\w*(?:password|passwd|pwd)=)[^&]*", r"\1***", named, flags=re.IGNORECASE)


def list_search_spaces() -> dict[str, Path]:
    """Name → file of the search spaces that ship, such as ``quick``."""
    return {file.stem: file for file in sorted(SEARCH_SPACES.glob("*.yaml"))}


def find_search_space(given: str | Path) -> Path:
    """The file of a search space: one that ships by its bare name, any other by its path.

    Raises :class:`UserError` for a bare name that is neither.
    """
    name, path, shipped = str(given), Path(given).expanduser(), list_search_spaces()
    if name in shipped:
        return shipped[name]
    if path.name == name and not path.exists():
        known = suggest_names(name, shipped)
        raise UserError(f"unknown search space '{name}': {known} (a path to a .yaml file will do as well)")
    return path
