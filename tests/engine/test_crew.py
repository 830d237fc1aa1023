"""A crew of warm workers does job after job: a failure ends one job, and all workers take part in each."""

from dataclasses import replace

import numpy as np
import pytest
import ray
from common import local_backbone, one_document_each, save_backbone_with_code, save_tiny_backbone

from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec
from adept_ray.engine import cluster as launch
from adept_ray.engine.client import run_job
from adept_ray.engine.crew import start_crews
from adept_ray.engine.job import Job, JobFailed
from adept_ray.training.work import ProbeWork, TrainWork

SEQ_LEN, STEPS = 16, 150


def blocks(number, seed):
    return one_document_each(3 + np.random.default_rng(seed).integers(0, 300, (number, SEQ_LEN)))


BLOCKS = {
    name: blocks(4, seed) for seed, name in enumerate(("probe", "remeasure", "general", "domain", "train"))
}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A crew of two, where torch.compile does nothing, for what it makes would take minutes here."""
    run = RunSpec(name="a run", workers=2, dashboard=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        with launch.connect_cluster(run), start_crews(run, str(tmp_path_factory.mktemp("ray"))) as board:
            yield board


def test_workers_share_the_memory_of_their_machine(board):
    """Half of it for each of two, whatever Ray keeps for its objects left out."""
    (node,) = ray.nodes()
    alone, two = (launch.measure_worker_memory(RunSpec(workers=n)) for n in (1, 2))
    assert alone == int(node["Resources"]["memory"]) and two == alone // 2


@pytest.fixture(scope="module")
def work(board, tmp_path_factory):
    """A training of many short steps on what the crew measured."""
    backbone = local_backbone(save_tiny_backbone(tmp_path_factory.mktemp("backbone"), layers=3))
    asked = ProbeWork(backbone, 4, held_out=("general", "domain"))
    measured = run_job(board, Job("probe", "probe", asked, ray.put(BLOCKS)))
    return TrainWork(
        backbone=backbone,
        training=TrainingSpec(
            k=1, base_lr=1e-3, tokens=STEPS * SEQ_LEN, tokens_per_step=SEQ_LEN, reports=5, recompute_every=40
        ),
        layers=(1,),
        units=measured["importance"]["units"],
        before=measured["nats"],
        weights=ScoreWeights(),
        seq_len=SEQ_LEN,
        micro_batch=4,
        seed=0,
    )


def workers():
    """Process ids of the workers that are alive."""
    actors = ray._private.state.actors().values()
    return [a["Pid"] for a in actors if a["ActorClassName"] == "RayTrainWorker" and a["State"] == "ALIVE"]


def test_a_diverged_training_says_why_and_the_workers_stay(board, work, tmp_path):
    """It fails on all workers alike, so none of them has to start anew for the next job."""
    before = workers()
    hot = replace(work, training=work.training.model_copy(update={"base_lr": 1e38}))
    with pytest.raises(JobFailed, match=r"FloatingPointError: the loss is .* at step \d+ of 150"):
        run_job(board, Job("hot", "train", hot, ray.put(BLOCKS), str(tmp_path)))
    measured = run_job(board, Job("after", "probe", ProbeWork(work.backbone, 4), ray.put(BLOCKS)))
    assert measured["importance"]["units"] == pytest.approx(work.units)
    assert workers() == before and len(before) == 2


def test_workers_time_their_steps_together(board, work, tmp_path):
    """Each of two makes its share of every step, else one would wait for ever; the next job goes well."""
    found = run_job(board, Job("pace", "time_compiling", work, ray.put(BLOCKS)))
    assert not found["fault"] and found["plain"] > 0 and found["compiled"] > 0
    assert board.read_progress()[0]["pace"] == (2, 2)
    short = replace(work, training=work.training.model_copy(update={"tokens": 10 * SEQ_LEN}))
    assert run_job(board, Job("short", "train", short, ray.put(BLOCKS), str(tmp_path)))["complete"]


def test_trust_reaches_the_workers(board, tmp_path):
    """Each of them runs the code that came with a backbone."""
    marker = tmp_path / "marker"
    own = local_backbone(save_backbone_with_code(tmp_path / "own", marker), trusted=True)
    run_job(board, Job("trusted", "probe", ProbeWork(own, 4), ray.put(BLOCKS)))
    assert set(map(int, marker.read_text().split())) == set(workers())
