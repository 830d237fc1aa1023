"""Growing through the depths: one model, one text, a reading at each depth, an end without gain."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from common import local_backbone, one_document_each, save_tiny_backbone, write_files

from adept_ray.config.errors import UserError
from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import ScoreWeights, SearchRun, TrainingSpec
from adept_ray.engine.job import JobFailed
from adept_ray.method.importance import LayerImportance
from adept_ray.search import growth
from adept_ray.search.choice import choose_k
from adept_ray.search.growth import explain_growth_end, grow_model, plan_growth
from adept_ray.search.trials import Trial
from adept_ray.training.callbacks import Callbacks, ResumePoint
from adept_ray.training.stage1 import run_probe
from adept_ray.training.stage2 import train
from adept_ray.training.work import ProbeWork, TrainWork

CPU, SEQ_LEN, PER_STEP = torch.device("cpu"), 16, 4
IMPORTANCE = LayerImportance((0.3, 0.1, 0.2, 0.4), (0.01,) * 4, 3.0)
SPACE = SearchSpace(
    parameters={"k": {"int": [1, 3]}, "base_lr": {"fixed": 0.01}}, first=({"k": 1, "base_lr": 0.01},)
)


def counting(number, seed, stride):
    """Blocks that count upwards by `stride`, 3 bytes a token."""
    start = np.random.default_rng(seed).integers(0, 300, (number, 1))
    return one_document_each(3 + (start + stride * np.arange(SEQ_LEN)) % 300)


BLOCKS = {
    "probe": counting(4, 1, 2),
    "remeasure": counting(2, 1, 2),
    "general": counting(5, 2, 2),
    "domain": counting(24, 3, 1),
    "train": counting(40, 4, 1),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    source = local_backbone(save_tiny_backbone(tmp_path_factory.mktemp("backbone")))
    found = run_probe(ProbeWork(source, 4, held_out=("general", "domain")), BLOCKS, CPU)
    training = TrainingSpec(tokens_per_step=PER_STEP * SEQ_LEN, recompute_every=2)
    return TrainWork(
        backbone=source,
        training=training,
        layers=(),
        units=found["importance"]["units"],
        before=found["nats"],
        weights=ScoreWeights(general=0, domain=1),
        seq_len=SEQ_LEN,
        micro_batch=4,
        seed=0,
    )


def run_of(steps):
    return SearchRun(strategy="grow", tokens_per_trial=steps * PER_STEP * SEQ_LEN)


def do_jobs_here(patch, folder):
    """Have jobs done here and now, as a worker does them; returns what was begun."""
    begun = []

    def reports(board, job):
        begun.append(job)
        found = []

        def report(metrics, checkpoint):
            saved = str(write_files(checkpoint, folder / job.name))
            found.append({**metrics, "saved": saved})

        start = Path(job.grown_from) if job.grown_from else None
        train(job.work, job.blocks, CPU, Callbacks(report), ResumePoint(grown_from=start))
        return found

    patch.setattr(growth, "follow_job", reports)
    return begun


@pytest.fixture
def alone(monkeypatch, tmp_path):
    return do_jobs_here(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def grown(work, tmp_path_factory):
    """The rows of a growth through three depths, and the jobs that it was."""
    with pytest.MonkeyPatch.context() as patch:
        jobs = do_jobs_here(patch, tmp_path_factory.mktemp("grown"))
        return grow_model(plan_growth(run_of(60), SPACE, work, IMPORTANCE), BLOCKS, "", None), jobs


def test_a_model_grows_by_its_least_important_layers_and_goes_on_in_the_text(work):
    """Each depth has the layers of the one before, its share of the tokens, and the steps that come next."""
    plan = plan_growth(run_of(13), SPACE, work, IMPORTANCE)
    assert [stage.name for stage in plan] == ["grow-01", "grow-02", "grow-03"]
    assert [stage.work.layers for stage in plan] == [(1,), (1, 2), (0, 1, 2)]
    assert [(stage.work.steps_before, stage.work.steps) for stage in plan] == [(0, 4), (4, 4), (8, 4)]


def test_the_curve_is_read_along_one_training(grown):
    """A row a depth, each better than the last on text that can be learned; the choice is made among them."""
    rows, jobs = grown
    assert [row.k for row in rows] == [1, 2, 3] and {row.state for row in rows} == {"finished"}
    assert [row.tokens for row in rows] == [20 * k * PER_STEP * SEQ_LEN for k in (1, 2, 3)]
    assert [row.layers for row in rows] == [(1,), (1, 2), (0, 1, 2)]
    assert rows[0].score < rows[1].score < rows[2].score
    starts = [job.grown_from for job in jobs]
    assert starts == ["", rows[0].saved, rows[1].saved]
    assert choose_k(rows).k == 3


def test_a_reading_counts_what_the_depths_before_have_seen(grown):
    """Steps and tokens of the curves go on from depth to depth, and each curve ends as its row says."""
    rows, _ = grown
    readings = [reading for row in rows for reading in row.curve]
    assert [reading.step for reading in readings] == [20, 40, 60]
    for name in ("tokens", "general_delta", "domain_delta", "score"):
        assert [getattr(reading, name) for reading in readings] == [getattr(row, name) for row in rows]


def test_growth_ends_where_a_layer_gains_nothing(work, alone):
    """At a rate at which nothing is learned the second depth is within the noise, and there is no third."""
    still = SPACE.model_copy(update={"first": ({"k": 1, "base_lr": 1e-30},)})
    seen = []
    plan = plan_growth(run_of(60), still, work, IMPORTANCE)
    rows = grow_model(plan, BLOCKS, "", None, lambda row: seen.append((row.k, row.state)))
    assert [row.k for row in rows] == [1] and rows[0].score == pytest.approx(0, abs=1e-9)
    assert seen == [(1, "running"), (1, "finished")]


def reading(k, score, error):
    """A depth as it is read from an older file: without the pulls of single blocks."""
    return Trial(f"grow-{k:02d}", k=k, score=score, score_se=error, state="finished")


def test_a_depth_is_judged_by_what_each_added_layer_earned():
    """Four layers that earn 0.6 points each pay at 0.4 a layer but not surely at 0.58, nor at 0.7."""
    rows = [reading(4, 5.0, 0.03), reading(8, 7.4, 0.04)]  # a step of 2.4 ± 0.05 over four layers
    said = {price: explain_growth_end(rows, ScoreWeights(), price) for price in (0.0, 0.4, 0.58, 0.7)}
    assert [price for price, words in said.items() if words] == [0.58, 0.7]
    assert said[0.7] == (
        "the growth ended at k = 8: each layer beyond k = 4 earned 0.60 ± 0.01 points, not surely more than "
        "the 0.7 asked of it"
    )
    assert explain_growth_end(rows[:1], ScoreWeights(), 1.24).endswith(
        "beyond k = 0 earned 1.25 ± 0.01 points, not surely more than the 1.24 asked of it"
    )
    assert explain_growth_end([*rows, reading(16, 7.5, 0.1)], ScoreWeights()).endswith(
        "0.01 ± 0.01 points, not surely more than none"
    )


def test_growth_ends_where_a_layer_does_not_earn_what_is_asked(work, alone):
    """The first depth earns less than a hundred points a layer, so there is no second one."""
    rows = grow_model(plan_growth(run_of(60), SPACE, work, IMPORTANCE), BLOCKS, "", None, price=100.0)
    assert [row.k for row in rows] == [1] and 0 < rows[0].score < 100


def test_a_depth_that_fails_ends_the_growth_and_keeps_what_was_read(work, alone, monkeypatch):
    """It is a row with its error, and the choice is made among those before it."""
    done = growth.follow_job

    def fails_at_two(board, job):
        if job.name == "grow-02":
            raise JobFailed("Traceback …\nMemoryError: too large")
        return done(board, job)

    monkeypatch.setattr(growth, "follow_job", fails_at_two)
    rows = grow_model(plan_growth(run_of(60), SPACE, work, IMPORTANCE), BLOCKS, "", None)
    assert [(row.k, row.state) for row in rows] == [(1, "finished"), (2, "failed")]
    assert rows[1].error == "MemoryError: too large" and rows[1].score is None
    assert choose_k(rows).k == 1 and math.isfinite(choose_k(rows).score)


def test_what_cannot_grow_is_refused(work):
    """A placement that moves its layers with k, a space without layers to add, flags of trials."""
    spread = SearchSpace(
        parameters={"k": {"int": [1, 3]}, "placement": {"fixed": "uniform"}},
        first=({"k": 1, "placement": "uniform"},),
    )
    with pytest.raises(UserError, match=r"placement uniform .* must have guided or deepest"):
        plan_growth(run_of(9), spread, work, IMPORTANCE)
    nothing = SearchSpace(parameters={"k": {"fixed": 0}}, first=({"k": 0},))
    with pytest.raises(UserError, match="no k above 0"):
        plan_growth(run_of(9), nothing, work, IMPORTANCE)
    with pytest.raises(ValueError, match="--pareto is for independent trials"):
        SearchRun(strategy="grow", pareto=True)
    with pytest.raises(ValueError, match="--schedule is for independent trials: leave it out"):
        SearchRun(strategy="grow", schedule="wsd")
