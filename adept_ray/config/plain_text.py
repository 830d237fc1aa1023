"""What is printed where the terminal, or the file behind it, knows no UTF-8."""

from __future__ import annotations

import codecs
import io
import sys

PLAIN = "adept_ray.plain"  # name of the way to write such characters
LETTERS = {
    "–": "-", "−": "-", "·": ".", "×": "x", "±": "+-", "Δ": "d", "→": "->", "←": "<-", "…": "...", "█": "#",
    "✓": "+", "✗": "x", "λ": "lambda", "σ": "sigma", "≤": "<=", "≥": ">=", "“": '"', "”": '"', "’": "'",
    "━": "-", "╸": "-", "╺": "-",
}  # fmt: skip


def write_plainly(problem: UnicodeError) -> tuple[str, int]:
    """A handler of codecs: our own signs by letters that every terminal has, other characters by ``?``."""
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    letters = problem.object[problem.start : problem.end]
    return "".join(LETTERS.get(letter, "?") for letter in letters), problem.end


def allow_any_terminal() -> None:
    """Let this process print all that it has to say, whatever stdout and stderr can hold."""
    codecs.register_error(PLAIN, write_plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN)
