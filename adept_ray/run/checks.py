"""What is wrong with a cluster for a run: from what its nodes say to faults, each with what mends it.

Nothing here asks anybody: these are functions of facts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from adept_ray.config.machine import Machine
from adept_ray.data.hub_files import HubFiles
from adept_ray.engine.nodes import Answers, Disk, Node, NodeFacts
from adept_ray.run.check_list import Check
from adept_ray.run.disk_needs import DiskNeeds
from adept_ray.training.streams import LEFT_SHARE

GIB = 2**30
UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
REMEDY = "pip install -c constraints.txt there"
FOLDERS = {  # what is kept there, and how to have it elsewhere
    "storage": ("results and checkpoints", "give another --storage"),
    "temporary": ("the exported model and checkpoints, on the way to or from --storage", "set TMPDIR there"),
    "hub": ("the backbone's files from the hub", "set HF_HOME there"),
}


def check_answers(nodes: Sequence[Node], answers: Answers[NodeFacts]) -> Check:
    """Whether every node that Ray counts as alive says something."""
    faults = [
        f"node {name}: {why}: see whether it is alive (`ray status`) and has this package, or stop Ray on it"
        for name, why in answers.silent.items()
    ]
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    found = f"{len(answers.heard)} of {len(nodes)} answered: {cpus:g} logical CPUs, {gpus:g} GPUs for Ray"
    return Check("nodes", found, tuple(faults))


def check_versions(answers: Answers[NodeFacts], here: NodeFacts) -> Check:
    """Whether Ray, Python, packages and this package's code are everywhere those of the command, `here`.

    Builds of torch for CPUs and for a CUDA are of one version, and Python's last number is free.
    """
    faults = []
    wanted = {name: shorten_version(name, text) for name, text in here.versions.items()}
    for node, facts in answers.heard.items():
        others = [
            f"{name} {facts.versions.get(name, 'not installed')}"
            for name, version in wanted.items()
            if shorten_version(name, facts.versions.get(name, "not installed")) != version
        ]
        if others:
            ours = ", ".join(here.versions[each.partition(" ")[0]] for each in others)
            faults.append(
                f"node {node} has {', '.join(others)} where the command has {ours}: install the same "
                f"({REMEDY})"
            )
        elif facts.code != here.code:
            faults.append(
                f"node {node} has other code of adept_ray than the command, though of the same version: "
                "install the same commit there"
            )
    shown = ", ".join(f"{name} {here.versions[name]}" for name in ("python", "ray", "torch", "transformers"))
    alike = "" if faults or len(answers.heard) < 2 else f", alike on {len(answers.heard)} nodes"
    return Check("versions", shown + alike, tuple(faults))


def shorten_version(name: str, version: str) -> str:
    """The part of a version that has to be the same on all nodes."""
    return ".".join(version.split(".")[:2]) if name == "python" else version.partition("+")[0]


def check_gpus(nodes: Sequence[Node], answers: Answers[NodeFacts], machine: Machine) -> Check:
    """Whether torch can use the GPUs that Ray counts, and whether they are of one kind."""
    kinds = Counter(gpu for facts in answers.heard.values() for gpu in facts.gpus)
    shown = ", ".join(f"{n} × {gpu.name} ({gpu.memory / GIB:.0f} GiB)" for gpu, n in kinds.items())
    if not machine.on_gpus:
        unused = f"; not used: {shown}" if shown else ""
        return Check("GPUs", f"--gpus-per-worker 0 computes on CPUs{unused}")
    faults = []
    used = {node.name: answers.heard[node.name] for node in nodes if node.gpus and node.name in answers.heard}
    for name, facts in used.items():
        torch, driver = f"torch {facts.versions['torch']}", facts.driver or "no NVIDIA driver"
        if not facts.built_for:
            faults.append(
                f"node {name} has GPUs and {torch}, built for CPUs alone: install the build for its CUDA "
                "there (https://pytorch.org/get-started)"
            )
        elif facts.cuda_fault:
            faults.append(
                f"node {name}: {torch} for {facts.built_for} can't use its GPUs under driver {driver} "
                f"({facts.cuda_fault}): update the driver, or install a torch built for an older CUDA"
            )
    sorts = Counter(gpu for facts in used.values() for gpu in facts.gpus)
    if len(sorts) > 1:
        several = " and ".join(sorted(f"{gpu.name} of {gpu.memory / GIB:.0f} GiB" for gpu in sorts))
        faults.append(
            f"the GPUs are of {len(sorts)} kinds, {several}, so the plan may count with more memory than "
            "some have, and all wait for the slowest: start Ray with --num-gpus 0 on nodes of other kinds"
        )
    wanted = machine.fewest_workers * machine.gpus_per_worker
    if wanted > (have := sum(node.gpus for node in nodes)):
        faults.append(
            f"the workers need {wanted:g} GPUs and Ray counts {have:g}: lower --workers or "
            "--gpus-per-worker, or start Ray where more GPUs are"
        )
    about = {f"driver {f.driver}, torch for {f.built_for or 'CPUs'}" for f in used.values()}
    return Check("GPUs", "; ".join([shown or "none", *sorted(about)]), tuple(faults))


def check_places(
    places: Mapping[str, str], nodes: Sequence[Node], found: Mapping[str, Answers[str]]
) -> list[Check]:
    """Whether each place (flag → path or URI) is one and the same for all nodes on which workers may be."""
    checks = []
    for flag, answers in found.items():
        reasons = {**{name: why for name, why in answers.heard.items() if why}, **answers.silent}
        faults = [
            f"{flag} {places[flag]} isn't the command's on node {name} ({why}): give a folder that all nodes "
            "share and may write to, or a URI such as s3://…"
            for name, why in reasons.items()
        ]
        good = f"{places[flag]}, the same on {len(nodes)} nodes" if not faults else places[flag]
        checks.append(Check(flag, good, tuple(faults)))
    return checks


def check_disks(
    answers: Answers[NodeFacts], here: str, needs: DiskNeeds, missing: Mapping[str, int] | None = None
) -> Check:
    """Whether the disks have room for what the plan says.

    Storage is looked at from the node `here`, where the command runs. Every node has its own temporary
    folder, and what of the hub's files it misses (`missing`, by node). Folders on one disk share its room.
    """
    faults = []
    beside = f" in the {LEFT_SHARE:.0%} of it that kept streams leave"
    for node, facts in answers.heard.items():
        wanted = {"temporary": needs.temporary, "hub": (missing or {}).get(node, 0)}
        if node == here and "storage" in facts.disks:
            wanted["storage"] = needs.storage
        by_disk: dict[int, dict[str, Disk]] = defaultdict(dict)
        for name, size in wanted.items():
            if size:
                by_disk[facts.disks[name].device][name] = facts.disks[name]
        for folders in by_disk.values():
            need, free = sum(wanted[name] for name in folders), min(d.free for d in folders.values())
            streams = needs.streams and "temporary" in folders
            if need > (LEFT_SHARE * free if streams else free):
                what = "; ".join(f"{disk.path} for {FOLDERS[n][0]}" for n, disk in folders.items())
                ways = " or ".join(FOLDERS[name][1] for name in folders)
                faults.append(
                    f"node {node} has {format_size(free)} free where up to {format_size(need)} are needed"
                    f"{beside * streams} ({what}): make room, or {ways}"
                )
    found = (
        f"a checkpoint of the deepest trial {format_size(needs.checkpoint)}, the model "
        f"{format_size(needs.model)}, all results {format_size(needs.storage)} at most"
    )
    return Check("disks", found, tuple(faults))


def check_hub(repository: str, answers: Answers[HubFiles]) -> Check:
    """Whether every node has a backbone's files, or can fetch them."""
    reasons = {**{n: files.fault for n, files in answers.heard.items() if files.fault}, **answers.silent}
    faults = [f"node {name}: {why}" for name, why in reasons.items()]
    sizes = [files.missing for files in answers.heard.values() if not files.fault]
    found = f"{repository}: {sum(not size for size in sizes)} of {len(answers.heard)} nodes have its files"
    if any(sizes):
        found += f", others lack up to {format_size(max(sizes))}"
    return Check("hub", found, tuple(faults))


def check_backbone_folder(folder: str, answers: Answers[str], here: str) -> Check:
    """Whether a backbone that is a folder has the same files on every node; `here` names the command's."""
    faults = []
    for node, named in answers.heard.items():
        if named != answers.heard.get(here):
            what = "isn't there" if not named else "holds other files than the command's"
            faults.append(f"the backbone {folder} {what} on node {node}: put it where all nodes find it")
    faults += [f"node {node}: {why}" for node, why in answers.silent.items()]
    return Check("backbone", folder, tuple(faults))


def format_size(size: float) -> str:
    """Bytes as a person reads them: ``9.3 GB``, ``340 MB``, ``12 kB``."""
    unit, least = next((each for each in UNITS.items() if size >= each[1]), ("bytes", 1.0))
    return f"{size / least:.{int(unit == 'GB')}f} {unit}"
