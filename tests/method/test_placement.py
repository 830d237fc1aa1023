"""Where copies go: every placement, what it promises, and what it refuses."""

import itertools
import random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.config.choices import Placement
from adept_ray.config.errors import UserError
from adept_ray.config.specs import TrainingSpec
from adept_ray.method.expansion import select_layers
from adept_ray.method.importance import LayerImportance
from adept_ray.method.placement import check_placement, count_ranks_needed, place_layers, resolve_layers

PLACEMENTS = get_args(Placement)


def importance_of(layers, seed=0):
    means = [float(i) for i in range(layers)]
    random.Random(seed).shuffle(means)
    reception = [float(i) for i in range(layers)]
    random.Random(seed + 1).shuffle(reception)
    return LayerImportance(tuple(means), (0.0,) * layers, 3.0, reception=tuple(reception))


@st.composite
def placements(draw):
    """Importance, k and a placement that fit together."""
    layers = draw(st.integers(1, 32))
    return (
        importance_of(layers, draw(st.integers(0, 9))),
        draw(st.integers(0, layers)),
        draw(st.sampled_from(PLACEMENTS)),
    )


@given(placements(), st.integers(0, 3))
def test_k_different_layers_in_ascending_order(drawn, seed):
    """Every placement gives k existing layers, each once."""
    importance, k, placement = drawn
    layers = place_layers(importance, k, placement, seed=seed)
    assert list(layers) == sorted(set(layers)) and len(layers) == k
    assert set(layers) <= set(range(len(importance.mean)))


@given(placements(), st.integers(0, 4))
def test_receptive_takes_the_most_receptive_of_every_band(drawn, offset):
    """None of the most important quarter, unless a band has no other layer."""
    importance, k, _ = drawn
    total = len(importance.mean)
    if k and total - offset >= k:
        chosen = place_layers(importance, k, "receptive", offset)
        edges = [offset + band * (total - offset) // k for band in range(k + 1)]
        critical = sorted(range(total), key=lambda layer: importance.mean[layer])[total - total // 4 :]
        for layer, (low, high) in zip(chosen, itertools.pairwise(edges), strict=True):
            others = [other for other in range(low, high) if other not in critical] or range(low, high)
            assert layer == max(others, key=lambda other: importance.reception[other])


def test_receptive_without_its_measurement_is_refused():
    """An importance read from elsewhere may lack it."""
    with pytest.raises(UserError, match="needs each layer's reception"):
        place_layers(LayerImportance((0.1, 0.2), (0.0, 0.0), 3.0), 1, "receptive")


@given(placements())
def test_guided_is_the_papers_choice(drawn):
    """The k least important layers."""
    importance, k, _ = drawn
    assert place_layers(importance, k, "guided") == select_layers(importance, k)


def test_the_papers_choice_is_the_default():
    """With an offset, too, it is the least important of what is left."""
    importance = importance_of(12)
    assert place_layers(importance, 4) == select_layers(importance, 4)
    left = [layer for layer in importance.order if layer >= 5]
    assert place_layers(importance, 4, offset=5) == tuple(sorted(left[:4]))


@pytest.mark.parametrize(
    ("placement", "k", "offset", "needed"),
    [
        ("guided", 0, 0, 1),
        ("guided", 1, 0, 1),
        ("guided", 3, 2, 5),
        ("guided", 9, 5, 12),
        ("stratified", 1, 0, 12),
        ("receptive", 1, 0, 12),
    ],
)
def test_as_many_ranks_are_needed_as_a_placement_looks_at(placement, k, offset, needed):
    """A band's layers may be anywhere in the order; the probe may be raced for the least important alone."""
    training = TrainingSpec(k=k, placement=placement, offset=offset)
    assert count_ranks_needed(training, 12) == needed


@given(placements(), st.integers(0, 4))
def test_stratified_takes_the_least_important_of_every_band(drawn, offset):
    """The layers from `offset` on fall into k bands whose sizes differ by one at most."""
    importance, k, _ = drawn
    total = len(importance.mean)
    if k and total - offset >= k:
        edges = [offset + band * (total - offset) // k for band in range(k + 1)]
        bands = [range(a, b) for a, b in itertools.pairwise(edges)]
        assert max(map(len, bands)) - min(map(len, bands)) <= 1
        chosen = place_layers(importance, k, "stratified", offset)
        assert list(chosen) == [min(band, key=lambda layer: importance.mean[layer]) for band in bands]


def test_uniform_spreads_over_the_depth():
    """Four copies in thirty layers, and one behind each layer; an offset moves all of them down."""
    assert place_layers(importance_of(30), 4, "uniform") == (7, 14, 22, 29)
    assert place_layers(importance_of(30), 4, "uniform", offset=3) == (4, 11, 19, 26)
    assert place_layers(importance_of(6), 6, "uniform") == tuple(range(6))


def test_deepest_are_the_last_ones():
    assert place_layers(importance_of(30), 4, "deepest") == (26, 27, 28, 29)
    assert place_layers(importance_of(30), 4, "deepest", offset=2) == (24, 25, 26, 27)


def test_random_goes_by_the_seed():
    """The same seed draws the same layers; eight seeds don't all draw the same."""
    drawn = [place_layers(importance_of(30), 4, "random", seed=seed) for seed in range(8)]
    assert drawn == [place_layers(importance_of(30), 4, "random", seed=seed) for seed in range(8)]
    assert len(set(drawn)) > 4


@pytest.mark.parametrize("placement", ["guided", "random", "stratified"])
def test_an_offset_keeps_copies_away_from_the_first_layers(placement):
    assert all(min(place_layers(importance_of(12, seed), 4, placement, 5, seed)) >= 5 for seed in range(9))


@pytest.mark.parametrize(
    "k, placement, offset, words",
    [
        (7, "guided", 0, "at most the number of layers, 6"),
        (3, "guided", 4, "leaves 2 layers to choose from"),
        (4, "stratified", 3, "a band without a layer"),
        (4, "uniform", 2, "a band without a layer"),
        (2, "deepest", 9, "leaves 0 layers to choose from"),
    ],
)
def test_what_cannot_be_placed_is_refused(k, placement, offset, words):
    """One sentence says what is left and what would help."""
    training = TrainingSpec(k=k, placement=placement, offset=offset)
    with pytest.raises(UserError, match=words):
        check_placement(training, 6)


def test_named_layers_are_not_placed():
    """They stand whatever the importance says, so nothing has to be ranked for them."""
    training = TrainingSpec(k=3, placement="stratified", layers=(9, 2, 4))
    assert resolve_layers(importance_of(12), training, seed=0) == (2, 4, 9)
    assert count_ranks_needed(training, 12) == 1


@pytest.mark.parametrize("layers", [(0, 1, 6), (-1, 0, 1)])
def test_named_layers_that_the_model_lacks_are_refused(layers):
    with pytest.raises(UserError, match=r"no layer (6|-1), give some of 0 to 5"):
        check_placement(TrainingSpec(k=3, layers=layers), 6)
