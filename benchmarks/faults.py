"""What becomes of a search whose processes are killed or stopped, and of one whose writes fail.

python benchmarks/faults.py                           # 200 rounds: a night on two cores
python benchmarks/faults.py --rounds 10 --stop 10     # a try
python benchmarks/faults.py --table                   # the tables of docs/faults.md, of the rows so far

A round is a tiny search in which one thing goes wrong at a random moment; its number and the seed fix which.
The command that its last sentence names is given until there are results; only where run.json isn't there yet
may a sentence name none, and the search is begun again. Then its table of trials and its
model must be those of a quiet search, byte by byte. Each round appends a row to the file of rows, and one
that has a row already is left out, so what was stopped goes on. Writes fail by a library that is compiled
here: without a C compiler those rounds are refused.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from fault_room import NAME, Command, FaultRoom, Quiet, read_results  # noqa: E402

ROWS = HERE / "results" / "faults.jsonl"
# What is killed or stopped → how the names of its processes begin, as Ray titles them.
PROCESSES = {
    "driver": "",
    "board": "ray::Board",
    "crew": "ray::TrainController",
    "worker": "ray::RayTrainWorker",
    "trial": "ray::ImplicitFunc",
    "raylet": "raylet",
    "gcs": "gcs_server",
}
# Whose write fails → pattern of its paths, and the stages in which it begins to fail.
WRITES = {
    "blocks": ("*/cache/*", ("start", "assets", "blocks")),
    "a checkpoint": ("*/ray/trials/*", ("probe", "search")),
    "the table of trials": ("*/trials.*", ("probe", "search")),
    "Tune's records": ("*/search/*", ("probe", "search")),
    "Optuna's study": ("*/study.db*", ("start", "probe", "search")),
    "the export": ("*/conclude/*", ("search", "test")),
    "results": (f"*/results/{NAME}/*.*", ("start", "blocks", "probe", "search", "test")),
    "Ray's files": ("*/session_*", ("start", "blocks", "probe", "search")),
    "temporary files": ("/tmp/tmp*", ("start", "blocks", "probe", "search", "test")),
}
ERRORS = {"ENOSPC": 28, "EIO": 5}
# Stage of a command, or what comes before the first → how often something goes wrong in it.
STAGES = {"start": 2, "assets": 3, "blocks": 2, "probe": 2, "search": 5, "test": 3}
MOST_COMMANDS = 4  # of a round, before it is given up
LIMIT_S = 300.0  # that a command has, beside the time that something is stopped
LEAVE_S = 100.0  # that Ray's processes have to be gone; its agents wait a minute for their node


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a round."""

    kind: str
    """``kill``, ``stop``, or the name of a write's error."""
    what: str
    """Of PROCESSES or of WRITES."""
    stage: str
    """In which stage of the command, or ``start``, before the first."""
    part: float
    """How much of that stage of a quiet search has gone by then, 0…1."""
    once: bool
    """Whether one write fails; else all do until the command has ended."""
    cold: bool
    """Whether nothing is in the cache."""


def draw_fault(seed: int, number: int) -> Fault:
    """The fault of a round."""
    draw = random.Random(f"{seed} {number}")
    kind = draw.choice(["kill", "stop", *ERRORS])
    what = draw.choice([*(WRITES if kind in ERRORS else PROCESSES)])
    names = WRITES[what][1] if kind in ERRORS else ("search",) if what == "trial" else tuple(STAGES)
    stage = draw.choices(names, [STAGES[name] for name in names])[0]
    part, once = draw.random(), draw.random() < 0.5
    early = stage in ("start", "assets", "blocks")
    return Fault(kind, what, stage, part, once, early or draw.random() < 0.2)


def cause_fault(fault: Fault, room: FaultRoom, command: Command, quiet: Quiet, stop_s: float) -> bool:
    """Wait for the moment of a fault and cause it; returns whether it met something."""
    command.wait_for_stage(fault.stage)
    time.sleep(fault.part * quiet.stages[fault.stage])
    if fault.kind in ERRORS:
        room.fail_writes(WRITES[fault.what][0], ERRORS[fault.kind], fault.once)
        return True  # whether it did is known when the command has ended
    while command.runs():
        if pids := room.find_processes(command, PROCESSES[fault.what]):
            chosen = random.Random(fault.part).choice(sorted(pids))
            room.hurt(chosen, fault.kind, stop_s)
            return True
        time.sleep(0.2)
    return False


