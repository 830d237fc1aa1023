"""The commands as their users run them: real processes, real Ray, a tiny backbone."""

import csv
import html
import json
import math
import os
import re
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import ray
import torch
import yaml
from common import save_tiny_backbone, write_corpus
from forking import find_session
from here import call_script
from processes import SESSIONS, ForkedScript, start_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from adept_ray.storage.files import fetch_temporarily

SPACE = """
parameters:
  k: {int: [1, 3]}
  recompute_every: {choice: [8, 16]}
  base_lr: {log: [0.0005, 1.0e+37]}
judge_after: 1
first:
  - {k: 2, recompute_every: 8, base_lr: 0.0005}
  - {k: 3, recompute_every: 16, base_lr: 0.01}
  - {k: 1, recompute_every: 8, base_lr: 1.0e+37}
"""
TASK = """
task: reports
dataset_path: json
dataset_kwargs: {data_files: {test: task.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
SIZES = {
    "precision": "float32",  # whatever is faster here
    "seq-len": 32,
    "probe-tokens": 256,
    "remeasure-tokens": 64,
    "validation-tokens": 256,
    "test-tokens": 256,
}
TRIALS = {"tokens-per-trial": 12288, "trials": 3}  # long enough to be interrupted in mid-trial


class Room:
    """A folder with a tiny backbone and corpora in which scripts run."""

    def __init__(self, folder):
        self.folder = folder
        save_tiny_backbone(folder / "backbone")
        write_corpus(folder / "general.jsonl", seed=1)
        write_corpus(folder / "domain.jsonl", seed=2, domain="medical")
        (folder / "space.yaml").write_text(SPACE)
        self.env = {"ADEPT_RAY_CACHE": str(folder / "cache")}

    def command(self, script, **flags):
        """A command line on the room's backbone and corpora."""
        flags = {"backbone": "backbone", "general": "general.jsonl", "domain": "domain.jsonl", **flags}
        given = {flag: value for flag, value in flags.items() if value is not None}
        return [script, *(part for flag, value in given.items() for part in (f"--{flag}", str(value)))]

    def search(self, name, **changes):
        """The command line of a search, without a dashboard, which takes as long to start as a trial."""
        flags = {"search-space": "space.yaml", **SIZES, **TRIALS, **changes}
        return [*self.command("tune_k.py", name=name, **flags), "--no-dashboard"]

    def start(self, command, stderr=subprocess.STDOUT, **env):
        """A script as a process of its own, forked from one that has its imports done."""
        return ForkedScript(command[0], command[1:], self.folder, self.env | env, stderr)

    def run(self, command, **env):
        """Run a script to its end; returns what it printed. Fails unless it exits with 0."""
        return finish(self.start(command, **env))

    def run_as_user(self, command):
        """The same as a shell does it."""
        return finish(start_script(command[0], command[1:], self.folder, self.env))

    def call(self, command):
        """The same in the test's own process, but for Ray Train: see :mod:`here`. Needs `shared`."""
        return call_script(command[0], command[1:], self.folder, self.env)

    def task(self):
        """A definition of a benchmark task."""
        asked = {"question": "Who reports?", "choices": ["the nurse", "the baker"]}
        rows = [asked | {"answer": number % 2} for number in range(8)]
        (self.folder / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (self.folder / "task.yaml").write_text(TASK)
        return "task.yaml"

    def results(self, name):
        """A results folder."""
        return self.folder / "results" / name


def finish(process):
    """What a process printed; fails unless it exits with 0."""
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """One room for all searches of this file, so that blocks and probe are built once."""
    return Room(tmp_path_factory.mktemp("room"))


@pytest.fixture(scope="module")
def shared(s3):
    """The environment in which a command works on a cluster that is there, and starts none of its own.

    Its processes know the S3 server. It has no dashboard, and Ray's own clean-up of stopped trials fails
    beside it: ours doesn't need that. Its workers don't compile.
    """
    options = {"num_cpus": 4, "include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # what torch.compile makes would take minutes here
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process for each crew
        context = ray.init(address="local", object_store_memory=512 * 2**20, **options)
    try:
        yield {"RAY_ADDRESS": context.address_info["gcs_address"]}
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def searched(room):
    """A finished search named "first" and what it printed, with the dashboard that it has by default."""
    return room.run(room.search("first")[:-1])


def trials(folder):
    """trials.csv without the seconds and the untouched backbone."""
    with (folder / "trials.csv").open() as file:
        untouched, *rows = csv.DictReader(file)
    assert (untouched["trial"], untouched["k"], untouched["score"]) == ("untouched", "0", "0.0")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def about(folder):
    """Content of run.json."""
    return json.loads((folder / "run.json").read_text())


def readings(folder):
    """The rows of curves.jsonl."""
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def ray_processes():
    """Process id → command line, of Ray's processes that a command of this file started, directly or not."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            real = int((path / "stat").read_text().rpartition(")")[2].split()[3])
            session = find_session(int(path.name)) or real
        except OSError:
            continue
        name = line.partition(" ")[0]
        if session in SESSIONS and (name.startswith("ray::") or name.endswith(("/raylet", "/gcs_server"))):
            found[int(path.name)] = line
    return found


def working(line):
    """Whether a process of Ray's does or reserves anything: agents don't, nor do workers not yet up."""
    name = line.partition(" ")[0]
    return name.endswith(("/raylet", "/gcs_server")) or (name.startswith("ray::") and "Agent" not in name)


def gone(seconds, which=bool):
    """Wait until no process of Ray's is left, or none of some."""
    deadline = time.monotonic() + seconds
    while left := [line for line in ray_processes().values() if which(line)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


@pytest.mark.timeout(500)
def test_a_search_leaves_the_whole_results_folder(room, searched):
    """Every file that is promised is there, and the summary says k, why, the change and where."""
    folder = room.results("first")
    names = {"best.yaml", "trials.csv", "importance.json", "rates.jsonl", "run.json", "report.html", "model"}
    assert names | {"curves.jsonl", "dials.csv"} <= {path.name for path in folder.iterdir()}
    assert (folder / "model" / "README.md").exists()
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert f"k = {best['choice']['k']} " in searched and best["choice"]["reason"] in searched
    assert "bits per byte" in searched and "report.html" in searched
    kept, whole = (float(size) for size in re.findall(r"([\d.]+) MB", searched))
    exported = [file for file in (folder / "model").iterdir() if file.name != "README.md"]  # written last
    assert whole == round(sum(file.stat().st_size for file in exported) / 1e6, 1) > kept > 0
    rows = trials(folder)
    assert [row["trial"] for row in rows] == [f"trial-00{i}" for i in (1, 2, 3)]
    assert [row["k"] for row in rows] == ["3", "2", "1"]  # the settings under `first`, the paper's before all
    chosen = next(row for row in rows if row["trial"] == best["choice"]["trial"])
    assert chosen["state"] == "finished" and int(chosen["k"]) == best["training"]["k"] == len(best["layers"])
    ends = {reading["trial"]: reading for reading in readings(folder)}
    for row in rows:
        if row["score"]:  # the one that failed has none
            assert ends[row["trial"]]["score"] == float(row["score"])
            assert ends[row["trial"]]["tokens"] == int(row["tokens"])


@pytest.mark.timeout(500)
def test_a_slow_trial_is_stopped_early_and_the_next_runs(room, searched):
    """The second trial, at a tiny rate, is stopped before its tokens are spent; the third still starts.

    It was compared document by document with the first one.
    """
    judged = json.loads((room.results("first") / "ray" / "verdicts.json").read_text())["best"]
    assert all(len(best["pulls"][side]) > 1 for best in judged.values() for side in ("general", "domain"))
    rows = trials(room.results("first"))
    assert rows[1]["state"] == "stopped" and int(rows[1]["tokens"]) < TRIALS["tokens-per-trial"]
    assert len(rows) == TRIALS["trials"]


@pytest.mark.timeout(500)
def test_a_trial_that_explodes_is_recorded_and_the_search_goes_on(room, searched):
    """The third trial, at an absurd rate, fails alone: it has a row, and another one is chosen."""
    row = trials(room.results("first"))[2]
    assert (
        row["state"] == "failed" and "FloatingPointError" in (room.results("first") / "ray.log").read_text()
    )
    best = yaml.safe_load((room.results("first") / "best.yaml").read_text())
    assert best["choice"]["trial"] != row["trial"]


@pytest.mark.timeout(500)
def test_the_exported_model_is_a_plain_hugging_face_folder(room, searched):
    """It loads without remote code, has the layers that adept.json names, and differs from the backbone."""
    folder = room.results("first") / "model"
    record = json.loads((folder / "adept.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 4 + len(record["added_layers"])
    assert AutoTokenizer.from_pretrained(folder)("some text")["input_ids"]
    ids = torch.arange(20)[None]
    before = AutoModelForCausalLM.from_pretrained(room.folder / "backbone")
    assert not torch.equal(model(ids).logits, before(ids).logits)


@pytest.mark.timeout(500)
def test_ray_leaves_no_process_behind(room, searched):
    """After a command has ended nothing of Ray runs on."""
    gone(20)


def interrupted(process, going_on="--name second --resume", held=()):
    """Send Ctrl-C, as a terminal does: to every process of the group. Returns what was printed.

    Workers that are `held` go on when the command has ended.
    """
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=90)
    for pid in held:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    os.set_blocking(process.stdout.fileno(), False)  # agents that are still to go hold the other end
    printed = process.stdout.read()
    assert process.returncode == 130, printed
    assert going_on in printed
    gone(20, working)  # agents whose node was ended before it ended them wait a minute for it: see the end
    return printed


@pytest.mark.timeout(500)
def test_a_search_comes_to_the_same_table_whatever_stops_it(room, searched, shared, s3):
    """Ctrl-C in stage 1, SIGKILL of others in a trial, of itself in the next: a quiet search's table.

    A worker's death is made good. Without the board between the command and its workers a sentence names
    the command that goes on. Results and cache are on an S3 server, the study is in a database, and of the
    commands some have a Ray of their own and some a cluster that is there. After its end one more trial is
    added to it.
    """
    s3.create_bucket(Bucket="results")
    cache = ["--cache", "s3://results/cache"]
    place = ["--storage", "s3://results", *cache]
    again = ["tune_k.py", "--name", "second", "--resume", *place]
    flags = {"trials": 2, "study": "sqlite:///study.db", "track": "tensorboard"}
    process = room.start([*room.search("second", **flags), *place])
    while "stage 1" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    held = hold_workers(0.6)
    assert "stage 1, importance" not in interrupted(process, held=held)  # it was not over yet
    with fetch_temporarily("s3://results/second") as folder:
        stopped = about(folder)["spent"]["seconds"]

    process = room.start(again, **shared)
    # Made with the first report.
    while not s3.list_objects_v2(Bucket="results", Prefix="second/ray/trials/")["KeyCount"]:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    kill_processes("ray::RayTrainWorker")
    time.sleep(1)  # others begin to take its place
    kill_processes("ray::Board")
    printed = process.communicate()[0]
    (sentence,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and "Traceback" not in printed
    assert sentence.endswith(f"go on with python scripts/{again[0]} {shlex.join(again[1:6])}")

    process = room.start(again)
    while "trial-001" not in (line := process.stdout.readline()) or "finished" not in line:
        assert line, process.communicate()
    time.sleep(1)  # into the next trial
    process.kill()
    process.communicate()
    gone(60, working)  # the others wait a minute for their node, and then go by themselves

    printed = room.run(again, **shared)
    assert "s3://results/second/model" in printed
    assert "downloads and copies out of s3://results/cache" in printed
    with fetch_temporarily("s3://results/second") as folder:
        assert trials(folder) == trials(room.results("first"))[:2]
        assert {"model.safetensors", "README.md"} <= {path.name for path in (folder / "model").iterdir()}
        page = (folder / "report.html").read_text()
        assert ">adept_ray · second<" in page and "Parameters" in page  # of what lies in the bucket alone
        ended = about(folder)["seconds"]
    assert ended["probe"] > stopped["probe"] > 0.3 and ended["total"] > stopped["total"] + ended["search"]

    room.run(["tune_k.py", "--name", "second", "--more-trials", "1", *place], **shared)
    with fetch_temporarily("s3://results/second") as folder:
        assert trials(folder) == trials(room.results("first"))
        assert about(folder)["seconds"]["search"] > ended["search"]
        for trial in ("trial-001", "trial-002"):  # the third one never reported
            rows = [row for row in readings(folder) if row["trial"] == trial]
            curve = [(row["step"], pytest.approx(row["score"], rel=1e-6)) for row in rows]
            assert tracked_scores(folder, trial) == curve and curve


def tracked_scores(folder, run):
    """Step and score of every point that TensorBoard has of a run."""
    points = EventAccumulator(str(folder / "tensorboard" / run)).Reload().Scalars("score")
    return [(point.step, point.value) for point in points]


def hold_workers(seconds):
    """Stop, for so long, all workers that commands have or get; returns their ids, for they stay stopped."""
    deadline, held = time.monotonic() + seconds, set()
    while time.monotonic() < deadline:
        for pid, line in ray_processes().items():
            if pid not in held and line.startswith("ray::RayTrainWorker"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    held.add(pid)
        time.sleep(0.02)
    return held


def started_by(pid):
    """Ids and command lines of all processes below one; any may end while it is looked at."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in task.read_text().split():
                with suppress(OSError):
                    yield int(child), Path(f"/proc/{child}/cmdline").read_bytes().decode()
                    yield from started_by(child)


def kill_processes(name):
    """SIGKILL for all processes of the cluster that is there whose name begins so; there is one at least."""
    found = [child for child, line in started_by(os.getpid()) if line.startswith(name)]
    assert found
    for child in found:
        os.kill(child, signal.SIGKILL)


@pytest.fixture(scope="module")
def pairs(room, searched, shared):
    """A finished search named "pairs" for trade-offs, two trials at once, what waits for both of them killed.

    What became of its search space meanwhile must not matter.
    """
    (room.folder / "pairs.yaml").write_text(SPACE)
    flags = {"search-space": "pairs.yaml", "concurrent": 2, "max-new-params": "200k"}
    process = room.start([*room.search("pairs", **flags), "--pareto"], **shared)
    while not (room.results("pairs") / "ray" / "trials").exists():  # made with the first report
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    kill_processes("ray::ImplicitFunc")
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    (room.folder / "pairs.yaml").write_text(SPACE.replace("[1, 3]", "[1, 2]"))
    return trials(room.results("pairs"))


@pytest.mark.timeout(400)
def test_two_trials_at_once_survive_the_loss_of_their_processes(room, searched, pairs):
    """SIGKILL of what waits for a trial's workers: the trial goes on, and its row is that of a quiet search.

    Only the second trial's differs: in a search for trade-offs none is stopped early.
    """
    first = trials(room.results("first"))
    assert [(row["k"], row["state"]) for row in pairs] == [
        ("3", "finished"),
        ("2", "finished"),
        ("1", "failed"),
    ]
    for mine, theirs in ((pairs[0], first[0]), (pairs[2], first[2])):
        for name in ("state", "layers", "tokens"):
            assert mine[name] == theirs[name]
        for name in ("general_bpb", "domain_bpb", "score"):
            if theirs[name]:
                assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=1e-4)


@pytest.mark.timeout(400)
def test_other_weights_pick_among_the_trials_of_the_front(room, pairs, shared):
    """A search for trade-offs keeps what may be picked: by new weights it is exported without training."""
    folder = room.results("pairs")
    best = yaml.safe_load((folder / "best.yaml").read_text())
    points = {row["trial"]: row for row in pairs if row["state"] == "finished"}
    assert set(best["choice"]["front"]) <= set(points) and best["choice"]["front"]
    kept = {path.parent.name for path in (folder / "ray" / "trials").glob("*/step-*")}
    assert kept >= {*best["choice"]["front"], best["choice"]["trial"]}
    room.call(["pick.py", "results/pairs", "--general", "1"])
    again = yaml.safe_load((folder / "best.yaml").read_text())
    assert again["score"] == {"general": 1.0, "domain": 0.0, "retain": False}
    picked = {row["trial"]: row for row in trials(folder)}  # each at the dial that the new weights like best
    taken = picked[again["choice"]["trial"]]
    assert again["choice"]["trial"] in kept
    assert again["choice"]["score"] == pytest.approx(float(taken["general_delta"]))
    assert (
        again["training"]["dial"] == again["test"]["dial"] == float(picked[again["choice"]["trial"]]["dial"])
    )
    assert again["training"]["k"] == again["choice"]["k"] == len(again["layers"])
    assert again["choice"]["front"] == best["choice"]["front"]
    assert again["training"]["tokens"] == int(points[again["choice"]["trial"]]["tokens"])
    ends = {reading["trial"]: reading for reading in readings(folder)}
    for name in points:
        assert ends[name]["score"] == pytest.approx(float(picked[name]["general_delta"]))
    told = html.unescape((folder / "report.html").read_text())
    assert "pick.py results/pairs-again --general 1.0" in told
    record = json.loads((folder / "model" / "adept.json").read_text())
    assert (record["source_layers"], record["dial"]) == (again["layers"], again["test"]["dial"])
    assert again["test"]["score"] == pytest.approx(again["test"]["general"]["delta"])


@pytest.mark.timeout(400)
def test_a_comparison_leaves_its_tables_and_its_page(room, shared):
    """Every method trains on the same tokens; who wins is said, and all three files hold every method."""
    sizes = {"tokens": 1536, "rate-trials": 2, "seeds": 2, "k": 2, "recompute-every": 2}
    tasks = {"domain-tasks": room.task(), "task-items": 4, "score": "bpb"}
    command = room.command("compare.py", name="rivals", **SIZES, **sizes, **tasks)
    methods = ["vanilla", "replay", "adept:placement=receptive", "adept"]
    printed = room.call([*command, "--methods", *methods])
    folder = room.results("rivals")
    assert len((folder / "runs.csv").read_text().splitlines()) == 1 + 1 + 3 * 4
    with (folder / "comparison.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == methods and "ADEPT is number" in printed
    assert {row["tokens"] for name, row in rows.items() if name != "vanilla"} == {"1536"}
    assert float(rows["adept"]["domain_delta"]) > 0 and rows["vanilla"]["score"] == "0.0"
    assert all(
        0 <= float(row["domain_accuracy"]) <= 1 and not row["general_accuracy"] for row in rows.values()
    )
    layers = [int(layer) for layer in rows["adept:placement=receptive"]["layers"].split()]
    assert len(layers) == 2 and set(layers) < set(range(layer_count(room.folder / "backbone")))
    assert all(name in (folder / "comparison.html").read_text() for name in methods)


@pytest.mark.timeout(300)
def test_a_trained_model_is_scored_on_benchmarks(room, searched):
    """evaluate.py takes the exported folder, prints a line a task, and writes what it found."""
    found = room.folder / "scores" / "table.json"
    flags = ["--tasks", room.task(), "--items", "4", "--output", str(found)]
    printed = room.run(["evaluate.py", str(room.results("first") / "model"), *flags])
    (row,) = json.loads(found.read_text())["tasks"]
    assert row["task"] == "reports" and row["items"] == 4 and row["chance"] == 0.5
    assert f"{100 * row['accuracy']:.1f}" in printed and "reports" in printed


@pytest.mark.timeout(300)
def test_activations_of_three_models_are_drawn(room, searched, shared):
    """activations.py goes on from a best.yaml; each model has a row a layer, a copy is one more."""
    command = ["activations.py", "--config", "results/first/best.yaml", "--name", "apart"]
    printed = room.call(command)
    folder = room.results("apart")
    with (folder / "activations.csv").open() as file:
        rows = list(csv.DictReader(file))
    k = yaml.safe_load((room.results("first") / "best.yaml").read_text())["training"]["k"]
    counts = {name: sum(row["model"] == name for row in rows) for name in {row["model"] for row in rows}}
    assert counts == {"untouched": 4, "without expansion": 4, "expanded": 4 + k}
    assert sum(row["copy"] == "True" for row in rows) == k
    assert all(0 <= float(row["overlap"]) <= 1.001 for row in rows) and "without expansion" in printed
    assert (folder / "activations.png").stat().st_size > 10_000


def test_a_script_runs_as_a_shell_starts_it(room):
    """As a process of its own, in a folder that isn't the checkout: it knows its flags."""
    assert "--tasks" in room.run_as_user(["evaluate.py", "--help"])


def layer_count(folder):
    return json.loads((folder / "config.json").read_text())["num_hidden_layers"]


@pytest.mark.timeout(400)
def test_training_at_full_length_takes_what_the_search_found(room, searched, shared):
    """train.py trains on N tokens with the k and the rate that best.yaml has for these, and exports that.

    Interrupted, it goes on with the command that it prints, as it began.
    """
    best = yaml.safe_load((room.results("first") / "best.yaml").read_text())
    folder = room.results("full")
    command = ["train.py", "--config", "results/first/best.yaml", "--tokens", "32768"]
    command += ["--track", "tensorboard"]
    own = ["--reports", "2", "--name", "full", "--activation-checkpointing", "on"]
    process = room.start([*command, *own], **shared)
    while not (folder / "ray" / "train").exists():  # made with the first report
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    going_on = f"{shlex.join(command)} --name full --resume"
    interrupted(process, going_on)
    said = room.call(shlex.split(going_on))
    assert about(folder)["run"]["activation_checkpointing"] == "on"
    full = yaml.safe_load((folder / "best.yaml").read_text())
    answers = best["choice"]["horizons"]
    answer = min(answers, key=lambda each: abs(math.log(32768 / each["tokens"])))
    assert f"for 32.8 k tokens: k = {answer['k']} (80%" in said
    assert full["training"]["tokens"] == 32768 and full["training"]["k"] == len(full["layers"]) == answer["k"]
    assert full["training"]["base_lr"] == pytest.approx(answer["rate"], rel=0.01)
    record = json.loads((folder / "model" / "adept.json").read_text())
    assert record["source_layers"] == full["layers"]
    assert full["test"]["domain"]["delta"] > 0
    assert [reading["tokens"] for reading in readings(folder)] == [16384, 32768]
    assert [step for step, _ in tracked_scores(folder, "main")] == [row["step"] for row in readings(folder)]
    assert "training at full length" in (folder / "report.html").read_text()
    assert "32,768 tokens" in (folder / "model" / "README.md").read_text()


@pytest.mark.timeout(400)
def test_the_probe_alone_gives_what_the_search_used(room, searched, shared):
    """probe.py draws and writes the importance that the search measured, from blocks of its own."""
    flags = {"backbone": "backbone", "general": "general.jsonl", "seq-len": 32, "probe-tokens": 256}
    flags["precision"] = "float32"
    flags |= {"name": "probe", "cache": "cache2"}
    command = ["probe.py", *(part for flag, value in flags.items() for part in (f"--{flag}", str(value)))]
    assert "nats per token" in room.call(command)
    compare_importance(room.results("probe"), room.results("first"))
    assert (room.results("probe") / "importance.png").stat().st_size > 5000


def compare_importance(mine, theirs):
    """What is in two results folders is the same to 1e-6, and of units to 1e-4."""
    mine, theirs = (json.loads((folder / "importance.json").read_text()) for folder in (mine, theirs))
    assert mine["order"] == theirs["order"]
    for layer, other in zip(mine["layers"], theirs["layers"], strict=True):
        assert layer["mean"] == pytest.approx(other["mean"], abs=1e-6)
    assert mine["units"] == pytest.approx(theirs["units"], rel=1e-4)


@pytest.mark.timeout(400)
def test_a_search_in_which_every_trial_fails_says_so(room, shared):
    """Status 2 and one sentence; the table of failed trials is kept, and what Ray printed of them in a file.
    None begins when the time is over.

    With --json every line of stdout is an event, and the sentence is all that is on stderr. More than a
    thousand steps were asked for, so some are timed first.
    """
    (room.folder / "bad.yaml").write_text("parameters: {k: {fixed: 1}, base_lr: {fixed: 1.0e+37}}")
    command = [
        *room.search("bad", **{"search-space": "bad.yaml", "max-hours": 0.0001, "trials": 30}),
        "--json",
    ]
    process = room.start(command, stderr=subprocess.PIPE, **shared)
    printed, sentence = process.communicate()
    assert process.returncode == 2
    assert sentence.startswith("error: ") and "all 1 trials failed" in sentence and sentence.count("\n") == 1
    events = [json.loads(line) for line in printed.splitlines()]
    began, ended = (
        [e["stage"] for e in events if e["event"] == name] for name in ("stage_began", "stage_ended")
    )
    assert began == ended == ["assets", "blocks", "contamination", "probe", "pace", "search"]
    (pace,) = (event for event in events if event["event"] == "pace")
    assert pace["plain"] > 0 and pace["compiled"] > 0 and isinstance(pace["compile"], bool)
    assert {"results", "plan"} <= {event["event"] for event in events}
    assert [event["state"] for event in events if event["event"] == "trial"][-1] == "failed"
    assert any("1 of 30 trials were begun in time" in str(event) for event in events)
    assert "FloatingPointError" in (room.results("bad") / "ray.log").read_text()
    assert trials(room.results("bad"))[0]["state"] == "failed"


@pytest.mark.timeout(400)
def test_one_model_grows_while_two_workers_share_it_out(room, searched, shared):
    """A row a depth of one nested model, all of whose tokens add up, and its export is a plain folder.

    Importance is what one worker measured.
    """
    (room.folder / "grow.yaml").write_text("parameters: {k: {int: [1, 2]}, base_lr: {fixed: 0.03}}")
    flags = {"search-space": "grow.yaml", "strategy": "grow", "trials": None, "workers": 2, "sharding": "on"}
    printed = room.run(room.search("grown", **flags, **{"tokens-per-trial": 4096}), **shared)
    folder = room.results("grown")
    assert "layers put together" in printed
    compare_importance(folder, room.results("first"))
    rows = trials(folder)
    assert [(row["trial"], row["k"], row["tokens"]) for row in rows] == [
        ("grow-01", "1", "2048"),
        ("grow-02", "2", "4096"),
    ]
    assert set(rows[0]["layers"].split()) < set(rows[1]["layers"].split())
    best = yaml.safe_load((folder / "best.yaml").read_text())
    layers = AutoModelForCausalLM.from_pretrained(folder / "model").config.num_hidden_layers
    assert layers == 4 + best["choice"]["k"] and (folder / "report.html").exists()


def wait_for(file, process):
    """Wait until a command has written a file."""
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.mark.timeout(400)
def test_a_search_by_wsd_reads_whole_trainings_whatever_stops_it(room, shared):
    """Workers and a trial's process are killed in a branch, the search is interrupted in the next trial.

    Each trial is read at lengths that double, and what train.py makes of best.yaml at the longest of these
    is what was read there. The plateau of a trial that came to its end is gone.
    """
    sizes = {"tokens-per-trial": 24576, "trials": 2, "schedule": "wsd"}
    folder = room.results("wsd")
    kept = folder / "ray" / "trials"
    process = room.start(room.search("wsd", **sizes), **shared)
    wait_for(kept / "trial-001" / "reading.json", process)
    kill_processes("ray::RayTrainWorker")
    kill_processes("ray::ImplicitFunc")
    wait_for(kept / "trial-002" / "reading.json", process)
    interrupted(process, "--name wsd --resume")
    room.run(["tune_k.py", "--name", "wsd", "--resume"], **shared)
    curves = {row["trial"]: [] for row in trials(folder)}
    for reading in readings(folder):
        curves[reading["trial"]].append((reading["tokens"], reading["score"]))
    for row in trials(folder):
        ends = {"finished": 3, "stopped": 2}[row["state"]]
        assert [tokens for tokens, _ in curves[row["trial"]]] == [6144, 12288, 24576][:ends]
        assert (kept / row["trial"] / "plateau").exists() == (row["state"] == "stopped")
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert (best["training"]["schedule"], best["training"]["warmup_tokens"]) == ("wsd", 615)
    command = ["train.py", "--config", "results/wsd/best.yaml", "--tokens", "24576", "--settings", "trial"]
    room.call([*command, "--reports", "1", "--name", "whole"])
    (whole,) = readings(room.results("whole"))
    assert whole["score"] == pytest.approx(curves[best["choice"]["trial"]][-1][1], rel=1e-4)


@pytest.mark.timeout(200)
def test_of_all_these_runs_nothing_is_left(room, searched):
    """Nor of the one that was killed, whose agents wait for their node before they go."""
    gone(150)


@pytest.mark.timeout(300)
def test_a_doctor_measures_a_search_and_leaves_nothing(room, shared):
    """Without a fault it exits with 0, after a line for each check and seconds for search and training."""
    before = sorted(room.folder.glob("results/*"))
    command = ["doctor.py", *room.search("looked at", **{"train-tokens": 10**6})[1:], "--json"]
    events = [json.loads(line) for line in room.call(command).splitlines()]
    checks = {event["name"]: event["good"] for event in events if event["event"] == "check"}
    assert {"backbone", "nodes", "versions", "disks", "memory", "step", "probe", "expected"} <= set(checks)
    assert all(checks.values())
    (seconds,) = (event["seconds"] for event in events if event["event"] == "forecast")
    assert seconds["training"] > seconds["search"] > 0  # of a million tokens, and of three times 12,288
    assert events[-2] == {**events[-2], "event": "doctor", "faults": []}
    assert sorted(room.folder.glob("results/*")) == before


@pytest.mark.timeout(300)
def test_a_doctor_says_all_that_is_wrong(room, shared):
    """A text that isn't there, too many workers, a storage that can't be made: none hides another."""
    (room.folder / "occupied").write_text("")
    flags = {"domain": "nowhere.jsonl", "workers": 40, "storage": "occupied"}
    command = ["doctor.py", *room.search("ill", **flags)[1:]]
    process = room.start(command, stderr=subprocess.PIPE, **shared)
    printed, error = process.communicate()
    assert (
        process.returncode == 2 and error == "error: 3 faults found; the lines marked ✗ say what mends what\n"
    )
    assert "nowhere.jsonl: no such file" in printed and "--workers 40 needs 42 logical CPUs" in printed
    assert "occupied/ill-examined can't be written" in printed and "✓ versions" in printed
    assert [line[2:13].strip() for line in printed.splitlines() if line.startswith("✗")] == [
        "domain text",
        "--storage",
        "cluster",
    ]
