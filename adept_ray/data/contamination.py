"""How much of what a model is judged by stands in its training text, too.

A model may remember such text, so what it gains there says nothing of text that is new to it.

Texts are compared as the field does. Words are lower-cased and stand without punctuation, and 13 of them in a
row are a match (GPT-3, arXiv 2005.14165, appendix C, which takes no fewer than 8). A text is judged by the
share of its words that lie in a match: below 20 % it is clean, from 80 % on dirty (Llama 2, arXiv 2307.09288,
appendix A.6). A text that stands as a whole in one training document is told apart from these.

The index is of the held-out texts, which are few; the training text streams past it once, whatever its size.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Literal, get_args

import numpy as np

Kind = Literal["whole", "most", "part"]
"""How much of a text was found: all of it in one training document, or shares of its words anywhere."""
KINDS: tuple[Kind, ...] = get_args(Kind)
NGRAM = 13
"""Words in a row that make a match; all words of a shorter text."""
FEWEST = 8
"""Words; a shorter text is found only where it equals a whole training document."""
MOST, PART = 0.8, 0.2
"""Least share of a text's words that lie in matches, for each of these kinds."""
SHOWN = 160  # characters of a passage that are kept
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's number is lost when hashes are multiplied
# Words; in scripts that write none apart each sign is one (kana, Chinese characters, Thai, Lao, Burmese,
# Khmer).
SIGNS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
# Marks that stand on letters, such as vowels of Hindi; Python doesn't count them to the letters of a word.
MARKS = "".join(
    chr(each) for each in range(0x300, 0x20000) if unicodedata.category(chr(each)) in ("Mn", "Mc")
)
WORD = re.compile(rf"[{SIGNS}]|[^\W{SIGNS}]+(?:[{MARKS}]+[^\W{SIGNS}]*)*")


@dataclass(frozen=True)
class Finding:
    """What of a held-out text stands in the training text."""

    kind: Kind | None
    """None: it is clean."""
    share: float
    """Share of its words that lie in matches, 0…1."""
    passage: str
    """The longest passage that was found, normalised and maybe cut; empty if there is none."""


def normalise_text(text: str) -> str:
    """The text in compatible forms of its characters and in lower case."""
    return unicodedata.normalize("NFKC", text).casefold()


def split_words(text: str) -> list[str]:
    """The words of a text, normalised, without punctuation."""
    return WORD.findall(normalise_text(text))


@dataclass(frozen=True)
class NgramTable:
    """The word n-grams of one length of all held-out texts that are compared by that length."""

    hashes: np.ndarray
    """uint64 [G], ascending, each once."""
    numbers: dict[int, np.ndarray]
    """Text → place in `hashes` of the n-gram at each of its words but the last ones, int64 [M − n + 1]."""
    found: np.ndarray
    """bool [G]: whether training text has that n-gram."""


