"""Several nodes: the same losses at every width, and the same weights whatever is lost on the way."""

import itertools
import os
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from common import local_backbone, one_document_each, save_tiny_backbone, write_files
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from safetensors.torch import load_file

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec, ScoreWeights, SearchRun, TrainingSpec
from adept_ray.engine.client import follow_job, run_job
from adept_ray.engine.crew import start_crews
from adept_ray.engine.job import Job
from adept_ray.method.fit import Fit
from adept_ray.storage.checkpoints import find_last_checkpoint
from adept_ray.training.callbacks import Callbacks
from adept_ray.training.stage1 import run_probe
from adept_ray.training.stage2 import train
from adept_ray.training.state import WEIGHTS
from adept_ray.training.work import ProbeWork, TrainWork

SEQ_LEN, REPORTS = 16, 4
STEPS, SHORT = 240, 40  # of a training into which something happens, and of one that waits for that
EVERY, EVERY_SHORT = STEPS // REPORTS, SHORT // REPORTS  # steps between two reports
# What Ray's processes of the test read: a notice is looked for often, and what can't start isn't waited for.
HASTE = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.3", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}
STORE = 100 * 2**20  # bytes of a node's object store
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}  # a lost node is noticed
HEAD = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE, "_system_config": SOON}
HEAD |= {"include_log_monitor": False, "no_monitor": True}  # nobody reads along, and nodes are the test's own

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def blocks(number, seed):
    return one_document_each(3 + np.random.default_rng(seed).integers(0, 300, (number, SEQ_LEN)))


BLOCKS = {name: blocks(4, seed) for seed, name in enumerate(("probe", "remeasure", "general", "domain"))}
BLOCKS["train"] = blocks(16, 9)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A training of many small steps of four blocks."""
    backbone = local_backbone(save_tiny_backbone(tmp_path_factory.mktemp("backbone"), layers=3))
    asked = ProbeWork(backbone, 4, held_out=("general", "domain"))
    measured = run_probe(asked, BLOCKS, torch.device("cpu"))
    step = 4 * SEQ_LEN
    training = TrainingSpec(
        k=1, base_lr=1e-3, tokens=STEPS * step, tokens_per_step=step, reports=REPORTS, recompute_every=35
    )
    return TrainWork(
        backbone=backbone,
        training=training,
        layers=(1,),
        units=measured["importance"]["units"],
        before=measured["nats"],
        weights=ScoreWeights(),
        seq_len=SEQ_LEN,
        micro_batch=4,
        seed=0,
    )


def undisturbed(work):
    """The last metrics and the final weights of a training in this process."""
    last = {}
    with tempfile.TemporaryDirectory() as folder:

        def report(metrics, checkpoint):
            last.update(metrics, weights=load_file(write_files(checkpoint, Path(folder)) / WEIGHTS))

        train(work, BLOCKS, torch.device("cpu"), Callbacks(report))
    return last


@pytest.fixture(scope="module")
def alone(work):
    return undisturbed(work)


@pytest.fixture(scope="module")
def short(work):
    """The same of fewer steps."""
    tokens = SHORT * work.training.tokens_per_step
    return replace(work, training=work.training.model_copy(update={"tokens": tokens}))


@pytest.fixture(scope="module")
def short_alone(short):
    return undisturbed(short)


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, and no node yet, so that a test says where its workers can be."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HASTE.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args=HEAD)
        ray.init(address=made.address, namespace="adept_ray", log_to_driver=False, logging_level="ERROR")
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def nodes(cluster, *cpus):
    """Make the cluster's nodes these; those that are there stay, as far as they are among them."""
    there, made = list(cluster.worker_nodes), []
    for number in cpus:
        fitting = [node for node in there if node.get_resource_and_label_spec().num_cpus == number]
        if fitting:
            there.remove(fitting[0])
        made.append(fitting[0] if fitting else cluster.add_node(num_cpus=number, object_store_memory=STORE))
    for node in there:
        cluster.remove_node(node)
    look()
    return made


