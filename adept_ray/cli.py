"""From the command line to a command: flags from a spec's fields, errors as one sentence."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import tyro

from adept_ray.config import Interrupted, Spec, UserError, validated

INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C


def main(spec: type[Spec], command: str, description: str | None) -> NoReturn:
    """Parse the flags of `spec`, call ``adept_ray.commands.<command>`` and exit with its status.

    Bad input is one sentence on stderr and status 2.
    """
    # Unchecked here, so that our own message, not a validator's report, is what a person reads.
    values = tyro.cli(spec, description=description)
    try:
        checked = validated(spec, values.model_dump(), where="command line")
        getattr(importlib.import_module("adept_ray.commands"), command)(checked)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        print(f"interrupted; to go on from here: {stopped}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        print("interrupted before anything was worth keeping", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(0)
