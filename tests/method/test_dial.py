"""The dial: where it leads, how the best one is found, and what that costs in honesty."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from common import logits, random_ids, shake, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.method.anatomy import layer_parameters
from adept_ray.method.dial import (
    FOLDS,
    LEAST,
    Turn,
    Turned,
    choose_dial,
    cross_fit,
    find_top,
    propose_dial,
    take_by_fold,
)
from adept_ray.method.families import FAMILIES
from adept_ray.method.scores import compare_answers, compare_losses, list_gains, standard_error
from adept_ray.method.tuning import build_tuning
from adept_ray.storage.files import format_json

IDS = random_ids(2, 12)
EVEN = ScoreWeights()
METHODS = ("copies", "originals", "all", "lora", "tasl")


def tuned(tunes="copies", family="llama", dtype=torch.float32, size=0.3):
    """A tiny model with all that it trains moved by chance."""
    model = tiny_model(family).to(dtype)
    units = dict.fromkeys(layer_parameters(model, range(4)), 1.0)
    spec = TrainingSpec(k=2 if tunes in ("copies", "originals") else 0, tunes=tunes, lora_rank=2)
    tuning = build_tuning(model, spec, (0, 2) if spec.k else (), units, seed=3)
    shake(tuning.parameters.values(), size)
    return model, tuning


def turned_logits(model, tuning, dial):
    with tuning.use_exported_weights(dial):
        return logits(model, IDS)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_copies_turned_to_nothing_are_the_backbone(family):
    """At dial 0 a model with trained copies is its backbone, in every family, and at 1 what was trained."""
    model, tuning = tuned(family=family)
    trained = logits(model, IDS)
    assert torch.equal(turned_logits(model, tuning, 0.0), logits(tiny_model(family), IDS))
    assert torch.equal(turned_logits(model, tuning, 1.0), trained)
    assert not torch.equal(trained, logits(tiny_model(family), IDS))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_copy_adds_in_proportion_to_the_dial(family):
    """The one copy of the last layer adds to the stream what the dial says, however its family norms it.

    What its attention adds enters its mlp, so only one of the two is left to add anything.
    """
    model = tiny_model(family)
    units = dict.fromkeys(layer_parameters(model, range(4)), 1.0)
    tuning = build_tuning(model, TrainingSpec(k=1), (3,), units, seed=3)
    shake([p for name, p in tuning.parameters.items() if "mlp" not in name], 0.5)
    seen = []
    last = model.get_submodule(f"model.layers.{tuning.added[0]}")
    hook = last.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    for dial in (1.0, 0.25):
        with tuning.use_exported_weights(dial):
            logits(model, IDS)
    hook.remove()
    (before, whole), (same, part) = seen
    assert torch.equal(before, same) and (whole - before).abs().max() > 1e-3
    torch.testing.assert_close(part - before, 0.25 * (whole - before), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tunes", METHODS)
def test_every_method_is_led_back_to_its_backbone(tunes):
    """At dial 0 each method computes what the backbone does, to float tolerance; half-way it doesn't."""
    model, tuning = tuned(tunes)
    backbone = logits(tiny_model(), IDS)
    torch.testing.assert_close(turned_logits(model, tuning, 0.0), backbone, rtol=1e-4, atol=1e-4)
    assert (turned_logits(model, tuning, 0.5) - backbone).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tunes", METHODS)
def test_what_is_exported_at_a_dial_is_what_was_measured_there(tunes, dtype):
    """A merged model has the logits of the readings at its dial; LoRA's merge rounds anew."""
    model, tuning = tuned(tunes, dtype=dtype, size=0.05)
    read = turned_logits(model, tuning, 0.4)
    merged = logits(tuning.merge(0.4), IDS)
    if tunes in ("lora", "tasl"):
        torch.testing.assert_close(merged, read, rtol=0.05, atol=0.05 if dtype == torch.bfloat16 else 1e-4)
    else:
        assert torch.equal(merged, read)


@pytest.mark.parametrize("tunes", METHODS)
def test_a_reading_leaves_the_training_as_it_was(tunes):
    """After a reading, also one that ends in an exception, the weights are the same bits and of one type."""
    _, tuning = tuned(tunes, dtype=torch.bfloat16)
    before = copy.deepcopy({name: p.detach() for name, p in tuning.parameters.items()})
    with pytest.raises(ArithmeticError), tuning.use_exported_weights(0.3):
        raise ArithmeticError
    with tuning._hold_values(0.3, torch.bfloat16):  # as ranks with pieces do it
        pass
    for name, parameter in tuning.parameters.items():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, before[name])


