"""The backbone as it is: what every trial is measured against."""

from __future__ import annotations

from collections.abc import Mapping

from adept_ray.data.blocks import Blocks
from adept_ray.search.trials import UNTOUCHED, Trial, describe_trial
from adept_ray.training.scoring import score_model
from adept_ray.training.work import TrainWork


def measure_untouched(work: TrainWork, blocks: Mapping[str, Blocks]) -> Trial:
    """The backbone as a trial of k = 0; `blocks` holds the validation blocks of both sides."""
    metrics = score_model(work.before, work.before, blocks, work.by_tasks, work.weights)
    return describe_trial(UNTOUCHED, {"k": 0}, {**metrics, "tokens": 0, "seconds": 0.0}, UNTOUCHED, ())
