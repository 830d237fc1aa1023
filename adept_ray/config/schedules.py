"""The steps of a training: how many there are, and between which of them its rate rises and falls.

A trial by wsd has branches: trainings of lengths that double up to its own, which share one plateau.
"""

from __future__ import annotations

import math

from adept_ray.config.specs import TrainingSpec
from adept_ray.config.validation import apply_changes

EPSILON = 1e-9  # so that 0.85 of 20 steps are 17


def count_step_blocks(training: TrainingSpec, seq_len: int) -> int:
    """Blocks of one optimizer step over all workers."""
    return max(1, training.tokens_per_step // seq_len)


def count_step_tokens(training: TrainingSpec, seq_len: int) -> int:
    """Tokens of one optimizer step over all workers."""
    return count_step_blocks(training, seq_len) * seq_len


def count_steps(training: TrainingSpec, seq_len: int) -> int:
    """Optimizer steps of a whole training."""
    return max(1, training.tokens // count_step_tokens(training, seq_len))


def count_warmup_steps(training: TrainingSpec, seq_len: int) -> int:
    """Steps over which a wsd rate rises: as many whatever the length where ``warmup_tokens`` are given."""
    rise = training.warmup_tokens or training.warmup * training.tokens
    return round(rise / count_step_tokens(training, seq_len))


def find_decay_start(training: TrainingSpec, seq_len: int) -> int | None:
    """Step (from 0) from which on a wsd rate falls, at least one before the end; None for another schedule.

    It never comes earlier in a longer training.
    """
    if training.schedule != "wsd":
        return None
    steps = count_steps(training, seq_len)
    return min(steps - 1, int((1 - training.decay) * steps + EPSILON))


def list_lengths(training: TrainingSpec) -> list[int]:
    """Tokens of each branch of a trial, ascending: each trains on twice as many as the one before."""
    return [training.tokens // 2**halvings for halvings in reversed(range(training.reports))]


def fix_warmup(training: TrainingSpec) -> TrainingSpec:
    """A trial's training with its warm-up in tokens, so that it is as long in a training of any length.

    It is a share of the first branch. A schedule other than wsd stays as it is.
    """
    if training.schedule != "wsd" or training.warmup_tokens:
        return training
    return apply_changes(training, {"warmup_tokens": math.ceil(training.warmup * list_lengths(training)[0])})


def list_decay_steps(training: TrainingSpec, seq_len: int) -> list[int]:
    """Steps of the decay of each branch of a trial."""
    branches = [training.model_copy(update={"tokens": tokens}) for tokens in list_lengths(training)]
    return [count_steps(each, seq_len) - (find_decay_start(each, seq_len) or 0) for each in branches]


def count_trial_steps(training: TrainingSpec, seq_len: int) -> int:
    """Optimizer steps of a trial that comes to its end: by wsd also those of its shorter branches' decays."""
    shorter = list_decay_steps(training, seq_len)[:-1] if training.schedule == "wsd" else []
    return count_steps(training, seq_len) + sum(shorter)
