"""Processes forked from one that has their imports done: commands, and Ray's Python processes.

A command or a worker of Ray's imports for up to ten seconds before a tiny training that takes none. Here one
process, the stem, imports all of that once and forks itself for each. Ray starts its processes as
``python SCRIPT …`` and is made to start this file in place of the script: a stand-in, which asks the stem for
a fork, hands its own outputs on, lives as long as the fork does, and ends as that ended. A fork whose
environment differs in what is read by imports isn't made; then the stand-in becomes the real process.

This file itself imports nothing of ours, and what takes long only where the stem begins.
"""

import argparse
import array
import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

PLACE = "ADEPT_RAY_TEST_STEM"  # variable with the path of the stem's socket
SESSIONS = "sessions"  # folder beside the socket: process id of a fork → session of what asked for it
# What commands, workers and agents import, but for Ray, whose library reads the environment as it is loaded:
# of ours what does without Ray.
IMPORTED = (
    "adept_ray.engine.crew",
    "adept_ray.report.comparison_page",
    "adept_ray.report.search_page",
    "adept_ray.rivals.comparison",
    "adept_ray.run.flags",
    "adept_ray.search.choice",
    "adept_ray.training.export",
    "aiohttp.web",
    "aiohttp_cors",
    "click",
    "colorful",
    "datasets",
    "google.protobuf.field_mask_pb2",
    "google.protobuf.json_format",
    "grpc.aio",
    "jsonschema",
    "matplotlib.figure",
    "msgpack",
    "opencensus.stats.stats",
    "opentelemetry.exporter.prometheus",
    "optuna",
    "pandas",
    "pdb",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic.dataclasses",
    "pydantic.main",
    "pydantic.v1",
    "requests",
    "rich.live",
    "rich.panel",
    "rich.progress",
    "safetensors.torch",
    "sqlalchemy.orm",
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "transformers.convert_slow_tokenizer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "tyro",
    "tyro._backends._tyro_backend",
)
# Variables that these read while they are imported.
READ_EARLY = ("CUDA", "HF_", "KMP_", "MKL", "OMP_", "OPENBLAS", "PYTHON", "TORCH", "TRANSFORMERS")
READ_LATE = {"PYTHONBREAKPOINT", "TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_CACHE_DIR"}  # but not so
SETUP_WORKER = "setup_worker.py"  # what Ray starts in place of a worker, which becomes it
FORKED = {"dashboard", "dashboard_agent", "log_monitor", "monitor", "runtime_env_agent"}
STEMS: list[subprocess.Popen] = []


# --- the stem -------------------------------------------------------------------------------------


