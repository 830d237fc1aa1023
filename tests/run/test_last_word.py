"""A command that dies without a word leaves one; who ends in another way has his own."""

import subprocess
import sys

import pytest
from processes import heed_interrupts

COMMAND = """
import os, signal
from adept_ray.run.last_word import leave_last_word
with leave_last_word("error: go on with this"):
    {end}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os._exit(1)", "error: go on with this\n"),  # as Ray's library does
        ("os.kill(os.getpid(), signal.SIGKILL)", "error: go on with this\n"),
        ("pass", ""),
        ("raise SystemExit(2)", ""),
    ],
)
def test_only_a_death_leaves_the_word(end, said):
    """And no process is left that would keep whoever reads the output waiting."""
    command = [sys.executable, "-c", COMMAND.format(end=end)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stderr == said


@pytest.mark.slow
def test_ctrl_c_does_not_reach_who_waits():
    """The group of the command is interrupted, and the command alone answers."""
    end = "os.setpgid(0, 0); os.killpg(0, signal.SIGINT); signal.pause()"
    code = COMMAND.replace("with leave", "os.setpgid(0, 0)\nwith leave").format(end=end)
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=heed_interrupts)
    assert "KeyboardInterrupt" in ended.stderr and "go on with this" not in ended.stderr