class HeldOutIndex:
    """Held-out texts, ready for training text to stream past.

    It holds about a hundred bytes for each of their words.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        words = [split_words(text) for text in texts]
        self._numbers = {word: number for number, word in enumerate(dict.fromkeys(chain(*words)), 1)}
        # Numbers, drawn at random, in place of words in hashes; 0 is every word that no held-out text has.
        self._draws = np.random.default_rng(0).integers(2**64, size=len(self._numbers) + 1, dtype=np.uint64)
        self._words = [np.array([self._numbers[word] for word in each], np.int64) for each in words]
        self._whole = np.zeros(len(texts), bool)
        self._short: dict[tuple[str, ...], list[int]] = {}
        lengths: dict[int, list[int]] = {}
        for text, each in enumerate(words):
            if 0 < len(each) < FEWEST:
                self._short.setdefault(tuple(each), []).append(text)
            elif each:
                lengths.setdefault(min(NGRAM, len(each)), []).append(text)
        self._tables = {length: self._build_table(length, members) for length, members in lengths.items()}

    def _build_table(self, length: int, texts: Sequence[int]) -> NgramTable:
        every = [self._hash_ngrams(self._words[text], length) for text in texts]
        hashes = np.unique(np.concatenate(every))
        numbers = {text: np.searchsorted(hashes, own) for text, own in zip(texts, every, strict=True)}
        return NgramTable(hashes, numbers, np.zeros(len(hashes), bool))

    def _hash_ngrams(self, words: np.ndarray, length: int, at: np.ndarray | None = None) -> np.ndarray:
        """Hashes of the n-grams that begin `at` these places of `words`, or at all: uint64."""
        at = np.arange(len(words) - length + 1) if at is None else at
        hashes = np.zeros(len(at), np.uint64)
        for offset in range(length):
            hashes = hashes * BASE + self._draws[words[at + offset]]
        return hashes

    def pass_documents(self, documents: Iterable[str]) -> None:
        """Mark what these whole training documents, a batch that is held in memory, have in common."""
        parts = [[""]]
        for document in documents:
            words = split_words(document)
            if len(words) < FEWEST:
                self._whole[self._short.get(tuple(words), [])] = True
            parts += [words, [""]]  # an unknown word, so that no match goes on in the next document
        flat = list(chain.from_iterable(parts))
        found = np.fromiter(map(self._numbers.get, flat, repeat(0)), np.int64, len(flat))
        gaps = np.cumsum(found == 0)
        for length, table in self._tables.items():
            if len(found) > length:
                self._mark_matches(table, length, found, np.flatnonzero(gaps[length:] == gaps[:-length]) + 1)

    def _mark_matches(self, table: NgramTable, length: int, words: np.ndarray, at: np.ndarray) -> None:
        """Look up the n-grams of training text that begin `at` these places of its `words`."""
        hashes = self._hash_ngrams(words, length, at)
        places = np.searchsorted(table.hashes, hashes)
        known = table.hashes[np.minimum(places, len(table.hashes) - 1)] == hashes
        at, places = at[known], places[known]
        table.found[places] = True
        begun = set(places.tolist())
        for text, numbers in table.numbers.items():
            if not self._whole[text] and int(numbers[0]) in begun:
                own = self._words[text]
                starts = at[places == numbers[0]]
                starts = starts[starts + len(own) <= len(words)]
                ends = words[starts + len(own) - 1] == own[-1]  # so that few are compared word by word
                self._whole[text] = any(
                    np.array_equal(words[start : start + len(own)], own) for start in starts[ends].tolist()
                )

    def judge_texts(self) -> list[Finding]:
        """What was found of each held-out text so far."""
        covers = [np.full(len(words), whole) for words, whole in zip(self._words, self._whole, strict=True)]
        for length, table in self._tables.items():
            for text, numbers in table.numbers.items():
                hits = np.flatnonzero(table.found[numbers])
                covers[text][(hits[:, None] + np.arange(length)).ravel()] = True
        return [self._judge(text, covered) for text, covered in enumerate(covers)]

    def _judge(self, text: int, covered: np.ndarray) -> Finding:
        share = float(covered.mean()) if len(covered) else 0.0
        kind: Kind | None = "most" if share >= MOST else "part" if share >= PART else None
        passage = cut_passage(self.texts[text], covered) if covered.any() else ""
        return Finding("whole" if self._whole[text] else kind, share, passage)


def cut_passage(text: str, covered: np.ndarray) -> str:
    """The longest run of `covered` words of a text (bool [M], not none), normalised, cut after SHOWN."""
    edges = np.flatnonzero(np.diff(covered, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - begins))
    plain = normalise_text(text)
    spans = [word.span() for word in WORD.finditer(plain)]
    passage = " ".join(plain[spans[begins[longest]][0] : spans[ends[longest] - 1][1]].split())
    return passage if len(passage) <= SHOWN else f"{passage[:SHOWN].rstrip()} …"
