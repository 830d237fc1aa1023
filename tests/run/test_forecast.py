"""From seconds to hours: sums that can be done by hand."""

from dataclasses import replace

import pytest

from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.data.loading import Backbone
from adept_ray.run.forecast import (
    Amounts,
    Speed,
    compile_steps,
    count_passes,
    forecast_search,
    forecast_training,
    read_speed,
    share_streams,
)
from adept_ray.run.speed import count_branches
from adept_ray.training.dialling import LAST_PASSES, PASSES
from adept_ray.training.work import TrainWork

SPEED = Speed(step=2.0, remeasure=1.0, validation=0.5, probe=10.0)
AMOUNTS = Amounts(
    steps=100,
    recompute_every=25,
    reports=4,
    trials=8,
    crews=1,
    workers=1,
    probe=6,
    validation=3,
    test=5,
)


def test_a_training_is_its_steps_its_measurements_and_its_readings():
    """100 steps, units again before steps 26, 51 and 76, and four readings of three blocks of both sides."""
    assert forecast_training(SPEED, AMOUNTS) == 100 * 2 + 3 * 1 + 4 * (2 * 3 * 0.5)
    assert forecast_training(SPEED, replace(AMOUNTS, recompute_every=500)) == 200 + 12


def test_a_search_is_stage_1_its_trials_and_the_test():
    """The backbone's own losses belong to stage 1; the test scores it and the chosen model."""
    found = forecast_search(SPEED, AMOUNTS)
    assert found.stage1 == 6 * 10 + 2 * 3 * 0.5
    assert found.search == found.stage1 + 8 * found.trial + 2 * (2 * 5 * 0.5)


def test_trials_at_once_go_in_rounds():
    """Eight on three crews take as long as three one after the other."""
    one, three = (forecast_search(SPEED, replace(AMOUNTS, crews=crews)) for crews in (1, 3))
    assert one.search - three.search == pytest.approx(5 * one.trial)


def test_workers_share_probe_and_validation():
    """Each has half of an even number of blocks, and one more of an odd one. Steps were timed on all."""
    found = forecast_search(SPEED, replace(AMOUNTS, workers=2))
    assert found.stage1 == 3 * 10 + 2 * 2 * 0.5
    assert found.trial == 203 + 4 * (2 * 2 * 0.5)


def test_what_was_measured_is_read_for_one_block():
    """A probe is a pass, a gradient of all units (three passes), and a bypass of each layer."""
    found = {"step": 2.0, "remeasure": 1.0, "validation": 3.0, "validated": 12, "probed": 4}
    speed = read_speed(found | {"forward": 8.0, "bypass": 2.0}, layers=30, workers=2)
    assert speed == Speed(2.0, 1.0, validation=3.0 / 6, probe=(8 * 4 + 30 * 2) / 4)


def test_compiled_layers_change_steps_alone():
    """Scoring and stage 1 stay as they are; where nothing compiles there is no such speed."""
    compiled = compile_steps(replace(SPEED, compiled=1.5))
    assert compiled is not None and compile_steps(SPEED) is None
    assert forecast_training(SPEED, AMOUNTS) - forecast_training(compiled, AMOUNTS) == pytest.approx(50)


def test_what_is_kept_is_found_by_later_trials_and_readings():
    """A first trial makes all its steps and one reading with all layers; the next begins where copies do."""
    speed = replace(SPEED, kept_step=1.0, kept_validation=0.25)
    amounts = replace(AMOUNTS, kept_text=0.5, kept_validation=1.0)
    first, later = (forecast_training(speed, amounts, follows) for follows in (False, True))
    assert first == 100 * 2 + 3 * 1 + 2 * 3 * (0.5 + 3 * 0.25)
    assert later == 50 * 2 + 50 * 1 + 3 * 1 + 4 * (2 * 3 * 0.25)
    found = forecast_search(speed, amounts)
    assert (found.trial, found.later) == (first, later)
    assert found.search == found.stage1 + first + 7 * later + 2 * (2 * 5 * 0.5)


def test_a_reading_passes_its_text_once_for_each_dial():
    """Two passes on the way, four at the end, and on the test one more for the model as it was trained."""
    auto, given, off = (replace(AMOUNTS, **count_passes(dial)) for dial in ("auto", 0.7, "off"))
    assert off == replace(AMOUNTS, **count_passes(1.0)) == AMOUNTS
    more = (3 * PASSES + LAST_PASSES - 4) * (2 * 3 * 0.5)
    assert forecast_training(SPEED, auto) - forecast_training(SPEED, off) == pytest.approx(more)
    assert forecast_training(SPEED, given) == forecast_training(SPEED, off)
    found = [forecast_search(SPEED, each) for each in (auto, given, off)]
    tests = [each.search - each.stage1 - 8 * each.trial for each in found]
    assert tests == pytest.approx([passes * (2 * 5 * 0.5) for passes in (3, 3, 2)])
    speed, kept = replace(SPEED, kept_validation=0.25), replace(auto, kept_validation=1.0)
    saved = (3 * PASSES + LAST_PASSES - 1) * 2 * 3 * 0.25  # every pass but the first finds what is kept
    assert forecast_training(speed, auto) - forecast_training(speed, kept) == pytest.approx(saved)


def test_streams_share_what_may_be_kept():
    """Training text takes its part at most, and held-out text what that leaves."""
    assert share_streams(40, 100, limit=100, text_limit=0.5) == (1.0, 0.6)
    assert share_streams(200, 25, limit=100, text_limit=0.5) == (0.25, 1.0)
    assert share_streams(0, 10, limit=0, text_limit=0.5) == (0.0, 0.0)


def test_a_trial_in_branches_has_their_decays_and_reads_all_to_the_end():
    """24 steps and the 1 + 2 of the decays before; each of three readings has the passes of a last one."""
    training = TrainingSpec(tokens=24 * 256, schedule="wsd", reports=3)
    work = TrainWork(Backbone("", ""), training, (), {}, {}, ScoreWeights(), 128, 1, 0)
    amounts = replace(AMOUNTS, recompute_every=500, **count_passes("auto"))
    found = forecast_training(SPEED, count_branches(amounts, work))
    assert found == 27 * 2 + 3 * LAST_PASSES * (2 * 3 * 0.5)
    cosine = replace(work, training=TrainingSpec())
    assert count_branches(amounts, cosine) == amounts
