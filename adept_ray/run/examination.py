"""A cluster is examined for a run: its nodes are asked, and what they say is judged.

This takes seconds. Every command does it before anything expensive, and `doctor.py` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adept_ray.config.places import make_absolute
from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.config.validation import fingerprint
from adept_ray.data.hub import find_token
from adept_ray.data.loading import Backbone
from adept_ray.engine.nodes import Answers, ask_nodes, compare_places, inspect_node, list_nodes
from adept_ray.run.checks import (
    check_answers,
    check_backbone_folder,
    check_disks,
    check_gpus,
    check_places,
    check_versions,
)
from adept_ray.run.context import Session
from adept_ray.run.disk_needs import DiskNeeds, plan_disk_needs
from adept_ray.run.fetching import Show, examine_hub, fetch_backbone, refuse_all
from adept_ray.run.question import Question
from adept_ray.run.sources import Sources
from adept_ray.run.terminal import Display
from adept_ray.storage.files import list_sizes


@dataclass(frozen=True)
class Examination:
    """What is examined, as far as it is known."""

    run: RunSpec
    backbone: Backbone | None
    needs: DiskNeeds | None
    """What a search takes of disks."""


def plan_examination(run: SearchRun, sources: Sources, question: Question) -> Examination:
    """What is examined for a search of that question."""
    return Examination(run, sources.backbone, plan_disk_needs(run, sources, question.space))


def examine_cluster(examination: Examination, show: Show, display: Display) -> None:
    """Look at the cluster that this process is connected to, and let `show` have every check.

    Files of a backbone from the hub are fetched on every node that lacks some, with this machine's token. On
    a cluster of one node there is nothing to compare.
    """
    run, backbone, token = examination.run, examination.backbone, find_token() or None
    nodes = list_nodes()
    here, alone = nodes[0].name, len(nodes) == 1
    storage = make_absolute(run.storage)
    folders = {} if "://" in storage else {"storage": storage}
    own = inspect_node(folders, on_gpus=False)
    if alone and not run.machine.on_gpus:
        answers = Answers({here: own})
    else:
        answers = ask_nodes(nodes, inspect_node, folders, run.machine.on_gpus)
    show(check_answers(nodes, answers))
    show(check_versions(answers, own))
    show(check_gpus(nodes, answers, run.machine))
    working = [node for node in nodes if node.here or node.cpus >= 1]
    if not alone:
        places = {"--storage": storage, "--cache": run.machine.cache}
        for check in check_places(places, working, compare_places(working, places)):
            show(check)
    missing: dict[str, int] = {}
    if backbone and backbone.revision:
        missing = examine_hub(working, backbone, token, show)
    elif backbone and not alone:
        seen = ask_nodes(working, name_files, backbone.source)
        show(check_backbone_folder(backbone.source, seen, here))
    if examination.needs:
        show(check := check_disks(answers, here, examination.needs, missing))
        if backbone and any(missing.values()) and not check.faults:
            fetch_backbone(working, backbone, missing, token, show, display)


def name_files(folder: str) -> str:
    """Names what this machine has in a folder, by names and sizes; empty if it isn't there."""
    return fingerprint(sorted(list_sizes(Path(folder)).items())) if Path(folder).is_dir() else ""


def refuse_faults(examination: Examination, display: Display) -> None:
    """Examine the cluster without a word, unless something is wrong.

    Raises :class:`UserError` with all faults.
    """
    faults: list[str] = []
    examine_cluster(examination, lambda check: faults.extend(check.faults), display)
    refuse_all(faults)


def plan_refusal(session: Session[RunSpec], sources: Sources) -> Callable[[], None]:
    """What a command that isn't a search calls to have its cluster looked at (see :func:`refuse_faults`)."""
    return partial(refuse_faults, Examination(session.run, sources.backbone, None), session.display)
