"""Backbone and corpora of a run, found and checked before anything expensive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adept_ray.config.specs import RunSpec
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.benchmark_tasks import TaskItems, draw_items
from adept_ray.data.corpora import CorpusFiles
from adept_ray.data.hub_client import PATIENCE
from adept_ray.data.loading import Backbone, build_outline
from adept_ray.data.mixing import MixedCorpus, number_names
from adept_ray.engine.cluster import check_workers
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.scores import SIDES
from adept_ray.run.context import Session
from adept_ray.run.model_checks import load_checked_config
from adept_ray.run.texts import check_text, check_unchanged, find_text
from adept_ray.storage.files import check_place

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TEXTS = {"domain": "train", "general": "replay"}  # side → name of its blocks to train on


@dataclass(frozen=True)
class Sources:
    """Backbone and corpora, found and checked, before anything expensive."""

    backbone: Backbone
    config: PreTrainedConfig
    """Its Hugging Face config."""
    general: MixedCorpus
    domain: MixedCorpus | None
    items: Mapping[str, Mapping[str, TaskItems]] = field(default_factory=dict)
    """Side → ``validation`` and ``test`` → items of its benchmark tasks, if it has any."""

    @property
    def layers(self) -> int:
        """Number of layers of the backbone."""
        return self.config.num_hidden_layers

    @property
    def fingerprints(self) -> dict[str, str]:
        """Names of backbone and corpora by their content."""
        found = {what: corpus.fingerprint for what, corpus in self.list_corpora("corpus").items()}
        return {"backbone": self.backbone.fingerprint, **found}

    @property
    def sides(self) -> dict[str, MixedCorpus]:
        """``general``, and ``domain`` if it is there → the corpora of that side."""
        return {"general": self.general} | ({"domain": self.domain} if self.domain else {})

    def list_corpora(self, what: str = "") -> dict[str, CorpusFiles]:
        """Side and `what`, and a number where the side has several → each corpus, those of general first."""
        named = [mixed.list_by_number(f"{side} {what}".strip()) for side, mixed in self.sides.items()]
        return {name: corpus for corpora in named for name, corpus in corpora.items()}

    def build_skeleton(self) -> PreTrainedModel:
        """The backbone's shapes, without data."""
        return build_outline(self.backbone, self.config)

    def select_items(self, split: str) -> dict[str, TaskItems]:
        """Side → its items of that split."""
        return {side: splits[split] for side, splits in self.items.items()}


@dataclass(frozen=True)
class Needs:
    """What a command needs before it trains."""

    k_max: int
    """Largest depth of interest, which a raced probe goes by."""
    train_tokens: int = 0
    """Tokens of training text, at most. Documents lie in their split in the order of a hash, so the first
    ones are a fair sample. A smaller split is gone through several times."""
    replay: float = 0.0
    """Largest share of general text in a training."""
    least_replay: float = 0.0
    """Smallest share of it."""
    trainings: int = 1
    """Trainings that take `train_tokens` in equal pieces, without a block in common."""
    passes: int = 1
    """Times that each of them goes through its piece, where there is enough text."""
    reception: bool = False
    """Every layer's reception, measured on training text."""
    fit: Fit = PLAIN
    """How the model is made to fit into the workers' memories."""

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Sides whose text is trained on."""
        return ("general",) * (self.replay > 0) + ("domain",) * (self.least_replay < 1)


def find_sources(
    session: Session[RunSpec],
    with_domain: bool = True,
    made_from: Mapping[str, str] | None = None,
    train_tokens: Mapping[str, int] | None = None,
) -> Sources:
    """Find and check backbone and corpora.

    They must be those that the results folder names; where it names none, those that `made_from` names. Text
    of the hub is a sample into which `train_tokens` (by side), and what is held out, go. It isn't read yet:
    what a cluster can't do is to be known first.

    Raises :class:`UserError` for what can't be used, for what has changed since, and for more workers than
    this machine has. Code that comes with a backbone runs only after these checks.
    """
    run, display = session.run, session.display
    check_workers(run)
    for side in SIDES if with_domain else SIDES[:1]:
        check_text(run, side)
    PATIENCE.say = display.say
    began = session.results.read_record().get("fingerprints", made_from or {})
    if str(run.machine.local_cache) != run.machine.cache:
        kept = run.machine.local_cache
        display.say(f"downloads and copies out of {run.machine.cache} are kept in {kept}, here alone")
    if "://" in run.machine.cache:
        check_place(run.machine.cache, "--cache")
    with display.show_stage("assets", "backbone and corpora") as update:
        cache = run.machine.local_cache
        backbone = resolve_backbone(
            run.backbone, cache, run.trust_remote_code, run.machine.dtype, began.get("backbone", "")
        )
        check_unchanged("backbone", backbone, began)
        config = load_checked_config(backbone, run.seq_len)
        update(1, 2 + with_domain)
        tokens = train_tokens or {}
        general = find_text(run, "general", tokens.get("general", 0), began, backbone)
        update(2, 2 + with_domain)
        domain = None
        if with_domain:
            domain = find_text(run, "domain", tokens.get("domain", 0), began, backbone)
    tasks = {side: getattr(run, f"{side}_tasks") for side in SIDES if with_domain}
    items: dict[str, dict[str, TaskItems]] = {}
    if any(tasks.values()):
        with display.show_stage("tasks", "benchmark tasks") as update:
            for number, (side, names) in enumerate(tasks.items(), 1):
                if names:
                    items[side] = draw_items(names, run.task_items, run.seed, run.machine.local_cache)
                update(number, len(tasks))
    return Sources(backbone, config, general, domain, items)


def name_parts(run: RunSpec) -> dict[str, dict[str, float]]:
    """Side → name of the blocks of each of its corpora to train on → its share of the side's tokens."""
    named = {}
    for side, name in TEXTS.items():
        mixture = run.corpora[side]
        names = number_names(name, len(mixture.parts))
        named[side] = dict(zip(names, mixture.shares, strict=True))
    return named


def count_train_tokens(tokens: int, with_general: bool) -> dict[str, int]:
    """Tokens to train on, at most, by side; of general text only where some of it is trained on."""
    return {"domain": tokens, "general": tokens if with_general else 0}


def list_notes(sources: Sources) -> dict[str, str]:
    """Where things come from and under which licence, and what of the text isn't read."""
    notes = {"backbone": f"{sources.backbone.name}: {sources.backbone.note}"}
    for what, corpus in sources.list_corpora().items():
        notes[what] = f"{corpus.name}: {corpus.note}" + (f"; {corpus.omitted}" if corpus.omitted else "")
    return notes