def run_round(number: int, fault: Fault, room: FaultRoom, quiet: Quiet, stop_s: float) -> dict[str, Any]:
    """The row of a round."""
    began = time.monotonic()
    room.clear(fault.cold)
    command = room.start_command(room.list_search())
    met = cause_fault(fault, room, command, quiet, stop_s)
    status = command.wait(LIMIT_S + stop_s)
    room.end_faults()
    met = room.has_failed_writes() if fault.kind in ERRORS else met
    steps = [(status, command.read_sentence())]
    why = judge_end(fault, *steps[0], command.printed_plainly(), room.has_begun())
    while not why and steps[-1][0] != 0 and len(steps) < MOST_COMMANDS:
        command = room.start_command(find_next(steps[-1][1]) or room.list_search())  # none: it didn't begin
        steps.append((command.wait(LIMIT_S), command.read_sentence()))
        why = judge_end(None, *steps[-1], command.printed_plainly(), room.has_begun())
    if not why:
        why = quiet.compare(read_results(room.results)) if steps[-1][0] == 0 else "it doesn't go on"
    left = room.leave(LEAVE_S)
    why = why or (f"left running: {', '.join(left)}" if left else "")
    outcome = "other" if why else "ended right" if len(steps) == 1 else "resumed right"
    if outcome == "other":
        print("".join(f"    {status}: {said}\n" for status, said in steps), end="")
    seconds = round(time.monotonic() - began, 1)
    row = {"round": number, **asdict(fault), "met": met, "stop_s": stop_s if fault.kind == "stop" else 0}
    said = [sentence.replace(str(room.folder), "…") for _, sentence in steps]
    return {**row, "outcome": outcome, "why": why, "said": said, "seconds": seconds, "code": read_version()}


def judge_end(fault: Fault | None, status: int | None, said: str, plain: str, begun: bool) -> str:
    """What is wrong with how a command ended; empty for nothing. `begun` is a run that has its run.json."""
    if status is None:
        return "it hangs"
    if not begun and fault and (fault.kind, fault.what, said) == ("kill", "driver", ""):
        return ""  # it was killed before there was anything to go on with
    if "Traceback" in said:
        return "a traceback"
    if plain:
        return f"stdout has a line that is no event: {plain[:100]}"
    if status == 0:
        return "a complaint on stderr" if said else ""
    if not said.startswith(("error: ", "interrupted")) or "\n" in said:
        return f"no sentence, status {status}"
    return "no command that goes on" if begun and find_next(said) is None else ""


def find_next(said: str) -> list[str] | None:
    """The command that a sentence names, as a script and its flags; None for one that names none."""
    _, found, flags = said.partition("python scripts/tune_k.py ")
    return ["tune_k.py", *shlex.split(flags), "--json"] if found else None


def read_version() -> str:
    """The commit that is checked out, with a + where files were changed."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def format_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the last row of each round, by what went wrong; what was "other" before is listed."""
    last = {row["round"]: row for row in rows}
    outcomes = "ended right", "resumed right", "other"
    lines = [
        "| what went wrong | of | rounds | " + " | ".join((*outcomes, "met nothing")) + " |",
        "|---" * 7 + "|",
    ]
    groups = Counter((row["kind"], row["what"]) for row in last.values())
    for kind, what in sorted(groups):
        chosen = [row for row in last.values() if (row["kind"], row["what"]) == (kind, what)]
        counts = Counter(row["outcome"] for row in chosen)
        missed = sum(not row["met"] for row in chosen)
        cells = [kind, what, len(chosen), *(counts[each] for each in outcomes), missed]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    counts = Counter(row["outcome"] for row in last.values())
    missed = sum(not row["met"] for row in last.values())
    cells = ["all", "", len(last), *(counts[each] for each in outcomes), missed]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
    found = [row for row in rows if row["outcome"] == "other"]
    lines += [
        "",
        *(
            f"- round {row['round']} at {row['code']}: {row['kind']}, {row['what']}, {row['stage']}: "
            f"{row['why']}"
            for row in found
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--rounds", type=int, default=200)
    flags.add_argument(
        "--only", type=int, nargs="*", default=[], help="these rounds, also if they have a row"
    )
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--stop", type=float, default=60.0, help="seconds that a process is stopped")
    flags.add_argument("--rows", type=Path, default=ROWS)
    flags.add_argument("--table", action="store_true")
    args = flags.parse_args()
    if args.table:
        print(format_tables(read_rows(args.rows)))
        return
    if shutil.which("cc") is None:
        flags.error("no C compiler (cc) here, by which writes are made to fail; give it one (gcc)")
    done = {row["round"] for row in read_rows(args.rows)}
    numbers = args.only or [number for number in range(1, args.rounds + 1) if number not in done]
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        room = FaultRoom(Path(folder))
        quiet = room.measure_quiet()
        print({name: round(seconds, 1) for name, seconds in quiet.stages.items()})
        for number in numbers:
            fault = draw_fault(args.seed, number)
            row = run_round(number, fault, room, quiet, args.stop)
            with args.rows.open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(number, fault, row["outcome"], row["why"], row["seconds"], flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
