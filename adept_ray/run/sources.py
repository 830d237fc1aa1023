"""Backbone and corpora of a run, found and checked before anything expensive."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.benchmark_tasks import TaskItems, draw_items
from adept_ray.data.corpora import CorpusFiles, find_corpus
from adept_ray.data.hub_client import PATIENCE
from adept_ray.data.loading import Backbone, build_outline, load_config
from adept_ray.data.near_duplicates import check_near_duplicates
from adept_ray.data.packing import DOMAIN_SPLITS, GENERAL_SPLITS
from adept_ray.engine.cluster import check_workers
from adept_ray.method.anatomy import family_of_config
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.scores import SIDES
from adept_ray.run.context import Session
from adept_ray.storage.files import check_place

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

BYTES_A_TOKEN = 6  # more than tokenizers of large vocabularies make of any language's prose
STEP_BYTES = 64 * 2**20  # so that runs of about the same size read the same text


@dataclass(frozen=True)
class Sources:
    """Backbone and corpora, found and checked, before anything expensive."""

    backbone: Backbone
    config: PreTrainedConfig
    """Its Hugging Face config."""
    general: CorpusFiles
    domain: CorpusFiles | None
    items: Mapping[str, Mapping[str, TaskItems]] = field(default_factory=dict)
    """Side → ``validation`` and ``test`` → items of its benchmark tasks, if it has any."""

    @property
    def layers(self) -> int:
        """Number of layers of the backbone."""
        return self.config.num_hidden_layers

    @property
    def fingerprints(self) -> dict[str, str]:
        """Names of backbone and corpora by their content."""
        names = {"backbone": self.backbone.fingerprint, "general corpus": self.general.fingerprint}
        return names | ({"domain corpus": self.domain.fingerprint} if self.domain else {})

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
    replay: bool = False
    """General text to train on, too."""
    reception: bool = False
    """Every layer's reception, measured on training text."""
    fit: Fit = PLAIN
    """How the model is made to fit into the workers' memories."""


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
        general = find_text(run, "general", tokens.get("general", 0), began)
        update(2, 2 + with_domain)
        domain = find_text(run, "domain", tokens.get("domain", 0), began) if with_domain else None
    tasks = {side: getattr(run, f"{side}_tasks") for side in SIDES if with_domain}
    items: dict[str, dict[str, TaskItems]] = {}
    if any(tasks.values()):
        with display.show_stage("tasks", "benchmark tasks") as update:
            for number, (side, names) in enumerate(tasks.items(), 1):
                if names:
                    items[side] = draw_items(names, run.task_items, run.seed, run.machine.local_cache)
                update(number, len(tasks))
    return Sources(backbone, config, general, domain, items)


def find_text(run: RunSpec, side: str, train_tokens: int, began: Mapping[str, str]) -> CorpusFiles:
    """The corpus of a side, that of earlier results if there are some. Raises :class:`UserError`."""
    check_near_duplicates(run.near_duplicates)
    what = f"{side} corpus"
    corpus = find_corpus(
        getattr(run, side),
        run.text_column,
        run.machine.local_cache,
        count_text_bytes(run, side, train_tokens),
        began.get(what, ""),
    )
    check_unchanged(what, corpus, began)
    return corpus


def count_train_tokens(tokens: int, with_general: bool) -> dict[str, int]:
    """Tokens to train on, at most, by side; of general text only where some of it is trained on."""
    return {"domain": tokens, "general": tokens if with_general else 0}


def count_text_bytes(run: RunSpec, side: str, train_tokens: int) -> int:
    """Bytes of text into which a run's tokens of that side go, whatever the tokenizer; whole 64 MiB."""
    splits = GENERAL_SPLITS if side == "general" else DOMAIN_SPLITS
    wanted = {
        "probe": run.probe_tokens,
        "train": train_tokens,
        "validation": run.validation_tokens,
        "test": run.test_tokens,
    }
    tokens = max(wanted[split] / share for split, share in splits.items())
    return STEP_BYTES * math.ceil(tokens * BYTES_A_TOKEN / STEP_BYTES)


def check_unchanged(what: str, source: Backbone | CorpusFiles, began: Mapping[str, str]) -> None:
    """Refuse another backbone or corpus than earlier results were made from. Raises :class:`UserError`."""
    if began.get(what, source.fingerprint) != source.fingerprint:
        raise UserError(
            f"the {what} '{source.name}' has changed since the earlier results were made, so new ones can't "
            "be compared with them: put back what it was, or begin again under another --name"
        )


def load_checked_config(backbone: Backbone, seq_len: int) -> PreTrainedConfig:
    """The config of a backbone.

    Raises :class:`UserError` for an unsupported family and for blocks longer than the model can take.
    """
    config = load_config(backbone)
    family_of_config(config)
    most = getattr(config, "max_position_embeddings", None)
    if most and seq_len > most:
        raise UserError(f"--seq-len {seq_len}: {backbone.name} takes at most {most} tokens")
    return config


def list_notes(sources: Sources) -> dict[str, str]:
    """Where things come from and under which licence."""
    parts: Sequence[tuple[str, Backbone | CorpusFiles | None]] = (
        ("backbone", sources.backbone),
        ("general", sources.general),
        ("domain", sources.domain),
    )
    return {side: f"{source.name}: {source.note}" for side, source in parts if source}
