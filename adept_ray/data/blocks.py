"""Packed token blocks, their order in a training, and batches of them."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adept_ray.config.errors import UserError
from adept_ray.data.block_files import (
    BlockFiles,
    BlockTable,
    JoinedTable,
    Shard,
    StoredTable,
    list_stored,
    read_ahead,
)

if TYPE_CHECKING:
    import torch

    from adept_ray.storage.records import CorpusRecord


EPSILON = 1e-9  # so that ten tenths are one
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Blocks:
    """Packed blocks of one split, one after the other as they were cut; in memory or in files."""

    tokens: BlockTable
    """int32 [N, T]: token ids."""
    bytes: BlockTable
    """int32 [N, T − 1]: UTF-8 bytes of the text that each predicted token (all but a block's first) stands
    for; 0 for the EOS between two documents."""
    starts: BlockTable
    """bool [N, T]: whether a document begins with that token."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def documents(self) -> np.ndarray:
        """int64 [N, T − 1]: number, from 0 on, of the document of each predicted token, its EOS included."""
        starts = np.asarray(self.starts)
        begun = starts.ravel().cumsum().reshape(starts.shape)[:, 1:]
        # A document that has nothing but a block's first token doesn't count.
        return np.unique(begun, return_inverse=True)[1].reshape(begun.shape)

    @property
    def document_bytes(self) -> np.ndarray:
        """int64 [D]: UTF-8 bytes of the predicted tokens of each document."""
        return np.bincount(self.documents.ravel(), np.asarray(self.bytes).ravel()).astype(np.int64)

    def has_pieces(self, of: int, tokens: float) -> bool:
        """Whether `of` pieces without a block in common can have so many `tokens` in all, none empty."""
        return len(self) >= max(math.floor(tokens) // self.tokens.shape[1], of)

    def take_piece(self, number: int, of: int) -> Blocks:
        """One of so many equal pieces without a block in common (0-based); the rest is in none."""
        size = len(self) // of
        here = slice(number * size, (number + 1) * size)
        return Blocks(self.tokens[here], self.bytes[here], self.starts[here])

    def take_first(self, tokens: int) -> Blocks:
        """The first blocks that hold at least `tokens` tokens (all of them if there are fewer)."""
        count = -(-tokens // self.tokens.shape[1])
        return Blocks(self.tokens[:count], self.bytes[:count], self.starts[:count])

    @property
    def is_in_memory(self) -> bool:
        """Whether none of them lies in a file."""
        return not any(list_stored(self.tokens))

    def fetch(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Copy the files to this machine, if they are elsewhere: see :meth:`BlockFiles.fetch`."""
        for table in list_stored(self.tokens):  # all that a block has lies in one file
            table.fetch(say)

    def read(self) -> Blocks:
        """The same blocks in memory."""
        self.fetch()
        return Blocks(np.asarray(self.tokens), np.asarray(self.bytes), np.asarray(self.starts))


@dataclass(frozen=True)
class BlockSet:
    """All blocks of a corpus, by split."""

    place: str
    """Folder or URI in which their files lie."""
    fingerprint: str
    splits: Mapping[str, Mapping[str, int]]
    """Split → number of blocks, documents and bytes."""
    shares: Mapping[str, float]
    """Split → its share of the documents."""
    shards: Mapping[str, Sequence[Shard]]
    """Split → its files, in their order."""
    counts: CorpusRecord | None = None
    """What of the corpus is taken, where it was packed from one."""

    def open_split(self, split: str, tokens: int, seq_len: int, corpus: str) -> Blocks:
        """A split in its fixed order. Nothing of it is read yet.

        Raises :class:`UserError` when it holds fewer than `tokens` tokens, saying why and what would help.
        """
        have = self.splits[split]["blocks"] * seq_len
        if have < tokens:
            raise UserError(
                f"corpus '{corpus}' is too small: its {split} split ({self.shares[split]:.0%} of the "
                f"documents) holds {have} tokens in blocks of {seq_len} and {tokens} are needed, so "
                f"{self._name_remedy(split, tokens, seq_len)}"
            )
        files = BlockFiles(self.place, seq_len, tuple(self.shards[split]))
        every = range(self.splits[split]["blocks"])
        return Blocks(
            StoredTable(files, "tokens", every),
            StoredTable(files, "bytes", every),
            StoredTable(files, "starts", every),
        )

    def _name_remedy(self, split: str, tokens: int, seq_len: int) -> str:
        """What gives a split so many tokens: it depends on why it has too few."""
        if self.counts:
            different = self.counts["documents"] - self.counts["repeated"]
            if 2 * self.counts["in_earlier"] > different:
                return "give text that isn't in the corpora before this one, too: most of its documents are"
            if 2 * self.counts["near"] > different:
                return "raise --near-duplicates: most of its documents are nearly equal to others"
            if self.counts["documents"] > 2 * different:
                return "give other text: most of its documents only repeat others"
        wanted = int(tokens / self.shares[split]) + 1
        if sum(each["blocks"] for each in self.splits.values()) * seq_len >= wanted:
            return (
                "give its text in more and shorter documents, each of which goes into one split as a whole "
                "(in a .txt file blank lines separate documents, in .jsonl each line is one)"
            )
        flag = "--seq-len" if split == "train" else f"--{split}-tokens"  # training goes through text again
        return f"give about {wanted} tokens of text, or lower {flag}"


@dataclass(frozen=True)
class BlockOrder:
    """Which block a run sees when: epochs of seeded permutations, joined end to end.

    The global batch of a step depends on the step alone, so a resumed run needs no more than its
    step number, and every number of workers shares out the same batches.

    The text may have several parts, the blocks of each behind those of the parts before it. A place goes to
    the last part where that has fallen behind its share by a whole block, and else to those before it, which
    share out their places in the same way. With two parts that is the rule of Ray Data's ``Dataset.mix``, in
    a form in which any step can be looked up.
    """

    parts: tuple[int, ...]
    """Number of blocks of each part."""
    seed: int
    shares: tuple[float, ...] = (1.0,)
    """Of each part, 0…1; they add up to 1."""

    @functools.cached_property
    def _falls(self) -> list[tuple[int, float]]:
        """Parts but for the first, last one first: number, and share of the places of it and those before."""
        shares, last = self.shares, len(self.parts) - 1
        return [
            (number, shares[number] / (1.0 if number == last else sum(shares[: number + 1])))
            for number in range(last, 0, -1)
        ]

    def list_batch(self, step: int, size: int) -> list[int]:
        """Ids of the `size` blocks of `step` (0-based); those of a part count on from the parts before it."""
        return [self._find_block(place) for place in range(step * size, (step + 1) * size)]

    def count_blocks(self, places: int) -> list[int]:
        """How many of the first `places` each part has."""
        counts = []
        for _, share in self._falls:
            counts.append(int(places * share + EPSILON))
            places -= counts[-1]
        return [places, *reversed(counts)]

    def _find_block(self, place: int) -> int:
        for number, share in self._falls:
            before = int(place * share + EPSILON)  # places of this part so far
            if int((place + 1) * share + EPSILON) > before:
                return sum(self.parts[:number]) + _draw_block(before, self.parts[number], self.seed)
            place -= before
        return _draw_block(place, self.parts[0], self.seed)


def _draw_block(place: int, blocks: int, seed: int) -> int:
    """The block at a place of joined permutations of `blocks`."""
    return int(_permute_blocks(blocks, seed, place // blocks)[place % blocks])


@functools.lru_cache(maxsize=32)  # one or two for each part of a text
def _permute_blocks(blocks: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(blocks)


def join_blocks(parts: Sequence[Blocks]) -> Blocks:
    """The blocks of all parts, those of each after those of the parts before it; nothing is copied."""
    if len(parts) == 1:
        return parts[0]
    return Blocks(
        JoinedTable(tuple(part.tokens for part in parts)),
        JoinedTable(tuple(part.bytes for part in parts)),
        JoinedTable(tuple(part.starts for part in parts)),
    )


def make_micro_batches(
    blocks: Blocks, ids: Sequence[int], size: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the blocks `ids` as batches of at most `size`: ``input_ids`` int64 [B, T] on `device`."""
    import torch

    for start in range(0, len(ids), size):
        tokens = blocks.tokens[list(ids[start : start + size])]
        yield {"input_ids": torch.from_numpy(tokens.astype(np.int64)).to(device)}


def make_shared_batches(
    blocks: Blocks, ids: Sequence[int], size: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """This rank's share of the blocks `ids`, batches of at most `size`; as many batches on every rank.

    A rank without a block left gets one that doesn't count (``counts``, bool [B]), after its others. Each has
    a ``digest`` (uint8 [16], on the CPU), by which it is known when it comes again.
    """
    import torch

    from adept_ray.method.ranks import split_over_ranks

    for share in split_over_ranks(ids, size):
        tokens = blocks.tokens[list(share or ids[:1])]
        batch = {"input_ids": torch.from_numpy(tokens.astype(np.int64)).to(device)}
        batch["digest"] = digest_tokens(tokens)
        if not share:
            batch["counts"] = torch.zeros(1, dtype=torch.bool, device=device)
        yield batch


def read_tokens_ahead(blocks: Blocks, ids: Sequence[int]) -> None:
    """Begin to read this rank's share of the blocks `ids`; that goes on in the background."""
    from adept_ray.method.ranks import split_over_ranks

    for share in split_over_ranks(ids, len(ids)):
        read_ahead(blocks.tokens, list(share))


def digest_tokens(tokens: np.ndarray) -> torch.Tensor:
    """Names the blocks of a batch [B, T] by their shape and content: uint8 [DIGEST_BYTES], on the CPU."""
    import torch

    found = hashlib.blake2b(repr(tokens.shape).encode() + tokens.tobytes(), digest_size=DIGEST_BYTES)
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)
