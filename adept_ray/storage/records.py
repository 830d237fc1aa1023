"""What run.json and best.yaml hold, as commands write and read them."""

from __future__ import annotations

from typing import NotRequired, TypedDict

Settings = dict[str, object]
"""A specification as JSON holds it: field → value."""


class SpentRecord(TypedDict):
    """What the commands of a run have taken so far."""

    seconds: dict[str, float]
    """Wall clock of each stage, and ``total``."""
    peak_memory_gib: float | None


class SharedTextRecord(TypedDict):
    """A held-out text of which training text has a part, or all."""

    kind: str
    """``whole``, ``most`` or ``part``, as in :mod:`adept_ray.data.contamination`."""
    share: float
    """Share of its words, 0…1."""
    passage: str
    """The longest passage in common, lower-cased and maybe cut."""


class PieceRecord(TypedDict):
    """How much of one held-out piece stands in training text, too."""

    side: str
    split: str
    """``validation`` or ``test``."""
    task: str
    """Benchmark task whose items these are; empty: documents of the corpus."""
    texts: int
    """Documents or items that were looked for."""
    whole: int
    most: int
    part: int
    """How many of them were found, each under one kind alone."""
    examples: list[SharedTextRecord]
    """A few of those that share the most."""


class CorpusRecord(TypedDict):
    """What is taken of a corpus."""

    documents: int
    """Documents that aren't blank, repeated ones too."""
    repeated: int
    """Those that another one equals, all but one each."""
    in_earlier: int
    """Different ones that aren't taken because a corpus that comes before it has them, too."""
    near: int
    """Different ones that aren't taken because they are nearly equal to another one."""
    longest: int
    """Bytes of UTF-8 of the longest one."""


class ContaminationRecord(TypedDict):
    """What of all that a model is judged by stands in training text, too."""

    trained_on: dict[str, int]
    """Side whose text is trained on → documents of its training split, all of which were looked through."""
    pieces: list[PieceRecord]
    corpora: dict[str, CorpusRecord]
    """Side, and a number where it has several → what is taken of the corpus."""


class TextRecord(TypedDict):
    """What a training took of a corpus."""

    side: str
    corpus: str
    """As it was given."""
    weight: float
    """Against those of the side's other corpora."""
    share: float
    """Of all tokens of the training."""
    tokens: int
    """Of it in the training, those that came again among them."""
    passes: float
    """How often the training went through what the run read of it."""


class RunRecord(TypedDict, total=False):
    """Content of run.json; empty as long as the run hasn't begun."""

    command: str
    """The command line that began it."""
    run: Settings
    seed: int
    notes: dict[str, str]
    """Backbone and corpora → where they come from, and their licence."""
    fingerprints: dict[str, str]
    ended: bool
    """Whether the last command came to its end; older ones don't have it."""
    training: Settings
    """Of a training at full length, and of one without expansion."""
    space: Settings
    """Of a search: the space that it began with."""
    text: list[TextRecord]
    """What the training, or the chosen trial, took of each corpus."""
    versions: dict[str, str]
    seconds: dict[str, float]
    """As in :class:`SpentRecord`, once a command came to its end."""
    peak_memory_gib: float | None
    spent: SpentRecord
    """What was spent by commands that were stopped half-way, and those before them."""
    contamination: ContaminationRecord
    """Of a run that trains; older ones don't have it."""
    pick: Settings
    """By what pick.py has chosen anew since."""


class SideRecord(TypedDict):
    """What best.yaml says of a side of the test."""

    measure: str
    """``bpb`` or ``accuracy``: what `delta` is of."""
    before_bpb: NotRequired[float]
    after_bpb: NotRequired[float]
    before_accuracy: NotRequired[float]
    after_accuracy: NotRequired[float]
    delta: float
    standard_error: float


class PlainRecord(TypedDict):
    """Changes and score of a model as it was trained, at dial 1."""

    general_delta: float
    domain_delta: float
    score: float


class TestedRecord(TypedDict):
    """The one look at the test splits."""

    general: SideRecord
    domain: SideRecord
    score: float
    score_se: NotRequired[float]
    """Standard error of `score`, over documents or items."""
    dial: NotRequired[float]
    """How far the exported model is turned from the backbone (0) to what was trained (1)."""
    plain: NotRequired[PlainRecord]
    """Older ones have none of these."""


class BestRecord(TypedDict):
    """Content of best.yaml: all that train.py needs, and the evidence for it."""

    run: Settings
    training: Settings
    layers: list[int]
    k_max: int
    score: Settings
    choice: NotRequired[Settings]
    test: TestedRecord
    backbone: NotRequired[str]
    """Its fingerprint; older ones don't have it."""
