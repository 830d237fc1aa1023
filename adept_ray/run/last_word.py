"""The last word of a command whose process dies without one: it was killed, or Ray ended it.

Ray's library ends the process that it is loaded into, at once and with status 1, where the node or the head
of its cluster is gone. Nothing of that process can say so, and the kernel leaves as little time. So a process
beside it, which only waits, says what is to be typed next.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

WAITING = "import os, sys; os.read(0, 1) or os.write(2, sys.argv[1].encode())"


@contextmanager
def leave_last_word(sentence: str) -> Iterator[None]:
    """Have `sentence` said on stderr if this process ends inside; an exception is an end that can speak.

    Where no process can be started nothing is said.
    """
    try:
        waiting = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WAITING, f"{sentence}\n"],
            stdin=subprocess.PIPE,  # which the kernel closes with this process
            stdout=subprocess.DEVNULL,  # whoever reads this command's output waits for nobody else
            start_new_session=True,  # Ctrl-C is for the command
        )
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # it was killed
            waiting.communicate(b".")
