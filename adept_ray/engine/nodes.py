"""The nodes of a cluster: one task on each says what is there, and a node that is silent holds nobody up."""

from __future__ import annotations

import csv
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Generic, TypeVar

from adept_ray.config.errors import find_cause, first_line, shorten_error
from adept_ray.config.places import PACKAGE
from adept_ray.method.gpus import read_gpu_facts
from adept_ray.storage.markers import answer_mark, has_answer, leave_mark, remove_marks

T = TypeVar("T")
ANSWER_TIMEOUT_S = 60  # seconds that all nodes have for an answer; a process there starts in a few
PACKAGES = ("adept_ray", "ray", "torch", "transformers", "optuna", "datasets", "pyarrow", "gguf", "lm_eval")
GPU_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
QUERY_TIMEOUT_S = 20  # a driver that hangs is a fault of its own


@dataclass(frozen=True)
class Gpu:
    """A card, whether Ray counts it or not."""

    name: str
    memory: int
    """Bytes."""


@dataclass(frozen=True)
class Disk:
    """Where a folder lies."""

    path: str
    device: int
    """Number of its file system, which other folders of that machine may share."""
    free: int
    """Bytes."""


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself."""

    versions: Mapping[str, str]
    """``python`` and the packages that numbers depend on → version."""
    code: str
    """Names this package's own code there, whatever its version says."""
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    """Version of NVIDIA's driver."""
    built_for: str = ""
    """What torch was built for, such as ``CUDA 13.0``; empty for CPUs alone, and where nobody asked."""
    cuda_fault: str = ""
    """Why torch can't use a GPU there."""
    disks: Mapping[str, Disk] = field(default_factory=dict)
    """``temporary``, ``hub`` and the folders that were asked for, by name → where they lie."""


@dataclass(frozen=True)
class Node:
    """A node that Ray counts as alive."""

    id: str
    name: str
    """Its address, by which a person knows it; with a piece of its id where several have the same one."""
    cpus: float
    gpus: float
    here: bool
    """Whether the command runs on it."""
    memory: int = 0
    """Bytes that Ray counts there; 0 where it doesn't say."""


@dataclass(frozen=True)
class Answers(Generic[T]):
    """What nodes answered, by their names."""

    heard: Mapping[str, T]
    silent: Mapping[str, str] = field(default_factory=dict)
    """Node that gave no answer → why."""


def list_nodes() -> list[Node]:
    """The nodes that are alive, the command's own first. Needs a running Ray."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    found = []
    for node, address in zip(alive, addresses, strict=True):
        name = address if addresses.count(address) == 1 else f"{address} ({node['NodeID'][:6]})"
        have, is_here = node["Resources"], node["NodeID"] == here
        memory = int(have.get("memory", 0))
        found.append(Node(node["NodeID"], name, have.get("CPU", 0), have.get("GPU", 0), is_here, memory))
    return sorted(found, key=lambda node: not node.here)


def ask_nodes(nodes: list[Node], question: Callable[..., T], *words: object) -> Answers[T]:
    """Call `question` with `words` in a process of its own on each of the `nodes`, all at the same time.

    A node that doesn't answer in time, or can't, is among the silent ones. Needs a running Ray.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # The process ends with its answer: it may have looked at GPUs, which workers must find as Ray sets them.
    ask = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(question)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[ask.options(scheduling_strategy=there).remote(*words)] = node.name
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_TIMEOUT_S)
    heard, silent = {}, {}
    for reference in ready:
        try:
            heard[asked[reference]] = ray.get(reference)
        except Exception as problem:  # Ray's own, or what the question raised there
            silent[asked[reference]] = f"it can't be asked: {find_cause(problem)[:200]}"
    for reference in late:
        silent[asked[reference]] = f"it didn't answer within {ANSWER_TIMEOUT_S} s"
        ray.cancel(reference, force=True)
    names = [node.name for node in nodes]
    return Answers({name: heard[name] for name in names if name in heard}, silent)


