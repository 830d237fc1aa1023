"""A trial as its process of Tune's has it: it waits for the crew, and so loads neither torch nor Optuna."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray import tune

from adept_ray.config.specs import TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.engine.client import find_board, follow_job
from adept_ray.engine.job import DeferredWork, DiskFault, Job, JobFailed, is_out_of_memory
from adept_ray.method.scores import value_or_nan
from adept_ray.search.branches import follow_branches
from adept_ray.search.trials import Setting
from adept_ray.storage.results import TRIALS

if TYPE_CHECKING:
    from ray import ObjectRef


@dataclass(frozen=True)
class TrialErrand:
    """What every trial's process needs of its search."""

    run: str
    """Name of the run, by which its board is found."""
    storage: str
    """Folder or URI of what Ray and the workers keep."""
    training: TrainingSpec
    """What the settings of a trial change."""
    setup: bytes
    """The pickled :class:`~adept_ray.search.setup.SearchSetup`, of which the workers build the work."""
    seq_len: int
    """Length of a token block, in tokens."""
    price: float = 0.0
    """Points that a layer must earn: the search is for the score less what its layers cost."""


def run_trial(config: Setting, errand: TrialErrand, blocks: tuple[ObjectRef]) -> None:
    """One trial: stage 2 on the crew, once or in branches, its reports passed on to Tune.

    `blocks` holds an object reference in a tuple, since Tune would fetch a bare one here.
    Raises :class:`JobFailed`, without trying, for a k at which or below which a worker ran out of memory.
    """
    training = apply_changes(errand.training, config)
    k = training.k
    board = find_board(errand.run)
    limit = board.read_limit()
    if limit is not None and k >= limit:
        raise JobFailed(f"k = {k} was not tried: a worker ran out of memory at k = {limit}")
    title = tune.get_context().get_trial_name()
    name = title.partition(" ")[0]
    work, storage = DeferredWork(errand.setup, config), f"{errand.storage}/{TRIALS}"
    job = Job(name, "train", work, blocks[0], storage, judged=True, title=title)
    branches = training.schedule == "wsd"
    reports = follow_branches(board, job, training, errand.seq_len) if branches else follow_job(board, job)
    try:
        for metrics in reports:
            tune.report({**metrics, "worth": value_or_nan(metrics["score"]) - errand.price * k})
    except DiskFault as problem:
        board.close(str(problem))
        raise
    except JobFailed as problem:
        if is_out_of_memory(str(problem)):
            board.lower_limit(k)
        raise
