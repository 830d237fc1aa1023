"""Commands as processes: as a shell starts them, or forked from one that has their imports done."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from forking import ask_stem, receive_status, start_stem

ROOT = Path(__file__).parents[1]
SESSIONS: set[int] = set()  # of the commands that were started


def heed_interrupts():
    """Ctrl-C is heard, though it isn't by what a shell has started in the background, nor by its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start_script(script, flags, folder, env, stderr=subprocess.STDOUT):
    """A script as a shell starts it: a Python of its own, in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / script), *flags],
        cwd=folder,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    SESSIONS.add(process.pid)
    return process


class ForkedScript:
    """A script in a process that has its imports done; it has what the tests use of :class:`Popen`."""

    def __init__(self, script, flags, folder, env, stderr=subprocess.STDOUT):
        start_stem()
        ends = [os.pipe() for _ in range(1 if stderr == subprocess.STDOUT else 2)]
        written = [end for _, end in ends]
        with open(os.devnull) as nothing:
            outputs = nothing.fileno(), written[0], written[-1]
            argv = [str(ROOT / "scripts" / script), *flags]
            made = ask_stem("script", argv, str(folder), os.environ | env, outputs)
        assert made  # only a process of Ray's may be denied one
        self.pid, self._stem = made
        for end in written:
            os.close(end)
        self.stdout, *others = (os.fdopen(end, encoding="utf-8") for end, _ in ends)
        self._stderr = others[0] if others else None
        self.returncode = None
        SESSIONS.add(self.pid)

    def poll(self):
        with suppress(subprocess.TimeoutExpired):
            self.wait(1e-3)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            self._stem.settimeout(timeout)
            try:
                self.returncode = receive_status(self._stem)
            except TimeoutError:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
        return self.returncode

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self):
        """What is left of both outputs, once nobody can write there any more."""
        printed = self.stdout.read()
        complained = self._stderr.read() if self._stderr else None
        self.wait()
        return printed, complained
