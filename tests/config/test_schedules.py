"""Steps of a training by its tokens: a plateau is a longer training's, too, and leaves steps to decay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.config.errors import UserError
from adept_ray.config.schedules import (
    count_step_blocks,
    count_step_tokens,
    count_steps,
    count_warmup_steps,
    find_decay_start,
)
from adept_ray.config.specs import TrainingSpec
from adept_ray.config.validation import apply_changes, validate_spec

SEQ_LEN = 8


def wsd(steps, **changes):
    """A training of so many steps of two blocks."""
    sizes = {"tokens": steps * 2 * SEQ_LEN, "tokens_per_step": 2 * SEQ_LEN}
    return TrainingSpec(schedule="wsd", **sizes | changes)


def test_steps_are_whole_and_of_whole_blocks():
    """What is left of tokens that fill no step, and of a step that no block fills, isn't trained on."""
    training = TrainingSpec(tokens=100, tokens_per_step=20)
    counts = count_step_blocks(training, SEQ_LEN), count_step_tokens(training, SEQ_LEN)
    assert counts == (2, 16) and count_steps(training, SEQ_LEN) == 6
    small = TrainingSpec(tokens=3, tokens_per_step=3)
    assert (count_step_blocks(small, SEQ_LEN), count_steps(small, SEQ_LEN)) == (1, 1)


def test_the_decay_is_the_share_of_the_end():
    """It is rounded up to a step, and cosine has none."""
    found = {steps: find_decay_start(wsd(steps), SEQ_LEN) for steps in (1, 2, 6, 7, 12, 20, 24, 100)}
    assert found == {1: 0, 2: 1, 6: 5, 7: 5, 12: 10, 20: 17, 24: 20, 100: 85}
    assert find_decay_start(wsd(100, decay=1e-12), SEQ_LEN) == 99
    assert find_decay_start(TrainingSpec(), SEQ_LEN) is None


@given(st.integers(1, 2000), st.integers(0, 2000), st.floats(0.01, 0.99))
def test_a_longer_training_decays_no_earlier(steps, more, decay):
    """So what a shorter one keeps of its plateau lies on the longer one's."""
    starts = [find_decay_start(wsd(each, decay=decay, warmup=0), SEQ_LEN) for each in (steps, steps + more)]
    assert 0 <= starts[0] <= starts[1] and starts[0] < steps and starts[1] < steps + more


def test_a_warm_up_in_tokens_is_as_long_whatever_the_length():
    """As a share it grows with the training; it is rounded to the nearest step."""
    assert [count_warmup_steps(wsd(n, warmup_tokens=40), SEQ_LEN) for n in (5, 50, 500)] == [2, 2, 2]
    assert [count_warmup_steps(wsd(n, warmup=0.1), SEQ_LEN) for n in (4, 6, 50)] == [0, 1, 5]


def test_a_warm_up_that_leaves_no_plateau_is_refused():
    """The sentence has all three numbers; what cosine would do with them is no concern."""
    asked = {"tokens": 300, "warmup_tokens": 512}
    apply_changes(TrainingSpec(), asked)
    with pytest.raises(UserError, match=r"best: a warm-up of 512 .* the last 15% of 300 tokens: train"):
        validate_spec(TrainingSpec, asked | {"schedule": "wsd"}, "best")
    with pytest.raises(UserError, match="warm-up of 90 tokens"):
        apply_changes(TrainingSpec(schedule="wsd", tokens=100), {"warmup": 0.9})
    for tokens in range(1, 300):  # rounding doesn't refuse what fits exactly
        TrainingSpec(schedule="wsd", tokens=tokens, warmup_tokens=round(0.85 * tokens), decay=0.15)
    for decay in (0, 1):
        with pytest.raises(UserError, match="decay"):
            validate_spec(TrainingSpec, {"decay": decay}, "best")
