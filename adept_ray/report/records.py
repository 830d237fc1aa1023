"""What the files of a results folder hold, as far as pages need it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from adept_ray.config.errors import UserError
from adept_ray.config.validation import Spec
from adept_ray.method.dial import TRAINED
from adept_ray.search.answers import Choice

WORTH_WARNING = 0.05  # share of a held-out piece's texts
MOST_NAMED = 8  # layers that a sentence lists before it counts the rest
T = TypeVar("T")


class Record(Spec):
    """A part of a results file; keys that pages don't need are left alone."""

    model_config = ConfigDict(extra="ignore")


class Side(Record):
    """Test split before and after: bits per byte, and accuracy on the side's tasks if it has any.

    `delta` and its error are of `measure`: percent of bits per byte, or points of accuracy;
    positive is better.
    """

    before_bpb: float
    after_bpb: float
    before_accuracy: float | None = None
    after_accuracy: float | None = None
    measure: Literal["bpb", "accuracy"] = "bpb"
    delta: float
    standard_error: float | None = None

    @property
    def unit(self) -> str:
        """What `delta` is in."""
        return "%" if self.measure == "bpb" else "points"

    def describe_levels(self, bpb: str) -> str:
        """Before and after in words; `bpb` is what to call bits per byte."""
        text = f"{self.before_bpb:.4f} → {self.after_bpb:.4f} {bpb}"
        if self.before_accuracy is None or self.after_accuracy is None:
            return text
        return f"accuracy {self.before_accuracy:.1%} → {self.after_accuracy:.1%}, {text}"


class Plain(Record):
    """The test of the model as it was trained, at dial 1."""

    general_delta: float
    domain_delta: float
    score: float


class Test(Record):
    """The one look at the test split."""

    __test__ = False  # the name must not make pytest collect it

    general: Side
    domain: Side
    score: float
    score_se: float | None = None
    dial: float | None = None
    """How far the exported model is turned from the backbone (0) to what was trained (1)."""
    plain: Plain | None = None
    """An older folder knows neither of these."""

    @property
    def is_turned(self) -> bool:
        """Whether the exported model is another one than training made."""
        return self.dial not in (None, TRAINED)


class Weights(Record):
    """What a score is made of."""

    general: float
    domain: float
    retain: bool = False

    def format_formula(self) -> str:
        """The score as a formula, Δ being the change of a side."""
        general = "min(general Δ, 0)" if self.retain else "general Δ"
        return f"{self.general:g} · {general} + {self.domain:g} · domain Δ"


class Best(Record):
    """``best.yaml``: the winner."""

    run: dict[str, Any]
    training: dict[str, Any]
    layers: list[int]
    score: Weights | None = None
    """None in an older folder."""
    choice: Choice | None = None
    """None where k was not searched."""
    test: Test

    @property
    def k(self) -> int:
        """How many layers were added."""
        return len(self.layers)

    @property
    def trial(self) -> str | None:
        """Name of the chosen trial."""
        return self.choice.trial if self.choice else None

    @field_validator("choice", mode="before")
    @classmethod
    def _read_nothing_as_none(cls, choice: object) -> object:
        return choice or None


class LayerRow(Record):
    """Loss increase in nats per token when `layer` is bypassed."""

    layer: int
    mean: float
    standard_error: float | None = None
    """None of a probe of a single sequence."""
    places: tuple[int, int] | None = None
    """Lowest and highest place in the order that the probe leaves open."""


class Importance(Record):
    """``importance.json``: the layers of the untouched backbone."""

    base_loss: float | None = None
    layers: list[LayerRow]
    order: tuple[int, ...] = ()
    probe: str = "exhaustive"
    confidence: float = 0.95
    made_from: dict[str, object] = Field(default_factory=dict)

    def find_doubtful(self, layers: Collection[int]) -> tuple[list[int], list[int]]:
        """The chosen layers that the probe can't tell from others, and those others.

        Both are empty where the `layers` aren't the least important of all, as other placements choose.
        """
        k = len(layers)
        if set(layers) != set(self.order[:k]):
            return [], []
        doubtful = {row.layer for row in self.layers if row.places and row.places[0] < k <= row.places[1]}
        return [i for i in self.order[:k] if i in doubtful], [i for i in self.order[k:] if i in doubtful]

    def express_doubt(self, layers: Collection[int]) -> str:
        """A sentence that says which of the chosen layers could as well be others.

        Empty when none could, and when they aren't the least important of all, as other placements choose.
        """
        chosen, others = self.find_doubtful(layers)
        if not chosen:
            return ""
        rest = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        return (
            f"At {self.confidence:.0%} confidence the probe doesn't tell the chosen layers "
            f"{' '.join(map(str, chosen))} from {' '.join(map(str, others[:MOST_NAMED]))}{rest}; a longer "
            "one (--probe-tokens) may."
        )


class Rate(Record):
    """A row of ``rates.jsonl``: the scale of one unit from `step` on."""

    step: int
    unit: str
    scale: float


