"""Documents to blocks: tokenized, joined by EOS, cut, and packed as a file holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from adept_ray.data.block_files import choose_size_type, describe_record
from adept_ray.data.blocks import Blocks

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZED_AT_ONCE = 1000  # documents


def cut_blocks(
    texts: Sequence[str], tokenizer: Tokenizer, eos: int, seq_len: int, at_once: int = TOKENIZED_AT_ONCE
) -> Iterator[Blocks]:
    """Join documents by EOS and cut the stream into blocks, some at a time; the rest at its end goes."""
    rest = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, bool)
    for at in range(0, len(texts), at_once):
        found = tokenize_texts(texts[at : at + at_once], tokenizer, eos)
        stream = [np.concatenate(both) for both in zip(rest, found, strict=True)]
        count = len(stream[0]) // seq_len
        end = count * seq_len
        tokens, sizes, starts = (each[:end].reshape(count, seq_len) for each in stream)
        yield Blocks(tokens, sizes[:, 1:], starts)
        rest = stream[0][end:], stream[1][end:], stream[2][end:]


def tokenize_texts(
    texts: Sequence[str], tokenizer: Tokenizer, eos: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids of documents, each with an EOS behind it, bytes and starts as in :class:`Blocks`; [N]."""
    # EOS alone joins documents: no BOS where the tokenizer's template would put one
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    tokens = [np.array([*encoding.ids, eos], np.int32) for encoding in encodings]
    sizes = [
        np.append(count_token_bytes(text, encoding.offsets), 0).astype(np.int32)
        for text, encoding in zip(texts, encodings, strict=True)
    ]
    starts = [np.arange(len(document)) == 0 for document in tokens]
    return np.concatenate(tokens), np.concatenate(sizes), np.concatenate(starts)


def count_token_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """UTF-8 bytes that each token stands for, from its (start, end) in characters.

    A character that is split over several tokens counts once, with the first of them. Text that a tokenizer
    skips between two tokens counts with the second.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    upto = np.concatenate([[0], np.cumsum(1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF))])
    ends = np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
    return np.diff(upto[ends], prepend=0)


def pack_records(parts: Iterable[Blocks], token_type: str, seq_len: int) -> np.ndarray:
    """Blocks as a file holds them, a record each; bytes in the smallest type that fits them all."""
    packed, largest = [], 0
    for part in parts:
        sizes = np.asarray(part.bytes)
        most = int(sizes.max(initial=0))
        starts = np.packbits(np.asarray(part.starts), axis=1)
        packed.append(
            (np.asarray(part.tokens).astype(token_type), sizes.astype(choose_size_type(most)), starts)
        )
        largest = max(largest, most)
    record = describe_record(seq_len, token_type, choose_size_type(largest))
    records = np.empty(sum(len(tokens) for tokens, _, _ in packed), record)
    at = 0
    for tokens, sizes, starts in packed:
        here = records[at : at + len(tokens)]
        here["tokens"], here["bytes"], here["starts"] = tokens, sizes, starts
        at += len(tokens)
    return records
