"""A tiny backbone, what stage 1 says of it, and trainings of it."""

import json

import pytest
from common import (
    local_backbone,
    save_tiny_backbone,
)
from trainings import BLOCKS, CPU, LAYERS, PER_STEP, SEQ_LEN, STEPS, Run, changed

from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.training.stage1 import run_probe
from adept_ray.training.work import ProbeWork, TrainWork


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    return local_backbone(save_tiny_backbone(tmp_path_factory.mktemp("backbone"), layers=3))


@pytest.fixture(scope="session")
def measured(backbone):
    """What stage 1 says, as it comes back from the cache, and the progress it told."""
    told = []
    work = ProbeWork(backbone, 2, held_out=("general", "domain"))
    result = run_probe(work, BLOCKS, CPU, lambda done, of: told.append((done, of)))
    return json.loads(json.dumps(result)), told


@pytest.fixture(scope="session")
def work(backbone, measured):
    """A training of eight steps that measures again at steps 3 and 6 and reports four times."""
    tokens = PER_STEP * SEQ_LEN
    return TrainWork(
        backbone=backbone,
        training=TrainingSpec(
            k=2, base_lr=1e-2, recompute_every=3, tokens=STEPS * tokens, tokens_per_step=tokens, reports=4
        ),
        layers=LAYERS,
        units=measured[0]["importance"]["units"],
        before=measured[0]["nats"],
        weights=ScoreWeights(),
        seq_len=SEQ_LEN,
        micro_batch=2,
        seed=0,
    )


@pytest.fixture(scope="session")
def whole(work, tmp_path_factory):
    """The training, never stopped."""
    return Run(tmp_path_factory.mktemp("whole"), work)


@pytest.fixture(scope="session")
def every_step(work, tmp_path_factory):
    """The same with a report, and so a checkpoint, after every step."""
    return Run(tmp_path_factory.mktemp("every"), changed(work, reports=STEPS))
