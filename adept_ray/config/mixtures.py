"""The corpora of a side with their weights, as flags and files name them: ``a.jsonl=3``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from adept_ray.config.places import WEIGHT_MARK, drop_signature, split_query
from adept_ray.config.validation import read_number

PARTITION = re.compile(r"[\w-]+=[^=/]*")
"""The last part of a path such as ``web/year=2024``."""
MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Part:
    """One corpus of a side."""

    place: str
    """Preset, file, folder or hub dataset."""
    weight: float = 1.0
    """How much of the side's tokens it gives, against the weights of the others."""

    @property
    def name(self) -> str:
        """How messages name it: without a query, which may be signed."""
        return split_query(self.place)[0]

    def __str__(self) -> str:
        """As :func:`parse_part` reads it, wherever that is: a path that ends like a weight gets one."""
        if self.weight == 1 and split_weight(self.place) is None:
            return self.place
        weight = f"{self.weight!r}".removesuffix(".0")
        short = f"{self.place}={weight}"
        return short if split_weight(short) == (self.place, weight) else f"{self.place}{WEIGHT_MARK}{weight}"


@dataclass(frozen=True)
class Mixture:
    """The corpora of a side. One alone has the weight 1."""

    parts: tuple[Part, ...]

    @property
    def unsigned(self) -> Mixture:
        """The same without what signs web addresses, as it is written down and compared."""
        return Mixture(tuple(replace(part, place=drop_signature(part.place)) for part in self.parts))

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the side's tokens that each corpus gives; they add up to 1."""
        total = sum(part.weight for part in self.parts)
        return tuple(part.weight / total for part in self.parts)

    def __str__(self) -> str:
        return self.parts[0].place if len(self.parts) == 1 else " ".join(map(str, self.parts))


def parse_mixture(given: object) -> object:
    """The corpora that a text, or several, name. Raises ValueError for what is none."""
    if isinstance(given, Mixture):
        return given
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, Iterable) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"must be a corpus, or a list of corpora such as a.jsonl=3, not {given!r}")
    parts = [parse_part(word) for word in words]
    if not parts:
        raise ValueError("names no corpus: give a preset, a file, a folder or a hub dataset")
    seen: set[str] = set()
    for part in parts:
        if (place := name_place(part.place)) in seen:
            raise ValueError(f"'{part.place}' is there twice: give it once, with one weight")
        seen.add(place)
    return Mixture((Part(parts[0].place),) if len(parts) == 1 else tuple(parts))


def parse_part(word: str) -> Part:
    """The corpus, and its weight, that ``PLACE=WEIGHT``, ``PLACE/=WEIGHT`` or ``PLACE`` names.

    A path that exists is one, whatever is in it; of the others see :func:`split_weight`. Raises ValueError
    for a weight that is no number above 0.
    """
    found = split_weight(word)
    if found is None or os.path.exists(os.path.expanduser(word)):
        return Part(word)
    place, after = found
    weight = read_number(after)
    if weight is None or not 0 < weight < math.inf:
        what = f"the weight '{after}' of '{place}'"
        raise ValueError(f"{word}: {what} must be a number above 0, such as 3 or 0.5")
    return Part(place, weight)


def split_weight(word: str) -> tuple[str, str] | None:
    """The texts before and after the ``=`` of a weight; None where there is none.

    ``/=`` and a number is always a weight. The last ``=`` else marks one, unless it is in a folder's name, in
    a query, or in the last part of a URI or a glob, such as ``year=2024`` or ``year=*``.
    """
    place, sign, after = word.rpartition("=")
    is_number = read_number(after) is not None
    if is_number and place.endswith("/"):
        return place[:-1] or place, after
    if "://" in word or MAGIC.search(word):
        last = word.rpartition("/")[2]
        inside = not is_number or bool(split_query(word)[1]) or bool(PARTITION.fullmatch(last))
    else:
        inside = not is_number and "/" in after
    return (place, after) if sign and place and not inside else None


def hide_signature(word: str) -> str:
    """A word of a command line without what signs a web address in it; a weight behind that stays."""
    place, weight = split_weight(word) or (word, "")
    plain = drop_signature(place)
    return word if plain == place else f"{plain}{WEIGHT_MARK * bool(weight)}{weight}"


def name_place(place: str) -> str:
    """The same for the same path, however it is written."""
    path = os.path.expanduser(place)
    return os.path.realpath(path) if os.path.exists(path) else place


def list_words(mixture: Mixture) -> str | list[str]:
    """What :func:`parse_mixture` reads: a plain text where there is one corpus, as in every older file."""
    words = [str(part) for part in mixture.parts]
    return words[0] if len(words) == 1 else words


Corpora = Annotated[Mixture, BeforeValidator(parse_mixture), PlainSerializer(list_words)]