class DialPoint(Record):
    """A row of ``dials.csv``: what a trial gains at a dial on the validation split; nan where it diverges."""

    trial: str
    dial: float
    general_delta: float
    domain_delta: float
    score: float


class Rival(Record):
    """A row of ``comparison.csv``: means over seeds and half of their 95 % intervals."""

    method: str
    score: float | None
    score_ci: float | None = None
    dial: float | None = None
    plain_score: float | None = None
    """As it was trained; an older comparison knows neither."""
    general_delta: float | None
    general_delta_ci: float | None = None
    domain_delta: float | None
    domain_delta_ci: float | None = None
    against_adept: float | None = None
    against_adept_ci: float | None = None


class SharedText(Record):
    """A held-out text of which training text has a part, or all."""

    share: float
    kind: Literal["whole", "most", "part"]
    passage: str


class Piece(Record):
    """How much of one held-out piece stands in training text, too."""

    side: str
    split: str
    task: str = ""
    texts: int
    whole: int
    most: int
    part: int
    examples: list[SharedText] = Field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"{self.side}: {f'items of {self.task}' if self.task else 'documents'}, {self.split}"

    @property
    def shared(self) -> int:
        """Texts of which training text has a part or more."""
        return self.whole + self.most + self.part

    @property
    def is_contaminated(self) -> bool:
        """Whether so many of its texts are shared that a gain on them says less than it seems to."""
        return self.shared > 0 and self.shared >= WORTH_WARNING * self.texts

    def describe_shared(self) -> str:
        """How many of its texts are shared, in a few words."""
        what = f"items of {self.task}" if self.task else f"{self.side} documents"
        return f"{self.shared} of {self.texts} {what} held out for {self.split}"


class Corpus(Record):
    """What is taken of a corpus; of different documents once each, but for `documents` and `repeated`."""

    documents: int
    repeated: int
    in_earlier: int
    near: int
    longest: int
    """Bytes of UTF-8."""

    def describe(self, name: str) -> str:
        """All of it in words, without what is zero; `name`: its side, and a number where that has several."""
        earlier = "the general text" if name == "domain" else "an earlier corpus"
        parts = {
            "repeated": self.repeated,
            f"also in {earlier}": self.in_earlier,
            "nearly equal to another one": self.near,
        }
        named = "".join(f", {count:,} {what}" for what, count in parts.items() if count)
        documents = "1 document" if self.documents == 1 else f"{self.documents:,} documents"
        return f"{documents}{named}, the longest of {self.longest:,} bytes"


class Contamination(Record):
    """What of all that a model is judged by stands in training text, too."""

    trained_on: dict[str, int]
    """Side → documents of its training split."""
    pieces: list[Piece]
    corpora: dict[str, Corpus] = Field(default_factory=dict)
    """Side, and a number where it has several → what is taken of the corpus."""

    def express_warning(self) -> str:
        """A sentence that names the pieces that share much; empty if there are none."""
        named = [piece.describe_shared() for piece in self.pieces if piece.is_contaminated]
        if not named:
            return ""
        return f"training text shares passages with {', '.join(named)}, so a gain there may be memory"


class TextPart(Record):
    """What the training took of a corpus."""

    side: str
    corpus: str
    weight: float
    share: float
    tokens: int
    passes: float


class RunRecord(Record):
    """``run.json``: how the folder was made."""

    run: dict[str, Any] = Field(default_factory=dict)
    """The command's settings."""
    training: dict[str, object] | None = None
    """Settings of a training at full length, which has no trials; None for a search."""
    space: dict[str, object] = Field(default_factory=dict)
    """The search space that it began with."""
    pick: dict[str, object] = Field(default_factory=dict)
    """The settings by which pick.py has chosen anew since, if it has."""
    text: list[TextPart] = Field(default_factory=list)
    """What the training, or the chosen trial, took of each corpus; empty in an older folder."""
    versions: dict[str, object]
    fingerprints: dict[str, object]
    seconds: dict[str, float]
    peak_memory_gib: float | None = None
    contamination: Contamination | None = None
    """None in an older folder."""
    command: str
    notes: dict[str, object]

    @property
    def total_seconds(self) -> float:
        """Wall clock of the whole run."""
        return self.seconds.get("total", sum(self.seconds.values()))


def list_corpora(settings: Mapping[str, object], name: str) -> list[str]:
    """What a run's settings say under that name, one corpus or several, as they are written there."""
    value = settings.get(name) or []
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def check_record(record: type[T], values: object, where: str) -> T:
    """`values` as a record or a dataclass. Raises :class:`UserError` that names `where` and what is wrong."""
    try:
        return TypeAdapter(record).validate_python(values)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UserError(f"{where}: '{key}' is missing") from None
        raise UserError(
            f"{where}: {key + ': ' if key else ''}{first['msg']}, not {first['input']!r}"
        ) from None
