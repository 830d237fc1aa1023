"""What a training takes from a search for its length, and what is said of that."""

import pytest
from made_up import horizon

from adept_ray.config.errors import UserError
from adept_ray.config.specs import TrainingSpec, TrainRun
from adept_ray.method.importance import LayerImportance
from adept_ray.run.length import find_answer, find_layers, list_settings, tell_settings
from adept_ray.run.terminal import Display

LENGTHS = ((1, 4), (2, 5), (4, 6), (8, 7), (16, 8), (32, 9))
ANSWERS = [horizon(6144 * times, k) for times, k in LENGTHS]
BEST = {"choice": {"horizons": ANSWERS}}


def train(tokens, **settings):
    return TrainRun(config="best.yaml", tokens=tokens, **settings)


@pytest.mark.parametrize(
    ("tokens", "k"), [(100, 4), (6144, 4), (8000, 4), (9000, 5), (6144 * 8, 7), (10**9, 9)]
)
def test_a_training_has_the_k_and_the_rate_of_the_nearest_length(tokens, k):
    """In doublings; a rate has three digits. Beyond all lengths it has those of the longest."""
    best = {"choice": {"horizons": [{**row, "rate": 0.0012345} for row in ANSWERS]}}
    assert list_settings(find_answer(train(tokens), best)) == {"k": k, "base_lr": 0.00123}


def test_what_the_trial_had_is_taken_where_that_is_asked_or_nothing_else_is_known(capsys):
    """An older best.yaml has no answers; none is made up for it."""
    for best in ({}, {"choice": {}}, {"choice": {"horizons": []}}):
        assert find_answer(train(6144), best) is None
    assert find_answer(train(6144, settings="trial"), BEST) is None and list_settings(None) == {}
    tell_settings(train(6144), None, Display())
    assert capsys.readouterr().out == "k and rate are those of the trial that best.yaml chose\n"


def test_another_k_than_the_trial_had_places_its_own_layers():
    """By the importance that stage 1 finds; the trial's layers stay where k is the same."""
    importance = LayerImportance((0.4, 0.1, 0.3, 0.2), (0.0,) * 4, 2.0)
    best = {"layers": [2, 3]}
    found = {k: find_layers(best, TrainingSpec(k=k), importance, 0) for k in (1, 2, 3)}
    assert found == {1: (1,), 2: (2, 3), 3: (1, 2, 3)}


def test_an_answer_that_was_edited_badly_is_named():
    """Bad input has its sentence."""
    broken = {"choice": {"horizons": [{**ANSWERS[0], "k": "many"}]}}
    with pytest.raises(UserError, match=r"best.yaml: choice.horizons: k: .* not 'many'"):
        find_answer(train(6144), broken)


@pytest.mark.parametrize(
    ("tokens", "advised", "warning"),
    [
        (6144 * 16, 4, ""),
        (6144 * 17, 4, "this training is 17 times as long as anything that was read"),
        (6144, 0, "for 6.14 k tokens nothing is surely better than the untouched backbone"),
    ],
)
def test_it_is_said_what_is_taken_and_how_little_speaks_for_it(tokens, advised, warning, capsys):
    """A line in any case; a warning far beyond the readings, and where nothing is worth training."""
    best = {"choice": {"horizons": [{**row, "advised_k": advised} for row in ANSWERS]}}
    args = train(tokens)
    tell_settings(args, find_answer(args, best), Display())
    said = " ".join(capsys.readouterr().out.split())
    assert "(80%: 1 to 3), rate 2.0e-03 (1.0e-03 … 4.0e-03), by readings of up to 6.14 k tokens" in said
    assert ("warning: " in said) == bool(warning) and warning in said
