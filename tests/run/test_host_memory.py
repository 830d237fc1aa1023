"""What a training takes of made-up machines' memory, beside that of their GPUs."""

from dataclasses import replace

import pytest

from adept_ray.config.errors import UserError
from adept_ray.config.machine import Machine
from adept_ray.engine.nodes import Node
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.memory_plan import GIB, SLACK, MemoryPlan
from adept_ray.run.host_memory import PROCESS, Host, Hosts, count_host_parts, list_hosts

# 12 GiB a checkpoint, 20 GiB of weights, and a GiB enters a layer.
NEEDS = replace(MemoryPlan(*(0,) * 13), trained=GIB, weights=20 * GIB, stream=GIB)
NODES = [
    Node("0", "head", 8, 0, here=True, memory=16 * GIB),
    Node("1", "cards", 64, 8, here=False, memory=512 * GIB),
    Node("2", "few", 2, 4, here=False, memory=64 * GIB),
    Node("3", "mute", 64, 8, here=False),
]


def host(memory=100, workers=4, groups=2):
    """A machine of so many GiB."""
    return Host("cards", int(memory * GIB), workers, groups)


@pytest.mark.parametrize(
    ("machine", "crews", "found"),
    [
        ({"workers": 4, "gpus_per_worker": 1}, 2, {"cards": (8, 2), "few": (2, 1)}),
        ({"workers": 4, "gpus_per_worker": 1}, 1, {"cards": (4, 1), "few": (2, 1)}),
        ({"workers": 3, "gpus_per_worker": 2}, 2, {"cards": (4, 2), "few": (2, 1)}),
        ({"workers": 1, "gpus_per_worker": 0.5}, 20, {"cards": (16, 16), "few": (2, 2)}),
        ({"workers": 4}, 2, {}),
    ],
)
def test_hosts_are_what_has_room_for_a_worker_on_gpus(machine, crews, found):
    """As many workers as GPUs and CPUs allow, in as few groups; no machine whose memory nobody knows."""
    hosts = list_hosts(NODES, Machine(**machine), crews)
    assert {each.name: (each.workers, each.groups) for each in hosts} == found


@pytest.mark.parametrize(
    ("fit", "changes", "gib"),
    [
        (PLAIN, {}, 4 * PROCESS / GIB + 24),  # a checkpoint for each group
        (PLAIN, {"weights": 30 * GIB}, 4 * PROCESS / GIB + 30),  # or the model, which is exported once
        (PLAIN, {"trained": 0}, 4 * PROCESS / GIB),  # nothing is trained, so nothing is written
        (Fit(sharded=True), {}, 4 * PROCESS / GIB + 24 + 2 * 20),  # first workers deal out a whole model
        (Fit(stream_bytes=1), {}, 4 * PROCESS / GIB + 24 + 4 * 12 * 2),  # twelve batches of two wait
    ],
)
def test_what_lies_beside_the_gpus_is_counted_for_each_worker_or_group(fit, changes, gib):
    """Four workers of two groups, with two sequences a pass."""
    parts = count_host_parts(host(), replace(NEEDS, **changes), fit, micro_batch=2)
    assert sum(parts.values()) == gib * GIB


def test_a_machine_that_is_too_small_is_one_sentence():
    """The one that lacks most, with what takes how much, and what would help."""
    hosts = Hosts((host(1000), host(30), host(20, workers=1, groups=1)))
    with pytest.raises(UserError) as told:
        hosts.check_training(NEEDS, PLAIN, 1, "k = 4", pytest.fail)
    assert str(told.value) == (
        "k = 4: node cards has 30.0 GiB of memory beside that of its GPUs, and 4 workers there may take "
        "36.0 (processes 12.0, checkpoints or the exported model 24.0): give fewer --workers or "
        "--concurrent, train fewer layers, or take nodes with more memory"
    )


@pytest.mark.parametrize(("memory", "warnings"), [(36.1 / SLACK, 0), (35.9 / SLACK, 1), (36, 1)])
def test_a_machine_that_would_be_full_is_a_warning(memory, warnings):
    """Between what is planned with and what is there; more than that is enough."""
    said = []
    Hosts((host(memory),)).check_training(NEEDS, PLAIN, 1, "k = 4", said.append)
    assert len(said) == warnings


def test_workers_on_cpus_have_no_other_memory():
    """Their own plan has counted all of it."""
    Hosts().check_training(NEEDS, PLAIN, 1, "k = 4", pytest.fail)
