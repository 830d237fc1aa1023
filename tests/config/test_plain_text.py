"""A command whose output nobody reads any more ends without a word."""

import os
import subprocess
import sys

import pytest

from adept_ray.config.plain_text import BROKEN_PIPE

BEGIN = "from adept_ray.config.plain_text import end_with_reader\nwith end_with_reader():\n    "
ENDINGS = {
    "many lines": "while True: print(1)",
    "a line that waits until the end": "print(1)",
    "a command that ends by itself": "print(1); raise SystemExit(2)",
}


def run_without_reader(code):
    """The end of a Python process that writes to a pipe that was closed at its other end."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [sys.executable, "-c", BEGIN + code], stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)


@pytest.mark.slow
@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS)
def test_without_a_reader_it_ends_quietly(code):
    """As behind ``| head``, with the status that a shell gives such a process, and nothing on stderr."""
    done = run_without_reader(code)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")


@pytest.mark.slow
def test_another_pipe_that_breaks_is_told():
    """That is a fault of something else, as long as somebody reads what is printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"{BEGIN}raise BrokenPipeError('worker')"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "BrokenPipeError: worker" in done.stderr
