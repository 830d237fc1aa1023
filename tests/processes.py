"""Commands as processes: as a shell starts them, or forked from one that has their imports done."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SESSIONS: set[int] = set()  # of the commands that were started
# What every command imports; in a process of its own that takes longer than a tiny training.
IMPORTED = (
    "matplotlib.figure",
    "optuna",
    "ray.data",
    "ray.train.torch",
    "ray.tune.search.optuna",
    "rich.live",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "tyro",
)


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
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        ends = [context.Pipe(duplex=False) for _ in range(1 if stderr == subprocess.STDOUT else 2)]
        written = [end for _, end in ends]
        args = str(ROOT / "scripts" / script), flags, str(folder), env, written
        self._process = context.Process(target=run_script, args=args, daemon=False)
        self._process.start()
        for end in written:
            end.close()
        self.stdout, *others = (os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end, _ in ends)
        self._stderr = others[0] if others else None
        self.pid = self._process.pid
        SESSIONS.add(self.pid)

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.pid, timeout)
        return self._process.exitcode

    def kill(self):
        self._process.kill()

    def communicate(self):
        """What is left of both outputs, once nobody can write there any more."""
        printed = self.stdout.read()
        complained = self._stderr.read() if self._stderr else None
        self.wait()
        return printed, complained


def run_script(path, flags, folder, env, outputs):
    """In a forked process: become what a shell would have started."""
    os.setsid()
    heed_interrupts()
    os.chdir(folder)
    os.environ.update(env)
    for target, output in zip((1, 2), (outputs[0], outputs[-1]), strict=True):
        os.dup2(output.fileno(), target)
    for output in outputs:
        output.close()
    sys.argv = [path, *flags]
    status = 0
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    atexit._run_exitfuncs()  # which a process of multiprocessing's leaves out
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
