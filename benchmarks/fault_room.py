"""The room of faults.py: a tiny backbone and corpora, and commands in which something is made to go wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

# Of all searches: with a study in a database what is proposed depends on the place of the results.
NAME = "search"
SPACE = """
parameters:
  k: {int: [1, 3]}
  recompute_every: {choice: [4, 8]}
  base_lr: {log: [0.0005, 1.0e+37]}
judge_after: 1
first:
  - {k: 2, recompute_every: 4, base_lr: 0.0005}
  - {k: 3, recompute_every: 8, base_lr: 0.01}
  - {k: 1, recompute_every: 4, base_lr: 1.0e+37}
"""
# Six trials, of which the last two are proposed by what the others reached.
FLAGS: dict[str, object] = {
    "backbone": "backbone",
    "general": "general.jsonl",
    "domain": "domain.jsonl",
    "search-space": "space.yaml",
    "precision": "float32",
    "seq-len": 32,
    "probe-tokens": 256,
    "remeasure-tokens": 64,
    "validation-tokens": 256,
    "test-tokens": 256,
    "tokens-per-trial": 3072,
    "trials": 6,
}
# Whatever is faster elsewhere, nothing from the hub, no compiler: the same numbers in every round.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


@dataclass(frozen=True)
class Results:
    """What a search leaves."""

    table: Sequence[Mapping[str, str]]
    """trials.csv without the seconds."""
    model: str
    """Digest of the exported weights."""
    missing: Sequence[str]
    """Files that should be there."""


@dataclass(frozen=True)
class Quiet:
    """A search in which nothing went wrong."""

    stages: Mapping[str, float]
    """Seconds of each stage, and of what comes before the first."""
    results: Results

    def compare(self, other: Results) -> str:
        """What is different in another search's results; empty for nothing."""
        if other.missing:
            return f"without {', '.join(other.missing)}"
        if len(other.table) != len(self.results.table):
            return f"another table, of {len(other.table)} rows"
        for mine, theirs in zip(self.results.table, other.table, strict=True):
            if names := [name for name in mine if mine[name] != theirs.get(name)]:
                cells = (f"{name} {theirs.get(name)}, not {mine[name]}" for name in names)
                return f"another table: {mine['trial']}: {'; '.join(cells)}"
        return "" if other.model == self.results.model else "another model"


def read_results(folder: Path) -> Results:
    """What a search left in its folder."""
    names = ("best.yaml", "trials.csv", "importance.json", "rates.jsonl", "run.json", "report.html")
    weights = folder / "model" / "model.safetensors"
    missing = [name for name in (*names, "model/model.safetensors") if not (folder / name).exists()]
    table: list[dict[str, str]] = []
    if "trials.csv" not in missing:
        with (folder / "trials.csv").open() as file:
            table = [
                {key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)
            ]
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else ""
    return Results(table, digest, missing)


class Command:
    """A command at work; its events and its complaints are read as they come."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.started = time.monotonic()
        self.begins: dict[str, float] = {}
        """Stage → seconds until it began."""
        self._plain: list[str] = []
        self._said: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_complaints, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                self._plain.append(line.strip())
                continue
            if event["event"] == "stage_began":
                self.begins.setdefault(event["stage"], time.monotonic() - self.started)

    def _read_complaints(self) -> None:
        for line in self.process._stderr:
            self._said.append(line)

    def wait_for_stage(self, name: str) -> None:
        """Wait until that stage begins, or the command ends."""
        while name != "start" and name not in self.begins and self.runs():
            time.sleep(0.02)

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None, and it is killed, if it hasn't ended in time."""
        try:
            status: int = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return None
        for reader in self._readers:
            reader.join(2)  # agents of Ray's that are still to go may hold the other end
        return status

    def read_sentence(self) -> str:
        """What it wrote to stderr."""
        return "".join(self._said).strip()

    def printed_plainly(self) -> str:
        """The first line on stdout that is no event."""
        return self._plain[0] if self._plain else ""