def test_a_method_that_is_never_turned_keeps_no_second_copy():
    """All parameters are kept twice only where a dial will need them."""
    for dial, kept in (("off", False), (1.0, False), ("auto", True), (0.5, True)):
        tuning = build_tuning(tiny_model(), TrainingSpec(k=0, tunes="all", dial=dial), (), {}, seed=0)
        assert bool(tuning.origin) is kept


def search(score, passes=4):
    """All that is read of a `score` as a function of the dial."""
    read = {}
    while len(read) < passes and (dial := propose_dial(read)) is not None:
        read[dial] = score(dial)
    return read


@given(top=st.floats(0.1, 1.0), width=st.floats(0.3, 2.0), height=st.floats(0.1, 20))
def test_the_top_of_a_parabola_is_found_in_three_passes(top, width, height):
    """A score that is a parabola through the backbone's 0 is read within a tenth of a point of its top."""

    def score(dial):
        return height * dial * (2 * top - dial) / width

    read = search(score, passes=3)
    best = max(score(dial / 1000) for dial in range(60, 1001))
    assert max(read.values()) >= best - 0.002 * height / width


def test_as_trained_is_read_first_and_alone_where_nothing_is_better():
    """A score that still rises at 1 takes two passes, and 1 is the best."""
    read = search(lambda dial: 10 * dial)
    assert list(read) == [1.0, 0.5]


def test_what_diverged_is_looked_for_near_the_backbone():
    """Scores that aren't finite lead to smaller dials, and never to one outside of the range."""
    read = search(lambda dial: math.nan if dial > 0.2 else 5 * dial, passes=6)
    assert any(math.isfinite(score) for score in read.values())
    assert all(LEAST <= dial <= 1 for dial in read)
    assert propose_dial({1.0: math.nan, 0.5: math.nan, LEAST: math.nan}) is None


@given(st.dictionaries(st.floats(LEAST, 1.0), st.floats(-50, 50), max_size=6))
def test_a_proposal_is_a_dial_that_was_not_read(scores):
    """Whatever was read, what is proposed is new and between LEAST and 1."""
    dial = propose_dial(scores)
    assert dial is None or (LEAST <= dial <= 1 and dial not in scores)


def test_the_top_of_three_points():
    """That of -(x - 0.3)², and the highest point's place where the parabola opens upwards."""
    assert find_top([(x, -((x - 0.3) ** 2)) for x in (0.0, 0.5, 1.0)]) == pytest.approx(0.3)
    assert find_top([(x, (x - 0.3) ** 2) for x in (0.0, 0.5, 1.0)]) == 1.0


def make_turned(curves, seed=0, documents=40, noise=0.5):
    """What dials gain, from dial → (general, domain): documents scatter about these."""
    rng = np.random.default_rng(seed)
    scatter = {side: rng.normal(0, noise / documents, documents) for side in ("general", "domain")}
    turns = []
    for dial, deltas in curves.items():
        gains = {
            side: (delta / documents + scatter[side] * dial + rng.normal(0, noise / documents, documents))
            for side, delta in zip(scatter, deltas, strict=True)
        }
        turns.append(Turn(dial, {side: each.tolist() for side, each in gains.items()}))
    shares = {side: np.full(documents, 1 / documents).tolist() for side in scatter}
    return Turned(tuple(turns), shares)


def test_a_dial_that_is_best_beyond_doubt_is_read_as_it_is():
    """Where every fold chooses the same dial, changes, errors and pulls are those of that dial."""
    turned = make_turned({0.5: (4.0, 10.0), 1.0: (-4.0, 12.0)})
    choice = choose_dial(turned, EVEN)
    assert choice.dial == 0.5 and set(choice.by_fold) == {0.5}
    deltas, pulls = cross_fit(turned, choice.by_fold)
    assert deltas == pytest.approx(turned.turns[0].deltas)
    assert sum(pulls["domain"]) == pytest.approx(0, abs=1e-9)
    gains = np.array(turned.turns[0].gains["domain"])
    assert standard_error(pulls["domain"]) == pytest.approx(standard_error(gains - gains.mean()))


def test_other_weights_choose_another_dial():
    """The domain alone takes what was trained, the general side alone the lower dial."""
    turned = make_turned({0.25: (5.0, 3.0), 1.0: (-4.0, 12.0)})
    assert choose_dial(turned, ScoreWeights(general=0, domain=1)).dial == 1.0
    assert choose_dial(turned, ScoreWeights(general=1, domain=0)).dial == 0.25


