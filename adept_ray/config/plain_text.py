"""What is printed where the terminal, or the file behind it, knows no UTF-8, and where nobody reads it."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BROKEN_PIPE = 141  # what a shell reports for a process whose output nobody reads any more
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


@contextmanager
def end_with_reader() -> Iterator[None]:
    """Within this, the process ends without a word once nobody reads its stdout, as behind ``| head``."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # at exit Python would complain of what it can't write
    except BrokenPipeError:
        if has_reader(sys.stdout.fileno()):
            raise  # another pipe broke
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


def has_reader(descriptor: int) -> bool:
    """Whether what is written there can still be read; always of what is no pipe."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))
