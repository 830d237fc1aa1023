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
TOKENIZED_CHARACTERS = 2**22  # of them: a tokenizer holds some 25 times as many bytes until it is done


def cut_blocks(
    texts: Sequence[str], tokenizer: Tokenizer, eos: int, seq_len: int, at_once: int = TOKENIZED_AT_ONCE
) -> Iterator[Blocks]:
    """Join documents by EOS and cut the stream into blocks, some at a time; the rest at its end goes."""
    rest = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, bool)
    for some in group_texts(texts, at_once):
        found = tokenize_texts(some, tokenizer, eos)
        stream = [np.concatenate(both) for both in zip(rest, found, strict=True)]
        count = len(stream[0]) // seq_len
        end = count * seq_len
        tokens, sizes, starts = (each[:end].reshape(count, seq_len) for each in stream)
        yield Blocks(tokens, sizes[:, 1:], starts)
        rest = stream[0][end:], stream[1][end:], stream[2][end:]


def group_texts(texts: Iterable[str], at_once: int) -> Iterator[list[str]]:
    """The documents in their order, so many at a time, or fewer that have TOKENIZED_CHARACTERS together."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if len(held) == at_once or size >= TOKENIZED_CHARACTERS:
            yield held
            held, size = [], 0
    if held:
        yield held


def tokenize_texts(
    texts: Sequence[str], tokenizer: Tokenizer, eos: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids of documents, each with an EOS behind it, bytes and starts as in :class:`Blocks`; [N]."""
    # EOS alone joins documents: no BOS where the tokenizer's template would put one
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    # arrays of all documents at once: made of one for each they take twice as long
    tokens = np.array([id for encoding in encodings for id in (*encoding.ids, eos)], np.int32)
    counts = np.array([len(encoding) + 1 for encoding in encodings])
    begins = np.cumsum([0, *map(len, texts)])
    pairs = zip(encodings, texts, strict=True)
    ends = np.array([end for each, text in pairs for _, end in (*each.offsets, (0, len(text)))])
    sizes = count_token_bytes("".join(texts), ends + np.repeat(begins[:-1], counts)).astype(np.int32)
    behind = np.cumsum(counts)
    sizes[behind - 1] = 0
    starts = np.zeros(len(tokens), bool)
    starts[behind - counts] = True
    return tokens, sizes, starts


def count_token_bytes(text: str, ends: Sequence[int] | np.ndarray) -> np.ndarray:
    """UTF-8 bytes that each token stands for, from its end in characters.

    A character that is split over several tokens counts once, with the first of them. Text that a tokenizer
    skips between two tokens counts with the second.
    """
    upto = np.maximum.accumulate(np.asarray(ends, dtype=np.int64))
    if not text.isascii():  # else a character is a byte
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        sizes = 1 + (codes > 0x7F).astype(np.uint8) + (codes > 0x7FF) + (codes > 0xFFFF)
        upto = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[upto]
    return np.diff(upto, prepend=0)


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