def test_the_best_of_noise_is_not_called_a_gain():
    """Dials that differ by chance alone: the best one looks better than 0, its cross-fitted score doesn't."""
    naive, fitted = [], []
    for seed in range(200):
        turned = make_turned(dict.fromkeys((0.25, 0.5, 0.75, 1.0), (0.0, 0.0)), seed, noise=20.0)
        choice = choose_dial(turned, EVEN)
        naive.append(max(turn.weigh(EVEN) for turn in turned.turns))
        fitted.append(sum(cross_fit(turned, choice.by_fold)[0]) / 2)
    error = np.std(fitted) / math.sqrt(len(fitted))
    assert np.mean(naive) > 5 * error
    assert abs(np.mean(fitted)) < 3 * error


def test_what_is_left_of_optimism_where_dials_are_proposed_is_small():
    """Documents that curve each its own way by chance: dials proposed from all of them leave a part of it."""
    naive, fitted = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        slopes, bends = rng.normal(0, 1, (2, 2, 40))
        turns, scores = [], {}
        while len(turns) < 4 and (dial := propose_dial(scores)) is not None:
            gains = dict(zip(("general", "domain"), (slopes * dial + bends * dial**2).tolist(), strict=True))
            turns.append(Turn(dial, gains))
            scores[dial] = turns[-1].weigh(EVEN)
        turned = Turned(tuple(turns), {side: [1 / 40] * 40 for side in ("general", "domain")})
        choice = choose_dial(turned, EVEN)
        naive.append(max(scores.values()))
        fitted.append(sum(cross_fit(turned, choice.by_fold)[0]) / 2)
    assert np.mean(fitted) < np.mean(naive) / 2


def test_no_fold_takes_a_dial_at_which_a_document_has_no_loss():
    """What diverged on one document counts on none, though it be better on all others."""
    turned = make_turned({0.5: (1.0, 1.0), 1.0: (9.0, 9.0)}, documents=10)
    turned.turns[1].gains["domain"][3] = math.nan
    choice = choose_dial(turned, EVEN)
    assert choice.dial == 0.5 and set(choice.by_fold) == {0.5}
    assert all(map(math.isfinite, cross_fit(turned, choice.by_fold)[0]))


def test_of_equal_dials_what_was_trained_is_taken():
    """As with tasks, where answers may all stay the same."""
    turned = make_turned(dict.fromkeys((0.25, 0.5, 1.0), (0.0, 0.0)), noise=0.0)
    choice = choose_dial(turned, EVEN)
    assert choice.dial == 1.0 and set(choice.by_fold) == {1.0}


def test_folds_take_their_own_dials():
    """Document number n belongs to fold n modulo FOLDS."""
    values = {0.5: np.arange(7.0), 1.0: 100 + np.arange(7.0)}
    by_fold = [1.0, *[0.5] * (FOLDS - 1)]
    assert take_by_fold(values, by_fold).tolist() == [100, 1, 2, 3, 4, 105, 6]


def test_a_side_of_one_document_still_has_a_dial():
    """A fold outside of which nothing is left goes by what there is."""
    turns = (Turn(0.5, {"general": [1.0], "domain": [2.0]}), Turn(1.0, {"general": [0.0], "domain": [1.0]}))
    turned = Turned(turns, {"general": [1.0], "domain": [1.0]})
    assert set(choose_dial(turned, EVEN).by_fold) == {0.5}


@pytest.mark.parametrize("answers", [False, True])
def test_gains_add_up_to_the_change(answers):
    """What documents contribute sums to the change, and less their shares of it these are its pulls."""
    rng = np.random.default_rng(1)
    before, after = rng.uniform(1, 3, 12), rng.uniform(1, 3, 12)
    if answers:
        before, after = before.round() % 2, after.round() % 2
    change = compare_answers(before, after) if answers else compare_losses(before, after, np.full(12, 9))
    gains, shares = list_gains(before, after, answers)
    assert gains.sum() == pytest.approx(change.delta) and shares.sum() == pytest.approx(1)
    assert gains - change.delta * shares == pytest.approx(np.array(change.pulls))


def test_what_was_turned_comes_back_from_json():
    """And nothing from a row that has none."""
    turned = make_turned({0.5: (1.0, 2.0), 1.0: (0.0, 3.0)}, documents=3)
    assert Turned.from_json(json.loads(format_json(turned.to_json()))) == turned
    assert Turned.from_json(None) == Turned()


def test_what_diverged_comes_back_as_no_number():
    """JSON has no word for it: it is written as null."""
    turned = make_turned({1.0: (0.0, 3.0)}, documents=3)
    turned.turns[0].gains["general"][1] = math.nan
    again = Turned.from_json(json.loads(format_json(turned.to_json())))
    assert math.isnan(again.turns[0].gains["general"][1]) and math.isnan(again.turns[0].weigh(EVEN))
