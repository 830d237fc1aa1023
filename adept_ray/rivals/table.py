"""The table of a comparison: a row for each training, what the rows come to, and both as CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from adept_ray.method.dial import TRAINED

MEASURE = "adept"  # the method that the others' scores are set against
CONFIDENCE = 0.95
Phase = str  # "rate" or "test"
Summary = dict[str, Any]  # a row of comparison.csv
AVERAGED = (
    "general_delta",
    "domain_delta",
    "score",
    "dial",
    "plain_general_delta",
    "plain_domain_delta",
    "plain_score",
    "general_accuracy",
    "domain_accuracy",
)


@dataclass(frozen=True)
class ComparedTraining:
    """A row of runs.csv: one training of one method.

    Changes are in percent of the untouched backbone's bits per byte, or on a side judged by tasks in
    points of accuracy; positive is better.
    """

    method: str
    phase: Phase
    """``rate``: tries a base rate, on the validation splits; ``test``: counts, on the test splits."""
    seed: int
    base_lr: float | None
    layers: str = ""
    general_bpb: float | None = None
    domain_bpb: float | None = None
    general_accuracy: float | None = None
    domain_accuracy: float | None = None
    general_delta: float | None = None
    domain_delta: float | None = None
    score: float | None = None
    dial: float | None = None
    """How far the model is turned from the backbone (0) to what was trained (1), where it scores that."""
    plain_general_delta: float | None = None
    plain_domain_delta: float | None = None
    plain_score: float | None = None
    """Changes and score as it was trained, at dial 1."""
    trained_parameters: int = 0
    tokens: int = 0
    training_seconds: float = 0.0
    """Wall clock of its steps, measuring again included, loading and scoring not."""
    peak_gib: float | None = None
    """Largest memory of a worker in that training."""
    error: str = ""

    @property
    def key(self) -> tuple[str, str, int, float | None]:
        """What makes it the same training when a comparison is resumed."""
        return self.method, self.phase, self.seed, self.base_lr


def compute_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % confidence interval (Student's t); None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    half = t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(half)


def summarise_methods(rows: Sequence[ComparedTraining]) -> list[Summary]:
    """A row of comparison.csv for each method, in the order of `rows`; means over seeds, 95 % intervals.

    ``against_adept`` is the mean difference in score to ADEPT on the same seeds, with the interval of that
    difference. ``rate_at_edge``: the best base rate has no worse one on one side, so more tries may help.
    """
    methods = list(dict.fromkeys(row.method for row in rows))
    measure = {row.seed: row.score for row in list_counted_trainings(rows, MEASURE) if row.score is not None}
    return [summarise_method(method, rows, measure) for method in methods]


def list_counted_trainings(rows: Sequence[ComparedTraining], method: str) -> list[ComparedTraining]:
    """The trainings of a method that count and didn't fail."""
    return [row for row in rows if (row.method, row.phase) == (method, "test") and row.score is not None]


def summarise_method(method: str, rows: Sequence[ComparedTraining], measure: Mapping[int, float]) -> Summary:
    """One row of :func:`summarise_methods`; `measure` is seed → ADEPT's score."""
    counted = list_counted_trainings(rows, method)
    tried = {r.base_lr: r.score for r in rows if (r.method, r.phase) == (method, "rate") and r.base_lr}
    summary: Summary = {
        "method": method,
        "seeds": len(counted),
        "failed": sum(bool(row.error) for row in rows if row.method == method),
        "base_lr": counted[0].base_lr if counted else None,
        "rate_at_edge": bool(tried) and bool(counted) and is_at_edge(counted[0].base_lr, tried),
        "layers": " or ".join(dict.fromkeys(row.layers for row in counted)),
    }
    for name in AVERAGED:
        values = [getattr(row, name) for row in counted if getattr(row, name) is not None]
        summary[name], summary[f"{name}_ci"] = compute_interval(values) if values else (None, None)
    pairs = compare_scores(counted, measure) if method != MEASURE else []
    summary["against_adept"], summary["against_adept_ci"] = compute_interval(pairs) if pairs else (None, None)
    summary["trained_parameters"] = counted[0].trained_parameters if counted else None
    summary["tokens"] = counted[0].tokens if counted else None
    summary["training_seconds"] = statistics.fmean(r.training_seconds for r in counted) if counted else None
    summary["peak_gib"] = max((row.peak_gib for row in counted if row.peak_gib), default=None)
    return summary


def compare_scores(counted: Sequence[ComparedTraining], measure: Mapping[int, float]) -> list[float]:
    """Scores minus ADEPT's (`measure`: seed → its score) on the same seeds."""
    if any(row.base_lr is None for row in counted):  # the untouched backbone is the same at every seed
        return [-score for score in measure.values()]
    return [row.score - measure[row.seed] for row in counted if row.seed in measure and row.score is not None]


def is_dialled(row: Summary) -> bool:
    """Whether a method's models were scored turned to a dial, and not as they were trained."""
    return row.get("dial") is not None and row["dial"] != TRAINED


def is_at_edge(rate: float | None, tried: Mapping[float, float | None]) -> bool:
    """Whether `rate` is the lowest or the highest of the rates that were tried."""
    return rate in (min(tried), max(tried))


def format_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of the same keys as CSV text; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parse_runs(text: str) -> list[ComparedTraining]:
    """The rows of a runs.csv."""
    kinds = {each.name: str(each.type) for each in fields(ComparedTraining)}

    def value(name: str, field_text: str) -> Any:
        if "None" in kinds[name] and not field_text:
            return None
        if kinds[name].startswith("int"):
            return int(field_text)
        return float(field_text) if kinds[name].startswith("float") else field_text

    return [
        ComparedTraining(**{name: value(name, field_text) for name, field_text in row.items()})
        for row in csv.DictReader(io.StringIO(text))
    ]
