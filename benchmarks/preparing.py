"""What it takes to make token blocks of text: time against rivals, memory, nodes, and what a kill costs.

python benchmarks/preparing.py                                   # 256 MB, against its rivals in turn
python benchmarks/preparing.py --megabytes 24 --group-mb 4       # a try
python benchmarks/preparing.py --sizes 1 4 16                    # GB: peak memory of each process, hours
python benchmarks/preparing.py --nodes 2                         # bit for bit as on one node?
python benchmarks/preparing.py --kill                            # what is read again after a kill?

The text is made of sentences of BoolQ and of the medical corpus, drawn at random, in files of JSON lines. A
twentieth of its documents comes again. Every run is a process of its own that reads the same files, with as
many processes, one thread each. Ours is read, deduplicated, split, tokenized and packed. `datasets` loads the
text, maps it to tokens and these to blocks, as the examples of transformers do; it neither deduplicates nor
splits. The tokenizer alone gets texts that are in memory. Starting Ray and importing isn't counted on any
side. Of ours the tokens in blocks are counted, without those of documents that were left out. Each run is a
row in results/preparing.jsonl. README.md has what was run; 1, 4 and 16 GB, more than two nodes and nodes on
machines of their own were not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import preparing_work
import psutil
from preparing_work import FILE_BYTES, SEQ_LEN, WORK, Asked, Found, list_files, write_text

ROWS = Path(__file__).parent / "results" / "preparing.jsonl"
LOOK_S = 0.5  # seconds between two looks at the processes


@dataclass
class Watch:
    """What a process and all that it starts takes; asked now and then, as long as it runs."""

    own: psutil.Process
    peaks: dict[str, float] = field(default_factory=dict)
    """Kind of process → the largest peak of one of them, MiB."""
    busy: dict[int, dict[int, float]] = field(default_factory=dict)
    """Node of Ray, by the number of its process → process of a worker → seconds of CPU."""

    def look(self) -> None:
        """Ask all of them."""
        for process in list_tree(self.own):
            try:
                name = (process.cmdline() or [""])[0]
                (peak,) = re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
                times, parent = process.cpu_times(), process.ppid()
            except (OSError, ValueError, psutil.Error):
                continue  # it has ended meanwhile
            worker = name.startswith("ray::")
            kind = "command" if process == self.own else "worker" if worker else Path(name).name
            self.peaks[kind] = max(self.peaks.get(kind, 0), int(peak) / 1024)
            if worker:
                self.busy.setdefault(parent, {})[process.pid] = times.user + times.system


def list_tree(own: psutil.Process) -> list[psutil.Process]:
    """A process and all that it has started."""
    try:
        return [own, *own.children(recursive=True)]
    except psutil.Error:
        return []


def start(asked: Asked) -> subprocess.Popen[str]:
    """Start a process of its own for this; tokenizers take one thread in each."""
    environment = os.environ | {
        "RAYON_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HOME": f"{asked.folder}/hf",
    }
    command = [sys.executable, preparing_work.__file__, json.dumps(asdict(asked))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def measure(asked: Asked) -> Found:
    """What a process of its own finds, and what it took; kept as a row."""
    process = start(asked)
    watch = Watch(psutil.Process(process.pid))
    while process.poll() is None:
        watch.look()
        time.sleep(LOOK_S)
    assert process.stdout is not None
    said = process.stdout.read()
    assert process.returncode == 0, f"{asked.what} failed"
    found: Found = json.loads(said.splitlines()[-1])
    found["peaks"] = watch.peaks
    found["busy"] = [sum(each.values()) for each in watch.busy.values()]
    size = sum(Path(file).stat().st_size for file in list_files(asked.texts))
    keep({"what": asked.what, "bytes": size, "processes": asked.processes, "nodes": asked.nodes} | found)
    return found


def keep(row: Found) -> None:
    """Add a row to the results."""
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def digest_files(folder: str) -> dict[str, str]:
    """Name → digest of the files of documents and of blocks, and of the manifest."""
    files = [path for path in Path(folder).rglob("*") if path.suffix in (".parquet", ".blocks")]
    files += Path(folder).glob("blocks/*/blocks.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def compare_rivals(asked: Asked, rounds: int) -> None:
    """Ours, `datasets` and the tokenizer in turn; the ratios are taken round by round."""
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        found = {what: measure_afresh(replace(asked, what=what)) for what in WORK}
        ours, alone, mapped = found["ours"], found["tokenizer"], found["datasets"]
        assert alone["tokens"] == mapped["tokens"], "both sides made other tokens"
        left = alone["first"] - ours["tokens"]
        assert 0 <= left < SEQ_LEN * ours["streams"], "blocks hold other tokens than the documents"
        here = {
            "ours": ours["tokens"] / ours["seconds"],
            "datasets: load, map to tokens, map to blocks": mapped["tokens"] / mapped["seconds"],
            "datasets: map to tokens alone": mapped["tokens"] / mapped["map"],
            "tokenizer alone": alone["tokens"] / alone["seconds"],
        }
        for name, rate in here.items():
            rates.setdefault(name, []).append(rate)
        print(f"  round {number + 1}:", *(f"{rate:,.0f}" for rate in here.values()), flush=True)
    print(f"\n{'':46}{'tokens a second':>16}{'spread':>20}   ours by it")
    for name, each in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], each, strict=True))
        spread = f"{min(each):,.0f}–{max(each):,.0f}"
        print(f"{name:46}{statistics.median(each):16,.0f}{spread:>20}{ratio:13.2f}")


def measure_afresh(asked: Asked) -> Found:
    """The same in a new folder, which is deleted."""
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        return measure(replace(asked, folder=folder))


def compare_sizes(asked: Asked, sizes: Sequence[float]) -> None:
    """The peak memory of each kind of process for several sizes of text."""
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            write_text(Path(folder) / "texts", size * 1e9, FILE_BYTES)
            found = measure_afresh(replace(asked, texts=f"{folder}/texts", folder=folder))
        peaks = ", ".join(f"{kind} {peak:,.0f}" for kind, peak in sorted(found["peaks"].items()))
        rate = found["tokens"] / found["seconds"]
        print(f"{size:g} GB, {rate:,.0f} tokens a second, peaks in MiB: {peaks}", flush=True)


def compare_nodes(asked: Asked, nodes: int) -> None:
    """The same files on one node and on several that share the work."""
    digests = []
    for count in (1, nodes):
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            found = measure(replace(asked, folder=folder, nodes=count))
            digests.append(digest_files(folder))
        busy = ", ".join(f"{seconds:.1f}" for seconds in found["busy"])
        print(
            f"{count} node{'s' * (count > 1)}: {found['seconds']:.1f} s; their workers' CPU took {busy} s",
            flush=True,
        )
    assert digests[0] == digests[1], "other files"
    print(f"all {len(digests[0])} files are the same")


STAGES = {"reading": "text/*/[0-9]*.json", "packing": "blocks/*/parts/*.json"}
"""Stage → the records of what is done of it."""
WRITTEN = {"reading": "text/*/[0-9]*.json", "packing": "blocks/*/train/*.blocks"}
"""Stage → a file of each group or bucket, which a later run that does it again writes again."""


def compare_kills(asked: Asked) -> None:
    """Kill a run and its processes half-way through each stage, and see what the next one does again."""
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        measure(replace(asked, folder=folder))
        digests = digest_files(folder)
        groups = {stage: len(list(Path(folder).glob(pattern))) for stage, pattern in WRITTEN.items()}
    for stage in STAGES:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            own = replace(asked, folder=folder)
            done = kill_midway(own, stage, groups[stage] // 2)
            time.sleep(0.1)
            began = time.time()
            measure(own)
            again = {name: count_since(folder, WRITTEN[name], began) for name in WRITTEN}
            same = digest_files(folder) == digests
        keep({"what": "kill", "stage": stage, "groups": groups, "done": done, "again": again, "same": same})
        print(
            f"killed while {stage}, {done} done: the next run read {again['reading']} of {groups['reading']} "
            f"groups, packed {again['packing']} of {groups['packing']}; "
            f"files are {'' if same else 'not '}the same",
            flush=True,
        )
        assert same
        assert again[stage] == groups[stage] - done[stage], "something was done twice"


def kill_midway(asked: Asked, stage: str, wanted: int) -> dict[str, int]:
    """Kill a run once so many groups of a stage are done; returns what is done of each stage then."""
    process = start(asked)
    own = psutil.Process(process.pid)
    while count_since(asked.folder, STAGES[stage]) < wanted:
        assert process.poll() is None, "it was done before it could be killed"
        time.sleep(0.05)
    tree = list_tree(own)
    for each in tree:
        with suppress(psutil.Error):
            each.send_signal(signal.SIGKILL)
    psutil.wait_procs(tree, 30)
    process.wait()
    return {name: count_since(asked.folder, pattern) for name, pattern in STAGES.items()}


def count_since(folder: str, pattern: str, began: float = 0) -> int:
    """Files that were written from then on."""
    return sum(path.stat().st_mtime >= began for path in Path(folder).glob(pattern))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("--megabytes", type=float, default=256, help="of text")
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    flags.add_argument("--group-mb", type=float, default=0, help="MiB of a task, where there is little text")
    flags.add_argument("--sizes", type=float, nargs="+", help="GB of text")
    flags.add_argument("--nodes", type=int)
    flags.add_argument("--kill", action="store_true")
    flags.add_argument("--folder", help="where files are written, which are deleted at the end")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        asked = Asked("ours", f"{folder}/texts", folder, args.processes, group_mb=args.group_mb)
        if args.sizes:
            compare_sizes(asked, args.sizes)
            return
        write_text(Path(asked.texts), args.megabytes * 1e6, args.group_mb * 2**20 or FILE_BYTES)
        if args.nodes:
            compare_nodes(asked, args.nodes)
        elif args.kill:
            compare_kills(asked)
        else:
            compare_rivals(asked, args.rounds)


if __name__ == "__main__":
    main()
