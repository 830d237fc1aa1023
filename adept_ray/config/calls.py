"""Commands as somebody types them: the scripts of a checkout, or the installed ``adept-ray``."""

from __future__ import annotations

import shlex
import sys

from adept_ray.config.mixtures import hide_signature
from adept_ray.config.places import PACKAGE

PROGRAM = "adept-ray"
SCRIPTS = PACKAGE.parent / "scripts"  # a checkout has them, a wheel hasn't


def format_command(command: str, called: str = "") -> str:
    """`command`, such as ``tune-k --resume``, as it is to be typed.

    That is the form of `called`, by default the call of this process; without a checkout it is always
    ``adept-ray …``.
    """
    name, gap, flags = command.partition(" ")
    if (called or sys.argv[0]).startswith(f"{PROGRAM} ") or not SCRIPTS.is_dir():
        return f"{PROGRAM} {command}"
    return f"python scripts/{name.replace('-', '_')}.py{gap}{flags}"


def format_own_call() -> str:
    """The command line of this process, without what signs web addresses in it."""
    words = [hide_signature(word) for word in sys.argv[1:]]
    if sys.argv[0].startswith(f"{PROGRAM} "):  # main() puts the subcommand there
        return shlex.join([*sys.argv[0].split(), *words])
    return shlex.join(["python", sys.argv[0], *words])
