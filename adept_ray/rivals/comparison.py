"""ADEPT against its rivals: every method on the same blocks, with a base rate searched for each alike.

A comparison is a list of trainings. For each method some tries of the base rate, all of one seed and judged
on the validation splits; then, at the best of them, a training for each further seed, judged on the test
splits. A seed decides the order of the blocks and what else is drawn, and all methods share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from adept_ray.config.errors import UserError, find_cause
from adept_ray.config.specs import TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.data.benchmark_tasks import TaskItems
from adept_ray.data.blocks import Blocks
from adept_ray.engine.client import BoardClient, run_job
from adept_ray.engine.job import CrewLost, Job, JobFailed, Metrics
from adept_ray.method.importance import LayerImportance
from adept_ray.method.placement import resolve_layers
from adept_ray.method.scores import SIDES
from adept_ray.rivals.methods import Entrant
from adept_ray.rivals.table import ComparedTraining, Phase
from adept_ray.storage.files import delete_folder
from adept_ray.training.scoring import score_model
from adept_ray.training.work import DialText, TrainWork, dial_key

if TYPE_CHECKING:
    from ray import ObjectRef

APART = 3.0  # factor between base rates until the best one is enclosed


def propose_rate(tried: Mapping[float, float], start: float) -> float:
    """The base rate to try next, from rate → score (-inf for one that failed).

    Steps by the factor APART towards better scores until the best rate has a worse one on either side, then
    halves the wider gap (on a logarithmic scale) beside the best; of equal ones that to the better neighbour.
    So every method gets the same number of tries whatever range it needs.
    """
    if not tried:
        return start
    rates = sorted(tried)
    best = max(rates, key=lambda rate: (tried[rate], -rate))
    at = rates.index(best)
    if at == len(rates) - 1 and math.isfinite(tried[best]):
        return round_rate(best * APART)
    if at == 0:
        return round_rate(best / APART)
    below, above = rates[at - 1], rates[at + 1]
    gaps = {side: (round(abs(math.log(best / side)), 1), tried[side]) for side in (below, above)}
    near = max(gaps, key=lambda side: gaps[side])
    return round_rate(math.sqrt(best * near))


def round_rate(rate: float) -> float:
    """A rate to three digits, so that a table can give it in full."""
    return float(f"{rate:.2e}")


@dataclass(frozen=True)
class ComparisonField:
    """What all trainings of a comparison share."""

    board: BoardClient
    work: TrainWork
    """Settings; its training, layers and seed are replaced."""
    importance: LayerImportance
    references: Sequence[ObjectRef]
    """Number of a seed (0 tries the rates) → object reference to its training text and judged splits."""
    before: Mapping[Phase, Mapping[str, Sequence[float]]]
    """Phase → what was measured of the untouched backbone (see :attr:`TrainWork.before`)."""
    judged: Mapping[Phase, Mapping[str, Blocks]]
    """Phase → side → the blocks that its losses are of."""
    items: Mapping[Phase, Mapping[str, TaskItems]]
    """Phase → side → items of its tasks, if it has any."""
    storage: str
    fit_to_layers: Callable[[TrainWork], TrainWork]
    """Makes a training that fits on the lowest layers fit on its own (see :mod:`adept_ray.search.setup`)."""

    def train(
        self, entrant: Entrant, phase: Phase, base_lr: float | None, seed: int, name: str
    ) -> ComparedTraining:
        """Run one training; one that fails is a row with its error. Raises :class:`CrewLost`."""
        row = ComparedTraining(entrant.label, phase, seed, base_lr)
        if base_lr is None:
            return replace(row, **self.score_untouched(phase))
        spec = apply_changes(entrant.training, {"base_lr": base_lr})
        layers = resolve_layers(self.importance, spec, seed) if spec.k else ()
        work = replace(self.work, training=spec, layers=layers, seed=seed, fit=entrant.fit)
        work = replace(work, before=self.before[phase], items=self.items[phase])
        if phase == "test":  # the dial is found where the rates are
            work = replace(work, dial_text=DialText(self.before["rate"], self.items["rate"]))
        work = self.fit_to_layers(work)
        row = replace(row, layers=" ".join(map(str, layers)))
        try:
            # What was cut off would be resumed, and end without its whole time and memory.
            delete_folder(f"{self.storage}/{name}")
            blocks = self.references[seed - self.work.seed]
            metrics = run_job(self.board, Job(name, "train", work, blocks, self.storage))
        except CrewLost:
            raise
        except JobFailed as problem:
            return replace(row, error=find_cause(problem))
        delete_folder(f"{self.storage}/{name}")  # all parameters of a model, for some methods
        columns = {each.name for each in fields(ComparedTraining)} & set(metrics)
        return replace(row, **{column: metrics[column] for column in columns})

    def score_untouched(self, phase: Phase) -> Metrics:
        """Numbers of the untouched backbone, which needs no training."""
        before = self.before[phase]
        metrics = score_model(before, before, self.judged[phase], self.work.by_tasks, self.work.weights)
        return {each.name: metrics[each.name] for each in fields(ComparedTraining) if each.name in metrics}


def name_dial_blocks(validation: Mapping[str, Blocks]) -> dict[str, Blocks]:
    """The validation blocks of both sides by the names under which a training finds its dial."""
    return {dial_key(side): validation[side] for side in SIDES}


def trains_anything(spec: TrainingSpec) -> bool:
    """Whether a training with `spec` trains anything."""
    return spec.k > 0 or spec.tunes not in ("copies", "originals")


def count_trainings(entrants: Sequence[Entrant], rate_trials: int, seeds: int) -> int:
    """How many trainings a comparison takes."""
    searched = rate_trials if rate_trials > 1 else 0
    return sum(searched + seeds if trains_anything(entrant.training) else 1 for entrant in entrants)


def compare_entrants(
    entrants: Sequence[Entrant],
    field: ComparisonField,
    rate_trials: int,
    seeds: int,
    known: Sequence[ComparedTraining] = (),
    record: Callable[[list[ComparedTraining], str], None] = lambda rows, name: None,
) -> list[ComparedTraining]:
    """Run all trainings that aren't `known` without an error; returns every row, in the order they were run.

    `record` gets all rows after each training, and the name of the next job. The first seed tries the rates,
    and the `seeds` after it count. With one try a method takes the rate that it would begin with. A method
    that fails at every rate is trained no further.
    Raises :class:`UserError` when no method could be trained and scored, :class:`CrewLost` without workers.
    """
    finished = {row.key: row for row in known if not row.error}
    rows: list[ComparedTraining] = []
    first = field.work.seed

    def run(entrant: Entrant, phase: Phase, base_lr: float | None, seed: int) -> ComparedTraining:
        number = len(rows) + 1
        name = f"training-{number:03d}"
        record(rows, name)
        key = (entrant.label, phase, seed, base_lr)
        row = finished[key] if key in finished else field.train(entrant, phase, base_lr, seed, name)
        rows.append(row)
        return row

    for entrant in entrants:
        if not trains_anything(entrant.training):
            run(entrant, "test", None, first)
            continue
        tried: dict[float, float] = {}
        if rate_trials == 1:  # there is nothing to choose from
            tried[entrant.rate] = 0.0
        for _ in range(rate_trials - len(tried)):
            row = run(entrant, "rate", propose_rate(tried, entrant.rate), first)
            assert row.base_lr is not None
            tried[row.base_lr] = row.score if row.score is not None else -math.inf
        best = max(tried, key=lambda rate: (tried[rate], -rate))
        if not math.isfinite(tried[best]):
            continue
        for seed in range(first + 1, first + 1 + seeds):
            run(entrant, "test", best, seed)
    record(rows, "")
    if not any(row.phase == "test" and row.score is not None for row in rows):
        raise UserError(f"all {len(rows)} trainings failed, the last with: {rows[-1].error}")
    return rows
