"""The steps of a training: how many there are, and between which of them its rate rises and falls."""

from __future__ import annotations

from adept_ray.config.specs import TrainingSpec

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
