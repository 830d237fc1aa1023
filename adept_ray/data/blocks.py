"""Packed token blocks, their order in a training, and batches of them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adept_ray.config.errors import UserError

if TYPE_CHECKING:
    import torch


EPSILON = 1e-9  # so that ten tenths are one
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Blocks:
    """Packed blocks of one split, one after the other as they were cut."""

    tokens: np.ndarray
    """int32 [N, T]: token ids."""
    bytes: np.ndarray
    """int32 [N, T − 1]: UTF-8 bytes of the text that each predicted token (all but a block's first) stands
    for; 0 for the EOS between two documents."""
    starts: np.ndarray
    """bool [N, T]: whether a document begins with that token."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def documents(self) -> np.ndarray:
        """int64 [N, T − 1]: number, from 0 on, of the document of each predicted token, its EOS included."""
        begun = self.starts.ravel().cumsum().reshape(self.starts.shape)[:, 1:]
        # A document that has nothing but a block's first token doesn't count.
        return np.unique(begun, return_inverse=True)[1].reshape(begun.shape)

    @property
    def document_bytes(self) -> np.ndarray:
        """int64 [D]: UTF-8 bytes of the predicted tokens of each document."""
        return np.bincount(self.documents.ravel(), self.bytes.ravel()).astype(np.int64)

    def take_piece(self, number: int, of: int) -> Blocks:
        """One of so many equal pieces without a block in common (0-based); the rest is in none."""
        size = len(self) // of
        here = slice(number * size, (number + 1) * size)
        return Blocks(self.tokens[here], self.bytes[here], self.starts[here])

    def take_first(self, tokens: int) -> Blocks:
        """The first blocks that hold at least `tokens` tokens (all of them if there are fewer)."""
        count = -(-tokens // self.tokens.shape[1])
        return Blocks(self.tokens[:count], self.bytes[:count], self.starts[:count])


@dataclass(frozen=True)
class BlockSet:
    """A folder of blocks, one sub-folder per split."""

    folder: Path
    fingerprint: str
    splits: Mapping[str, Mapping[str, int]]
    """Split → number of blocks, documents and bytes."""
    shares: Mapping[str, float]
    """Split → its share of the documents."""

    def load(self, split: str, tokens: int, seq_len: int, corpus: str) -> Blocks:
        """Read a split in its fixed order.

        Raises :class:`UserError` when it holds fewer than `tokens` tokens, saying what the corpus needs.
        """
        have = self.splits[split]["blocks"] * seq_len
        if have < tokens:
            share = self.shares[split]
            raise UserError(
                f"corpus '{corpus}' is too small: its {split} split ({share:.0%} of the documents) "
                f"holds {have} tokens in blocks of {seq_len} and {tokens} are needed, so give about "
                f"{int(tokens / share) + 1} tokens of text or ask for fewer"
            )
        import pyarrow.parquet as pq

        table = pq.read_table(self.folder / split).sort_by([("bucket", "ascending"), ("row", "ascending")])

        def rows(column: str, length: int) -> np.ndarray:
            return table[column].combine_chunks().flatten().to_numpy().reshape(-1, length)

        return Blocks(rows("tokens", seq_len), rows("bytes", seq_len - 1), rows("starts", seq_len) > 0)


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
    """The blocks of all parts, those of each after those of the parts before it."""
    if len(parts) == 1:
        return parts[0]
    return Blocks(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.bytes for part in parts]),
        np.concatenate([part.starts for part in parts]),
    )


def make_micro_batches(
    blocks: Blocks, ids: Sequence[int], size: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the blocks `ids` as batches of at most `size`: ``input_ids`` int64 [B, T] on `device`."""
    import torch

    for start in range(0, len(ids), size):
        chunk = blocks.tokens[list(ids[start : start + size])].astype(np.int64)
        yield {"input_ids": torch.from_numpy(chunk).to(device)}


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
        taken = share or ids[:1]
        for batch in make_micro_batches(blocks, taken, size, device):
            batch["digest"] = digest_tokens(blocks.tokens[list(taken)])
            if not share:
                batch["counts"] = torch.zeros(1, dtype=torch.bool, device=device)
            yield batch


def digest_tokens(tokens: np.ndarray) -> torch.Tensor:
    """Names the blocks of a batch [B, T] by their shape and content: uint8 [DIGEST_BYTES], on the CPU."""
    import torch

    found = hashlib.blake2b(repr(tokens.shape).encode() + tokens.tobytes(), digest_size=DIGEST_BYTES)
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)
