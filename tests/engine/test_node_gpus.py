"""The GPUs of nodes are asked for without taking one."""

import pytest

from adept_ray.config.errors import UserError
from adept_ray.engine import node_gpus
from adept_ray.engine.node_gpus import inspect_gpus, measure_gpu_memory
from adept_ray.engine.nodes import Answers, Node

GIB = 2**30


@pytest.fixture
def nodes(monkeypatch):
    """Name of a node → its GPUs as Ray counts them, and what it answers, or why it doesn't; without Ray."""
    nodes = {}

    def ask(asked, question):
        assert question is inspect_gpus
        said = {node.name: nodes[node.name][1] for node in asked}
        silent = {name: why for name, why in said.items() if isinstance(why, str)}
        return Answers({name: each for name, each in said.items() if name not in silent}, silent)

    def list_nodes():
        return [Node(name, name, 4, count, here=False) for name, (count, _) in nodes.items()]

    monkeypatch.setattr(node_gpus, "list_nodes", list_nodes)
    monkeypatch.setattr(node_gpus, "ask_nodes", ask)
    return nodes


def test_a_worker_is_planned_for_the_smallest_card_that_it_may_get(nodes):
    """Nodes without room for a worker don't count; that cards differ is said, small differences aren't."""
    heard = []
    nodes.update(h=(0, None), a=(4, (80 * GIB, "")), b=(4, (79 * GIB, "")))
    assert measure_gpu_memory(1, heard.append) == 79 * GIB and not heard
    nodes["c"] = (1, (24 * GIB, ""))
    assert measure_gpu_memory(1, heard.append) == 24 * GIB
    assert heard == ["a worker is planned for the smallest GPU, 24.0 GiB, of the node c"]
    assert measure_gpu_memory(2, heard.append) == 79 * GIB


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((0, "torch 2.13 sees none"), "^the node a, on which Ray counts GPUs: torch 2.13 sees none$"),
        ("it is gone", "^the node a can't say what GPUs it has: it is gone$"),
    ],
)
def test_a_node_whose_gpus_are_of_no_use_is_named(answer, sentence, nodes):
    """By its address, with what is wrong there."""
    nodes["a"] = (1, answer)
    with pytest.raises(UserError, match=sentence):
        measure_gpu_memory(1, print)


def test_a_worker_is_on_one_node(nodes):
    """Two nodes of one GPU each have no room for a worker with two: Ray would wait for ever."""
    nodes.update(a=(1, None), b=(1, None))
    with pytest.raises(UserError, match=r"^--gpus-per-worker 2: .* none has more than 1$"):
        measure_gpu_memory(2, print)


def test_a_fault_is_told_from_the_cards_of_a_node(monkeypatch):
    """GPUs that Ray hides from a process without any are looked at all the same."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen = []
    monkeypatch.setattr(node_gpus, "find_gpu_fault", lambda: seen.append(dict(node_gpus.os.environ)) or "")
    monkeypatch.setattr(node_gpus, "measure_smallest_gpu", lambda: 5)
    assert inspect_gpus() == (5, "") and "CUDA_VISIBLE_DEVICES" not in seen[0]
    monkeypatch.setattr(node_gpus, "find_gpu_fault", lambda: "an old driver")
    assert inspect_gpus() == (0, "an old driver")
