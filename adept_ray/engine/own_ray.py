"""What Ray needs of this machine where a command starts it: a folder for its files, and a token."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import describe_os_fault, shorten_place

LONGEST_SOCKET = 107  # bytes of a socket's path, by Linux
SOCKET = (
    "ray/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"  # the longest that Ray makes there
)
LEAST_ROOM = 64 * 2**20  # bytes that Ray's logs and ours need at least
REMEDY = "set RAY_TMPDIR to a folder with a short path, room, and permission to write"


def find_ray_folder() -> Path:
    """The folder in which Ray makes one of its own, as it looks for it."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def check_ray_folder() -> None:
    """Raise :class:`UserError` where Ray can't keep its files; it would fail, or wait for half a minute."""
    folder = find_ray_folder()
    where = f"Ray can't keep its files in {shorten_place(str(folder))}"
    if (too_long := len(os.fsencode(folder / SOCKET)) - LONGEST_SOCKET) > 0:
        raise UserError(f"{where}, whose path is {too_long} bytes too long for sockets: {REMEDY}")
    try:
        own = folder / "ray"
        own.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # it belongs to another user
            own.chmod(0o777)  # as Ray does, for the runs of others
        with tempfile.TemporaryFile(dir=own):
            room = shutil.disk_usage(own).free
    except OSError as problem:
        raise UserError(f"{where} ({describe_os_fault(problem) or problem}): {REMEDY}") from None
    if room < LEAST_ROOM:
        raise UserError(f"{where}, where {room / 2**20:.0f} MiB are left: {REMEDY}")


def bring_token() -> None:
    """Give Ray a token for its own cluster where there is no home folder in which it could keep one."""
    if "RAY_AUTH_MODE" in os.environ or "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    try:
        kept = Path.home() / ".ray"
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=kept):
            return
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
