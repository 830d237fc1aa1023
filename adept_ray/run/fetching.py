"""Files from the hub, looked for on all nodes and fetched under a bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from adept_ray.config.errors import UserError
from adept_ray.data.corpora import fill_corpus
from adept_ray.data.hub import find_token
from adept_ray.data.hub_files import HubFiles, look_for_files
from adept_ray.data.loading import Backbone, check_tokenizer
from adept_ray.engine.fetching import fetch_on_nodes
from adept_ray.engine.nodes import Answers, Node, ask_nodes, list_nodes
from adept_ray.run.check_list import Check
from adept_ray.run.checks import check_hub
from adept_ray.run.sources import Sources
from adept_ray.run.terminal import Display

Show = Callable[[Check], None]


def examine_hub(nodes: Sequence[Node], backbone: Backbone, token: str | None, show: Show) -> dict[str, int]:
    """Show what the `nodes` have of a backbone's files on the hub; returns the bytes that each lacks."""
    asked = (backbone.source, str(backbone.revision), token)
    if len(nodes) == 1 and nodes[0].here:
        answers: Answers[HubFiles] = Answers({nodes[0].name: look_for_files(*asked)})
    else:
        answers = ask_nodes(list(nodes), look_for_files, *asked)
    show(check_hub(backbone.source, answers))
    return {name: files.missing for name, files in answers.heard.items() if not files.fault}


def fetch_backbone(
    nodes: Sequence[Node],
    backbone: Backbone,
    missing: Mapping[str, int],
    token: str | None,
    show: Show,
    display: Display,
) -> None:
    """Fetch a backbone's files where they are missing, under a bar: workers would do so without a word."""
    lacking = sum(bool(size) for size in missing.values())
    with display.show_stage("fetch", f"files of {backbone.source} on {lacking} nodes") as update:
        repository = backbone.source, str(backbone.revision)
        failed = fetch_on_nodes(nodes, repository, missing, token, update, display.say)
    faults = tuple(f"node {name}: {why}" for name, why in failed.items())
    show(Check("files", f"fetched on {lacking - len(failed)} of {lacking} nodes", faults))


def fetch_to_nodes(backbone: Backbone, display: Display) -> None:
    """Fetch a backbone's files from the hub to every node that lacks some.

    Raises :class:`UserError` for what can't be had.
    """
    faults: list[str] = []

    def collect(check: Check) -> None:
        faults.extend(check.faults)

    nodes, token = [node for node in list_nodes() if node.here or node.cpus >= 1], find_token() or None
    missing = examine_hub(nodes, backbone, token, collect)
    if any(missing.values()) and not faults:
        fetch_backbone(nodes, backbone, missing, token, collect, display)
    refuse_all(faults)


def refuse_all(faults: Sequence[str]) -> None:
    """Raise :class:`UserError` with all faults, if there are some."""
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults:
        numbered = "; ".join(f"({number}) {fault}" for number, fault in enumerate(faults, 1))
        raise UserError(f"{len(faults)} things are wrong with the cluster: {numbered}")


def bring_files(sources: Sources, display: Display, shared: str = "") -> None:
    """Fetch from the hub what of backbone and text isn't here, before anything is built of it.

    Text is kept behind a URI, `shared`, if there is one. Raises :class:`UserError` for what can't be had.
    """
    if sources.backbone.revision:
        fetch_to_nodes(sources.backbone, display)
        check_tokenizer(sources.backbone, sources.config.vocab_size)
    for corpus in sources.list_corpora().values():
        if corpus.is_to_be_filled:
            with display.show_stage("text", f"text of {corpus.name}") as update:
                fill_corpus(corpus, update, shared)
        if corpus.omitted:
            display.say(f"{corpus.name}: {corpus.omitted}")