def look():
    """Have Ray look now at which nodes there are, as it does every 20 seconds, where it has begun to."""
    try:
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    except ValueError:
        return
    ray.get(coordinator.get_reserved_resources.remote("nobody", recompute=True))


def workers():
    """What Ray knows of the workers that are alive."""
    actors = ray._private.state.actors().values()
    return [a for a in actors if a["ActorClassName"] == "RayTrainWorker" and a["State"] == "ALIVE"]


def working():
    """Ids of the nodes on which workers are, one for each worker."""
    return [worker["Address"]["NodeID"] for worker in workers()]


def nothing_reserved():
    """Wait until every CPU is free again."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) != ray.cluster_resources().get("CPU", 0):
        assert time.monotonic() < deadline, (ray.available_resources(), ray.cluster_resources())
        time.sleep(0.5)


def same_weights(metrics, alone):
    found = load_file(Path(metrics["saved"]) / WEIGHTS)
    return all(torch.equal(found[name], alone["weights"][name]) for name in alone["weights"])


def test_a_node_is_lost_while_two_trials_run(cluster, short, short_alone, tmp_path):
    """SIGKILL of a node's processes: the trial on it goes on elsewhere, the other one where it is.

    Both wait for the verdict on their first report until the node is lost.
    """
    made = nodes(cluster, 1, 1, 1)
    found = {}

    def follow(board, name):
        found[name] = []
        job = Job(name, "train", short, ray.put(BLOCKS), str(tmp_path), judged=True)
        for metrics in follow_job(board, job):
            found[name].append(metrics)

    with start_crews(SearchRun(name="two", concurrent=2), str(tmp_path)) as board:
        while len(working()) < 2:  # else the first crew might do both
            time.sleep(0.1)
        threads = [threading.Thread(target=follow, args=(board, name)) for name in ("one", "other")]
        for thread in threads:
            thread.start()
        while len(found) < 2 or not all(found.values()):
            time.sleep(0.1)
        lost = next(node for node in made if node.node_id in working())
        assert len(set(working())) == 2
        cluster.remove_node(lost, allow_graceful=False)
        for name, report in itertools.product(found, range(1, REPORTS)):
            board.give_verdict(name, report, False)
        for thread in threads:
            thread.join()
    said = {name: [metrics["report"] for metrics in each] for name, each in found.items()}
    assert sorted(map(len, said.values())) == [REPORTS, REPORTS + 1]  # who goes on says its last report again
    assert all(same_weights(each[-1], short_alone) for each in found.values())
    nothing_reserved()


def test_a_notice_is_answered_by_a_checkpoint(cluster, work, alone, tmp_path):
    """One of three nodes is drained in mid-training: all workers go on at the step at which they heard it.

    Three workers with uneven shares, two of them on one node, come to the losses of one.
    """
    small = nodes(cluster, 1, 1, 2)[:2]
    lines, places = [], []
    with start_crews(RunSpec(name="drained", workers=3), str(tmp_path), lines.append) as board:
        seen = []
        for metrics in follow_job(board, Job("drained", "train", work, ray.put(BLOCKS), str(tmp_path))):
            seen.append(metrics)
            places.append(working())
            if len(seen) == 1:
                going = next(node.node_id for node in small if node.node_id in places[0])
                drain(cluster, going)
    assert [len(place) for place in places] == [3] * len(seen)
    assert going not in places[-1] and len(set(places[-1])) == 2
    said = [metrics["report"] for metrics in seen]
    last = next(before for before, after in itertools.pairwise(said) if before == after)
    assert said == [*range(1, last + 1), *range(last, REPORTS + 1)]
    step = int(Path(seen[last]["saved"]).name.removeprefix("step-"))  # where the last report was repeated
    assert EVERY * last < step < EVERY * (last + 1)
    assert any(f"leaves a node that will be taken away; saved at step {step}" in line for line in lines)
    for name in ("general_bpb", "domain_bpb", "loss"):
        assert metrics[name] == pytest.approx(alone[name], rel=1e-4)
    nothing_reserved()
    cluster.remove_node(next(node for node in small if node.node_id == going))


def drain(cluster, node):
    """Announce that a node will be taken away in two minutes, as a cloud's autoscaler does."""
    client = ray._raylet.GcsClient(address=cluster.gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int(time.time() + 120) * 1000
    accepted, why = client.drain_node(node, reason, "spot node reclaimed", deadline)
    assert accepted, why


def test_workers_may_become_fewer_and_more(cluster, short, short_alone, tmp_path):
    """Two workers lose a node: one goes on, until there is room for another one; the losses stay the same.

    Each waits for the verdict on the first report, and says it again when it goes on. The model is shared
    out over as many as there are.
    """
    made = nodes(cluster, 1, 1)
    lines, widths = [], []
    wide = RunSpec(name="elastic", workers=2, min_workers=1)
    elastic = replace(short, fit=Fit(sharded=True))
    with start_crews(wide, str(tmp_path), lines.append) as board:
        job = Job("elastic", "train", elastic, ray.put(BLOCKS), str(tmp_path), judged=True)
        for metrics in follow_job(board, job):
            widths.append(len(working()))
            found = metrics
            if len(widths) == 1:
                cluster.remove_node(made[1], allow_graceful=False)
                while len([node for node in ray.nodes() if node["Alive"]]) > 2:  # the head and the other one
                    time.sleep(0.1)
            elif len(widths) == 2:
                cluster.add_node(num_cpus=1, object_store_memory=STORE)
            elif len(widths) == 3:
                for report in range(1, REPORTS):
                    board.give_verdict("elastic", report, False)
            look()
    assert widths == [2, 1, *[2] * REPORTS]
    changes = [line for line in lines if "goes on with" in line]
    assert changes == [f"elastic goes on with {width} of 2 workers" for width in (1, 2)]
    for name in ("general_bpb", "domain_bpb", "loss"):
        assert found[name] == pytest.approx(short_alone[name], rel=1e-4)
    nothing_reserved()


@pytest.fixture(scope="module")
def lone(cluster, tmp_path_factory):
    """A crew of one worker on a node of its own."""
    nodes(cluster, 1)
    with start_crews(RunSpec(name="lone"), str(tmp_path_factory.mktemp("ray"))) as board:
        yield board
    nothing_reserved()


def test_a_kill_in_mid_step_costs_nothing(lone, work, alone, tmp_path):
    """SIGKILL of the only worker between two reports: it goes on at the last one, and no bit differs."""
    killer = threading.Thread(target=kill_at, args=(lone, "killed", EVERY + EVERY // 2))
    killer.start()
    found = list(follow_job(lone, Job("killed", "train", work, ray.put(BLOCKS), str(tmp_path))))
    killer.join()
    assert len(found) == REPORTS + 1  # who goes on says its last report again
    assert same_weights(found[-1], alone)


def kill_at(board, name, step):
    """SIGKILL a job's worker once it has done so many steps."""
    while board.read_progress()[0].get(name, (0, 0))[0] < step:
        time.sleep(0.05)
    (worker,) = workers()
    os.kill(worker["Pid"], signal.SIGKILL)


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(lone, short, small):
    """The second checkpoint doesn't fit beside the first: that one stays whole, and the workers go on."""
    place = f"{small}/full"
    with pytest.raises(UserError, match=f"no space left for a checkpoint of full under {small} ") as told:
        run_job(lone, Job("full", "train", short, ray.put(BLOCKS), str(small)))
    assert str(told.value).endswith(": make room")  # the command adds how it goes on
    assert find_last_checkpoint(place) == EVERY_SHORT and os.listdir(place) == [f"step-{EVERY_SHORT}"]
    after = run_job(lone, Job("after", "probe", ProbeWork(short.backbone, 4), ray.put(BLOCKS)))
    assert after["importance"]["units"] == pytest.approx(short.units)
