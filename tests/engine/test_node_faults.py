"""A cluster of two nodes with faults made on purpose: each is found, by its name."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from adept_ray.config.machine import Machine
from adept_ray.engine import nodes as nodes_module
from adept_ray.engine.fetching import fetch_on_nodes
from adept_ray.engine.nodes import Answers, ask_nodes, compare_places, inspect_node, list_nodes
from adept_ray.run.checks import (
    check_answers,
    check_disks,
    check_gpus,
    check_places,
    check_versions,
)
from adept_ray.run.disk_needs import DiskNeeds

STORE = 100 * 2**20  # bytes of a node's object store


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """A head and a node whose faults were made on purpose.

    On the node optuna has another version, the temporary folder lies on a full disk, Ray counts cards that
    are none, and the folder ``private`` is a disk of its own.
    """
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own, small, older = (tmp_path / name for name in ("private", "small", "older"))
    for folder in (own, small, older / "optuna-4.0.0.dist-info", tmp_path / "shared"):
        folder.mkdir(parents=True)
    (older / "optuna-4.0.0.dist-info" / "METADATA").write_text("Name: optuna\nVersion: 4.0.0\n")
    mounts = f"mount -t tmpfs -o size=64k tmpfs {small} && mount -t tmpfs tmpfs {own}"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "sh", "-c", mounts]).returncode:
        pytest.skip("only root may give a process disks of its own")
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    start = (
        f"{mounts} && exec env PYTHONPATH={older}:$PYTHONPATH TMPDIR={small} {sys.executable} "
        "-m ray.scripts.scripts start --block --num-cpus 1 --num-gpus 2 "
        f"--address {cluster.address} --object-store-memory {STORE}"
    )
    node = subprocess.Popen(["unshare", "-m", "sh", "-c", start], stdout=subprocess.DEVNULL)
    try:
        ray.init(address=cluster.address, namespace="adept_ray", log_to_driver=False, logging_level="ERROR")
        deadline = time.monotonic() + 60
        while len(list_nodes()) < 2:
            assert node.poll() is None and time.monotonic() < deadline
            time.sleep(0.3)
        yield tmp_path
    finally:
        ray.shutdown()
        node.terminate()
        node.wait(30)
        cluster.shutdown()


@pytest.mark.timeout(240)
def test_every_fault_of_a_node_is_found_and_named(faulty, monkeypatch):
    """None hides another: versions, cards, disks, places, the hub; and a silent node holds nobody up."""
    nodes = list_nodes()
    here, other = nodes
    assert here.here and not other.here and (here.gpus, other.gpus) == (0, 2) and here.name != other.name
    storage = {"storage": str(faulty)}
    places = {"--storage": f"{faulty}/shared", "--cache": f"{faulty}/private"}
    answers = ask_nodes(nodes, inspect_node, storage, True)
    assert not check_answers(nodes, answers).faults
    own = inspect_node(storage, on_gpus=False)
    (version,) = check_versions(answers, own).faults
    assert f"node {other.name} has optuna 4.0.0 where the command has {own.versions['optuna']}" in version
    (cards,) = check_gpus(nodes, answers, Machine(gpus_per_worker=1)).faults
    assert f"node {other.name}" in cards and "torch" in cards  # that counts GPUs and has none
    (disk,) = check_disks(answers, here.name, DiskNeeds(0, 0, 100_000)).faults
    assert disk.startswith(f"node {other.name} has 6") and "set TMPDIR there" in disk
    shared, private = check_places(places, nodes, compare_places(nodes, places))
    assert not shared.faults and len(private.faults) == 1
    why = f"isn't the command's on node {other.name} (what the command wrote there isn't in it)"
    assert why in private.faults[0]
    assert not [file for folder in places.values() for file in Path(folder).iterdir()]
    lacking = {here.name: 1, other.name: 1}
    failed = fetch_on_nodes(nodes, ("org/model", "0" * 40), lacking, None, lambda *_: None, print)
    assert set(failed) == {here.name, other.name} and "can't be asked for 'org/model'" in failed[here.name]

    def answer(silent):
        here = ray.get_runtime_context().get_node_id()
        if here == silent.get("hangs"):
            time.sleep(600)
        if here == silent.get("fails"):
            raise RuntimeError("there is\nno disk")
        return "fine"

    failing = ask_nodes(nodes, answer, {"fails": other.id})
    assert failing == Answers({here.name: "fine"}, {other.name: "it can't be asked: no disk"})
    monkeypatch.setattr(nodes_module, "ANSWER_TIMEOUT_S", 5)
    hanging = ask_nodes(nodes, answer, {"hangs": other.id})
    assert hanging.heard == {here.name: "fine"} and "didn't answer within 5 s" in hanging.silent[other.name]
