"""Errors for persons: what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class UserError(ValueError):
    """Bad input: one sentence saying what is wrong, where, and what would be right."""


class BadContent(UserError):
    """Something that a file holds is damaged, or isn't what its ending says; the next thing may be good."""


class UnfinishedRun(UserError):
    """A fault that stopped a run half-way. What is finished is kept, so a command that resumes it helps."""


class InterruptedRun(Exception):
    """A run was stopped half-way; the message is the command that resumes it."""


MAX_LISTED = 20  # names in an error message


def suggest_names(name: str, known: Iterable[str]) -> str:
    """A list of known names for an error message, the closest to `name` first when one is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return f"known: {', '.join(known[:MAX_LISTED])}{more}"


def describe_kind(value: object) -> str:
    """What kind of value it is, in plain words."""
    kinds = {bool: "yes or no", int: "a number", float: "a number", str: "a text", list: "a list"}
    if isinstance(value, Mapping):
        return "a struct"
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")


# How the lines begin that Ray Data puts after an error of a task, and torch after one of a compiler or a GPU.
ADVICE = (
    "To change retry attempts",
    "Failed to apply UDF",
    "ray.exceptions.UserCodeException",
    "The above exception was the direct cause",
    "\x1b[36mray::",
    "Set TORCHDYNAMO_VERBOSE=1",
    "Search for `cuda",
    "CUDA kernel errors might be",
    "For debugging consider",
    "Compile with `TORCH_USE_CUDA_DSA`",
)


def first_line(problem: object) -> str:
    """The first line of an error's text."""
    return str(problem).strip().partition("\n")[0]


def find_cause(problem: object) -> str:
    """The last line of an error's text: there an error that came through several processes names its cause.

    Lines that Ray Data and torch add, on how to look for a cause, are passed over.
    """
    lines = [line.strip() for line in str(problem).splitlines()]
    causes = (line for line in reversed(lines) if line and not line.startswith(ADVICE))
    return next(causes, "an error without a message")


def find_point(problem: object) -> str:
    """The line of an error's text that says what is wrong: of one that came with a traceback the last."""
    text = str(problem)
    return find_cause(text) if "Traceback" in text or "ray::" in text else first_line(text)


def shorten_error(problem: Exception) -> str:
    """The first 200 characters of an error's text, on one line."""
    return " ".join(str(problem).split())[:200] or type(problem).__name__
