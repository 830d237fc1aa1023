"""The text that a run trains on: its parts, their shares, and how often each is gone through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adept_ray.config.specs import RunSpec
from adept_ray.data.blocks import BlockOrder, Blocks
from adept_ray.run.sources import Needs, name_parts
from adept_ray.run.terminal import Display
from adept_ray.storage.records import TextRecord
from adept_ray.training.work import TrainWork


@dataclass(frozen=True)
class Passes:
    """How much of a corpus a training takes."""

    corpus: str
    tokens: int
    """That a training takes of it, at most; those that it goes through again count again."""
    held: int
    """Tokens of the text that a training takes them from."""
    wanted: int = 0
    """Tokens, each counted once, that would do for all trainings, where the corpus has fewer; else 0."""
    trainings: int = 1
    """Trainings that want text of their own."""
    alone: bool = True
    """Whether its side has no other."""

    @property
    def number(self) -> float:
        """How often a training goes through its text, at most."""
        return self.tokens / self.held


def list_passes(run: RunSpec, blocks: Mapping[str, Blocks], needs: Needs) -> list[Passes]:
    """What a training takes of each corpus that it trains on, before its exact settings are known."""
    taken = {"domain": 1.0 - needs.least_replay, "general": needs.replay}
    found = []
    for side, names in name_parts(run).items():
        mixture = run.corpora[side]
        for (name, share), part in zip(names.items(), mixture.parts, strict=True):
            wanted = needs.train_tokens * share * taken[side]
            distinct = round(wanted / needs.trainings)
            if distinct:
                count = len(blocks[name])
                enough = blocks[name].has_pieces(needs.trainings, wanted)
                found.append(
                    Passes(
                        part.name,
                        distinct * needs.passes,
                        (count // needs.trainings if enough else count) * run.seq_len,
                        0 if enough else round(wanted),
                        needs.trainings,
                        len(mixture.parts) == 1,
                    )
                )
    return found


def show_passes(found: Sequence[Passes], display: Display) -> None:
    """Say how often each of several corpora of a side is gone through; warn of one that ends too early."""
    for each in found:
        if each.wanted:
            so = "a training" if each.trainings == 1 else "all trainings share it, and each"
            display.warn(
                f"'{each.corpus}' ends before the tokens asked for: its training text holds {each.held:,} of "
                f"{each.wanted:,}, so {so} goes through it up to {each.number:.1f} times"
            )
        elif not each.alone:
            display.show(
                f"'{each.corpus}': up to {each.tokens:,} tokens to train on, {each.number:.2f} passes"
            )


def record_text(run: RunSpec, blocks: Mapping[str, Blocks], work: TrainWork) -> list[TextRecord]:
    """What a training took of each corpus, as run.json keeps it."""
    shares = work.text_shares
    counts = {name: len(blocks[name]) for name in shares}
    order = BlockOrder(tuple(counts.values()), work.seed, tuple(shares.values()))
    places = (work.steps_before + work.steps) * work.blocks_per_step
    taken = dict(zip(shares, order.count_blocks(places), strict=True))
    rows: list[TextRecord] = []
    for side, names in name_parts(run).items():
        mixture = run.corpora[side]
        for name, part in zip(names, mixture.parts, strict=True):
            if name in shares:
                rows.append(
                    {
                        "side": side,
                        "corpus": part.name,
                        "weight": part.weight,
                        "share": shares[name],
                        "tokens": taken[name] * work.seq_len,
                        "passes": round(taken[name] / counts[name], 4),
                    }
                )
    return rows