def run_stem(place: str) -> None:
    """Import, listen at `place`, and fork for whoever asks, until this process's input ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the first collection in a fork touches, and so copies, all that was imported
    Stem(place).serve()


class Stem:
    """The process that forks; it starts no thread, for those don't come along."""

    def __init__(self, place: str) -> None:
        self.sessions = Path(place).parent / SESSIONS
        self.sessions.mkdir()
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{place}-to-be")
        self.listener.listen(64)
        os.rename(f"{place}-to-be", place)  # who sees it is heard
        self.alarm, ring = os.pipe()
        for end in (self.alarm, ring):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
        self.forks: dict[int, socket.socket] = {}
        for source in (self.listener, self.alarm, sys.stdin):
            self.selector.register(source, selectors.EVENT_READ)

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    self.answer(self.listener.accept()[0])
                elif key.fileobj == self.alarm:
                    with suppress(BlockingIOError):
                        os.read(self.alarm, 4096)
                elif key.fileobj is sys.stdin:
                    for pid in self.forks:
                        os.kill(pid, signal.SIGKILL)
                    return
                else:
                    self.pass_signal(key.data)
            self.reap()

    def answer(self, asker: socket.socket) -> None:
        """Fork for who asks, or say no."""
        try:
            request, outputs = receive_request(asker)
        except (OSError, struct.error, ValueError):  # who asked is gone already
            asker.close()
            return
        if request["kind"] == "ray" and find_differences(request["env"]):
            asker.sendall(b"n")
            asker.close()
            for output in outputs:
                os.close(output)
            return
        if pid := os.fork():
            self.forks[pid] = asker
            (self.sessions / str(pid)).write_text(str(request["session"]))
            for output in outputs:
                os.close(output)
            self.selector.register(asker, selectors.EVENT_READ, pid)
            asker.sendall(b"y" + struct.pack("i", pid))
            return
        status = 1
        try:
            self.leave(asker)
            status = become(request, outputs)
        finally:
            os._exit(status)

    def leave(self, asker: socket.socket) -> None:
        """In a fork: let go of all that is the stem's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        self.listener.close()
        os.close(self.alarm)
        for other in (asker, *self.forks.values()):
            other.close()

    def pass_signal(self, pid: int) -> None:
        """Send a fork what its stand-in was sent; where that is gone, so is the fork."""
        asker = self.forks[pid]
        sent = asker.recv(1)
        if not sent:
            self.selector.unregister(asker)
        os.kill(pid, sent[0] if sent else signal.SIGKILL)

    def reap(self) -> None:
        """Tell those who wait of forks that have ended."""
        while self.forks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            asker = self.forks.pop(pid)
            (self.sessions / str(pid)).unlink()
            if asker in self.selector.get_map():
                self.selector.unregister(asker)
            with suppress(OSError):  # nobody waits any more
                asker.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
            asker.close()


def find_differences(env: dict[str, str]) -> list[str]:
    """Variables by which what was imported here might differ from what would be imported there."""
    names = {name for name in {*env, *os.environ} if name.startswith(READ_EARLY) and name not in READ_LATE}
    return sorted(name for name in names if env.get(name) != os.environ.get(name))


def become(request: dict, outputs: list[int]) -> int:
    """In a fork: be what was asked for; returns its exit status."""
    if request["kind"] == "script":
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # heard, whatever a background shell says
    else:
        os.setpgid(0, 0)
    for number, output in enumerate(outputs):
        os.dup2(output, number)
        os.close(output)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    if request["kind"] == "script":
        patch_ray()  # not before: Ray's library reads the environment as it is loaded
    sys.argv = request["argv"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    # Ray makes itself others, and what is thrown away then must not close what is underneath.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode, 1, closefd=False) for n, mode in enumerate("rww"))
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


# --- who asks -------------------------------------------------------------------------------------


def ask_stem(
    kind: str,
    argv: list[str],
    folder: str,
    env: dict[str, str],
    outputs: Sequence[int],
    blocked: Iterable[int] = (),
) -> tuple[int, socket.socket] | None:
    """A fork's process id and a socket to the stem, which tells how it ended; None where there is none.

    `kind` is "script" or "ray", `outputs` has the numbers of its input and its two outputs, `blocked` the
    signals that it doesn't hear.
    """
    stem = socket.socket(socket.AF_UNIX)
    stem.connect(os.environ[PLACE])
    request = {"kind": kind, "argv": argv, "folder": folder, "env": env, "session": os.getsid(0)}
    request["blocked"] = [int(each) for each in blocked]
    data = json.dumps(request).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", outputs))]
    stem.sendmsg([struct.pack("i", len(data))], rights)
    stem.sendall(data)
    if receive(stem, 1) != b"y":
        return None
    (pid,) = struct.unpack("i", receive(stem, 4))
    return pid, stem


def receive_request(asker: socket.socket) -> tuple[dict, list[int]]:
    """What a stand-in asks for, and its input and outputs."""
    head, outputs, _, _ = socket.recv_fds(asker, 4, 3)
    return json.loads(receive(asker, *struct.unpack("i", head))), outputs


def receive(source: socket.socket, size: int) -> bytes:
    """So many bytes; fewer where there is an end."""
    found = b""
    while len(found) < size and (piece := source.recv(size - len(found))):
        found += piece
    return found


def stand_in() -> int:
    """Have the stem fork what Ray wanted to start, and end as that ends; returns its exit status."""
    argv, env = sys.argv[1:], dict(os.environ)
    is_worker = Path(argv[0]).name == "default_worker.py"
    real = [sys.executable, "-u", *argv]
    if is_worker:
        real[2:2] = [str(Path(argv[0]).with_name(SETUP_WORKER))]
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("--serialized-runtime-env-context", default="{}")
        parser.add_argument("--language")
        known, argv = parser.parse_known_args(argv)
        context = json.loads(known.serialized_runtime_env_context)
        added = context.get("env_vars", {})
        env |= added
        plain = context.get("py_executable", sys.executable) == sys.executable
        if not plain or context.get("command_prefix") or any("$" in value for value in added.values()):
            os.execv(sys.executable, real)
    signals = signal.SIGTERM, signal.SIGINT
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    made = ask_stem("ray", argv, os.getcwd(), env, [0, 1, 2], blocked)
    if made is None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.execv(sys.executable, real)
    _, stem = made
    for each in signals:
        signal.signal(each, lambda number, _: stem.sendall(bytes([number])))
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return end_alike(receive_status(stem))


def receive_status(stem: socket.socket) -> int:
    """Wait for the exit status of a fork; negative where a signal ended it, as if killed if the stem is."""
    told = receive(stem, 4)
    return struct.unpack("i", told)[0] if told else -signal.SIGKILL


def end_alike(status: int) -> int:
    """End by the signal that ended the fork, or return its exit status."""
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def patch_ray() -> None:
    """Have a Ray that this process starts start its processes by way of the stem."""
    from ray._private import ray_constants, services

    command = services._build_python_executable_command_memory_profileable
    start = services.start_ray_process
    ray_constants.SETUP_WORKER_FILENAME = __file__

    def build(component, *args, **named):  # of what the raylet starts
        return [*command(component, *args, **named), *([__file__] if component in FORKED else [])]

    def begin(words, kind, *args, **named):  # what is started here
        if kind in FORKED and __file__ not in words:
            script = next(number for number, word in enumerate(words) if word.endswith(".py"))
            words = [*words[:script], __file__, *words[script:]]
        return start(words, kind, *args, **named)

    services._build_python_executable_command_memory_profileable = build
    services.start_ray_process = begin  # type: ignore[assignment]  # of any arguments


def start_stem() -> None:
    """Start the stem of this process, unless that is done: it ends with this process."""
    if PLACE in os.environ:
        return
    place = str(Path(tempfile.mkdtemp(prefix="stem-")) / "socket")
    stem = subprocess.Popen([sys.executable, __file__, "--stem", place], stdin=subprocess.PIPE)
    os.environ[PLACE] = place
    while not Path(place).exists():
        assert stem.poll() is None, "the stem could not be started"
        time.sleep(0.05)
    atexit.register(shutil.rmtree, Path(place).parent, ignore_errors=True)
    STEMS.append(stem)


def find_session(pid: int) -> int | None:
    """The session of what asked for a fork; None for other processes."""
    try:
        return int((Path(os.environ[PLACE]).parent / SESSIONS / str(pid)).read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    if sys.argv[1] == "--stem":
        run_stem(sys.argv[2])
    else:
        sys.exit(stand_in())