def inspect_node(folders: Mapping[str, str], on_gpus: bool) -> NodeFacts:
    """What this machine says of itself, and of the disks of these `folders` (name → path).

    Torch is loaded, and asked for its GPUs, only where a run is to be `on_gpus`.
    """
    gpus, driver, fault = query_gpus()
    built_for = ""
    if on_gpus:
        built_for, cuda_fault = try_cuda()
        fault = fault or cuda_fault
    places = {**folders, "temporary": tempfile.gettempdir(), "hub": find_hub_cache()}
    return NodeFacts(
        versions=list_versions(),
        code=fingerprint_code(),
        gpus=gpus,
        driver=driver,
        built_for=built_for,
        cuda_fault=fault,
        disks={name: measure_disk(path) for name, path in places.items()},
    )


def list_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that isn't installed
            versions[package] = "not installed"
    return versions


def fingerprint_code() -> str:
    """Eight hex digits that name the Python files of this package as they are here."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def query_gpus() -> tuple[tuple[Gpu, ...], str, str]:
    """The cards of this machine, the version of their driver, and why the driver can't be asked.

    NVIDIA's own program sees all cards, whatever a process may use. Without it there is nothing to say.
    """
    try:
        done = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S)
    except FileNotFoundError:
        return (), "", ""
    except (OSError, subprocess.TimeoutExpired) as problem:
        return (), "", f"nvidia-smi fails: {shorten_error(problem)}"
    rows = [[part.strip() for part in row] for row in csv.reader(done.stdout.splitlines()) if len(row) == 3]
    if done.returncode or not rows:
        said = find_cause(done.stdout + done.stderr)
        return (), "", "" if said.startswith("No devices") else f"nvidia-smi fails: {said[:200]}"
    sizes = [int(size) * 2**20 if size.isdigit() else 0 for _, size, _ in rows]
    return tuple(Gpu(row[0], size) for row, size in zip(rows, sizes, strict=True)), rows[0][2], ""


def try_cuda() -> tuple[str, str]:
    """What torch was built for here, and why it can't use a GPU; each is empty if there is nothing to say."""
    import torch

    facts = read_gpu_facts()
    if not facts.built_for or facts.problem:
        return facts.built_for, first_line(facts.problem) if facts.built_for else ""
    return facts.built_for, "" if torch.cuda.device_count() else "it sees no card"


def find_hub_cache() -> str:
    """Folder in which the Hugging Face hub's client keeps what it fetches."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def measure_disk(path: str) -> Disk:
    """The disk on which a folder lies or would be made."""
    folder = Path(path).expanduser().absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return Disk(str(folder), os.stat(there).st_dev, shutil.disk_usage(there).free)


def compare_places(nodes: list[Node], places: Mapping[str, str]) -> dict[str, Answers[str]]:
    """Whether all `nodes` mean the same by each place: flag → node → why not, empty where it is the same.

    The command leaves a mark in each place, every node looks for it and leaves an answer, and the command
    looks for that. Nothing stays.
    """
    token = secrets.token_hex(8)
    others, found, marked = [node for node in nodes if not node.here], {}, {}
    try:
        for flag, place in places.items():
            try:
                leave_mark(place, token)
                marked[flag] = place
            except Exception as problem:  # each file system has errors of its own
                why = f"it can't be used there: {shorten_error(problem)}"
                found[flag] = Answers({node.name: why for node in nodes if node.here})
        answers = ask_nodes(others, answer_marks, marked, token) if marked else Answers[dict[str, str]]({})
        found |= {flag: collect_answers(flag, marked[flag], token, others, answers) for flag in marked}
    finally:
        for place in marked.values():
            remove_marks(place, token)
    return {flag: found[flag] for flag in places}


def answer_marks(places: Mapping[str, str], token: str) -> dict[str, str]:
    """What this node answers to the mark in each place: flag → why it has another one."""
    import ray

    name = ray.get_runtime_context().get_node_id()
    return {flag: answer_mark(place, token, name) for flag, place in places.items()}


def collect_answers(
    flag: str, place: str, token: str, nodes: list[Node], answers: Answers[dict[str, str]]
) -> Answers[str]:
    """The nodes' answers about one place; one that can't be seen here is a fault, too."""
    heard = {}
    for node in nodes:
        if node.name in answers.heard:
            why = answers.heard[node.name][flag]
            seen = why or has_answer(place, token, node.id)
            heard[node.name] = why if seen else "what that node wrote there can't be seen by the command"
    return Answers(heard, answers.silent)
