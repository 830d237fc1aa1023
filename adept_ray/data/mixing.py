"""Several corpora as the text of one side: each has its blocks, and gives its share of the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adept_ray.config.validation import fingerprint
from adept_ray.data.blocks import Blocks, BlockSet, join_blocks
from adept_ray.data.corpora import CorpusFiles


@dataclass(frozen=True)
class MixedCorpus:
    """The corpora of a side, in the order in which they were given."""

    parts: tuple[CorpusFiles, ...]
    shares: tuple[float, ...] = (1.0,)
    """Of the side's tokens, that each gives; they add up to 1."""

    @property
    def name(self) -> str:
        """The corpus, or all of them with their shares."""
        if len(self.parts) == 1:
            return self.parts[0].name
        return ", ".join(f"{each.name} ({s:.3g})" for each, s in zip(self.parts, self.shares, strict=True))

    def list_by_number(self, what: str) -> dict[str, CorpusFiles]:
        """`what` → the corpus; of several, `what` and a number, from 1 on, → each."""
        return dict(zip(number_names(what, len(self.parts)), self.parts, strict=True))


NO_CORPUS = MixedCorpus((CorpusFiles(Path(), "", "", ""),))


@dataclass(frozen=True)
class MixedBlocks:
    """All blocks of a side: a set for each of its corpora."""

    sets: tuple[BlockSet, ...]
    names: tuple[str, ...]
    """The corpora as they were given, for sentences."""
    shares: tuple[float, ...] = (1.0,)
    """Of the side's tokens, that each gives; they add up to 1."""

    @property
    def fingerprint(self) -> str:
        """Names the blocks, and in which shares they are taken."""
        if len(self.sets) == 1:
            return self.sets[0].fingerprint
        return fingerprint("mixed", *zip((each.fingerprint for each in self.sets), self.shares, strict=True))

    def load(self, split: str, tokens: int, seq_len: int) -> Blocks:
        """The first blocks of a split that hold at least `tokens` tokens, of each corpus its share of them.

        They are in memory. Documents stay whole: the blocks of a corpus come one after the other. Raises
        :class:`UserError` where a corpus has too few, saying what it needs.
        """
        counts = share_out(math.ceil(tokens / seq_len), self.shares)
        wanted = [min(tokens, count * seq_len) for count in counts]
        parts = [
            each.open_split(split, size, seq_len, name).take_first(size)
            for each, name, size in zip(self.sets, self.names, wanted, strict=True)
            if size
        ]
        return join_blocks(parts).read()

    def list_missing(self, tokens: int, seq_len: int) -> dict[str, float]:
        """The corpora → their shares, of which :meth:`load` has no block: they are too small a part of it."""
        counts = share_out(math.ceil(tokens / seq_len), self.shares)
        return {
            name: share
            for name, share, count in zip(self.names, self.shares, counts, strict=True)
            if not count
        }

    def load_spread(self, split: str, tokens: int, seq_len: int) -> Blocks:
        """The same blocks as of :meth:`load`, in an order in which the first ones have the shares, too.

        Documents of more than one block are torn apart, so it is for text that is measured block by block.
        """
        blocks = self.load(split, tokens, seq_len)
        counts = [count for count in share_out(len(blocks), self.shares) if count]
        if len(counts) == 1:
            return blocks
        due = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        order = due.argsort(kind="stable").tolist()
        return Blocks(blocks.tokens[order], blocks.bytes[order], blocks.starts[order])

    def load_training(self, tokens: int, seq_len: int) -> list[Blocks]:
        """Of each corpus the first blocks to train on that hold its share of `tokens`, or all it has.

        They stay in their files.
        Raises :class:`UserError` where a corpus hasn't a single one.
        """
        wanted = [max(math.ceil(tokens * share), seq_len) for share in self.shares]
        return [
            each.open_split("train", seq_len, seq_len, name).take_first(size)
            for each, name, size in zip(self.sets, self.names, wanted, strict=True)
        ]


def share_out(count: int, shares: Sequence[float]) -> list[int]:
    """So many things in these shares, by largest remainder; of equal ones the first gets more."""
    whole = [math.floor(count * share) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda part: whole[part] - count * shares[part])
    for part in by_rest[: count - sum(whole)]:
        whole[part] += 1
    return whole


def number_names(name: str, count: int) -> list[str]:
    """Names of the parts of what is called `name`: that itself, where it is one."""
    return [name] if count == 1 else [f"{name} {number}" for number in range(1, count + 1)]