class FaultRoom:
    """A folder in which searches run, each with a Ray of its own, and in which writes can be made to fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._control = folder / "failing"
        library = folder / "failing_writes.so"
        source = HERE / "failing_writes.c"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        os.environ.update(ENVIRONMENT)
        # So that the process whose forks all others are has it.
        os.environ.update(LD_PRELOAD=str(library), FAILING_WRITES=str(self._control))
        from common import save_tiny_backbone, write_corpus

        save_tiny_backbone(folder / "backbone")
        write_corpus(folder / "general.jsonl", seed=1)
        write_corpus(folder / "domain.jsonl", seed=2, domain="medical")
        (folder / "space.yaml").write_text(SPACE)
        self._stopped: list[tuple[int, threading.Timer]] = []

    def list_search(self) -> list[str]:
        """The command line of the search."""
        flags = FLAGS | {"name": NAME, "study": f"sqlite:///{self.folder}/study.db"}
        words = (part for flag, value in flags.items() for part in (f"--{flag}", str(value)))
        return ["tune_k.py", *words, "--no-dashboard", "--json"]

    def start_command(self, command: Sequence[str]) -> Command:
        """Start a script with its flags, in a process that has its imports done."""
        from processes import ForkedScript

        cache = {"ADEPT_RAY_CACHE": str(self.folder / "cache")}
        return Command(ForkedScript(command[0], command[1:], self.folder, cache, subprocess.PIPE))

    @property
    def results(self) -> Path:
        """The results folder of the search."""
        return self.folder / "results" / NAME

    def has_begun(self) -> bool:
        """Whether the search has a run.json, so that there is something to go on with."""
        return (self.results / "run.json").exists()

    def clear(self, cold: bool) -> None:
        """Forget the search before, and if it is to be `cold` also what is in the cache."""
        for folder in (self.results, *([self.folder / "cache"] if cold else [])):
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.folder.glob("study.db*"):
            file.unlink()

    def measure_quiet(self) -> Quiet:
        """Search without a fault."""
        command = self.start_command(self.list_search())
        status = command.wait(600)
        assert status == 0, command.read_sentence()
        ends = [*list(command.begins.values())[1:], time.monotonic() - command.started]
        lengths = {name: end - begin for (name, begin), end in zip(command.begins.items(), ends, strict=True)}
        first = next(iter(command.begins.values()))
        results = read_results(self.results)
        assert not results.missing
        self.leave(100)
        return Quiet({"start": first, **lengths}, results)

    # -------------------------------------------------------- faults

    def fail_writes(self, pattern: str, error: int, once: bool) -> None:
        """From now on a write to a path of that pattern fails with an error's number, or all of them do."""
        made = self._control.with_suffix(".made")
        made.write_text(f"{error} {'once' if once else 'always'} {pattern}")
        made.rename(self._control)

    def has_failed_writes(self) -> bool:
        """Whether a write has failed since the last look."""
        hit = self._control.with_suffix(".hit")
        found = hit.exists()
        hit.unlink(missing_ok=True)
        return found

    def find_processes(self, command: Command, name: str) -> list[int]:
        """Ids of a command's processes whose names begin so, or end so for Ray's own programs."""
        if not name:
            return [command.process.pid]
        found = list_processes({command.process.pid})
        return [pid for pid, line in found.items() if line.startswith(name) or line.endswith(f"/{name}")]

    def hurt(self, pid: int, kind: str, seconds: float) -> None:
        """Kill a process, or stop it for so many seconds."""
        os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        if kind == "stop":
            timer = threading.Timer(seconds, self._wake, [pid])
            self._stopped.append((pid, timer))
            timer.start()

    def _wake(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return

    def end_faults(self) -> None:
        """Let writes go well again, and what is still stopped go on."""
        self._control.unlink(missing_ok=True)
        for pid, timer in self._stopped:
            timer.cancel()
            self._wake(pid)
        self._stopped.clear()

    def leave(self, seconds: float) -> list[str]:
        """Wait until none of the commands' processes works any more; kills the rest, and returns their names.

        Agents of a node that was killed wait a minute for it before they go, and do nothing; they are no
        fault, and killed at once.
        """
        from processes import SESSIONS

        def find_working() -> dict[int, str]:
            return {pid: name for pid, name in list_processes(SESSIONS).items() if "Agent" not in name}

        deadline = time.monotonic() + seconds
        while (left := find_working()) and time.monotonic() < deadline:
            time.sleep(0.5)
        for pid in list_processes(SESSIONS):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        SESSIONS.clear()
        return sorted(set(left.values()))


def list_processes(sessions: set[int]) -> dict[int, str]:
    """Id → name of every process of Ray's that commands with these sessions started, directly or not."""
    from forking import find_session

    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (
                (path / "cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
                .partition(" ")[0]
            )
            real = int((path / "stat").read_text().rpartition(")")[2].split()[3])
            session = find_session(int(path.name)) or real
        except OSError:
            continue
        if session in sessions and (name.startswith("ray::") or name.endswith(("/raylet", "/gcs_server"))):
            found[int(path.name)] = name
    return found
