"""What a command waits for on a shared cluster has a word and an end."""

import importlib
from types import SimpleNamespace

import pytest
import ray

from adept_ray.config.errors import UserError
from adept_ray.engine import waiting

GROUPS = importlib.import_module("ray.util.placement_group")  # ray.util has a function of that name


@pytest.fixture
def tasks(monkeypatch):
    """Tasks that answer after so many looks, in place of Ray's; those that were cancelled are kept."""
    cancelled = []

    def look(tasks, timeout):
        task = tasks[0]
        task.looks -= 1
        return (tasks, []) if task.looks <= 0 else ([], tasks)

    monkeypatch.setattr(ray, "wait", look)
    monkeypatch.setattr(ray, "get", lambda task: task.answer)
    monkeypatch.setattr(ray, "cancel", lambda task, force: cancelled.append(task))
    return cancelled


@pytest.mark.parametrize(("looks", "said"), [(1, 0), (2, 1)])
def test_a_wait_that_takes_long_is_said(looks, said, tasks):
    """Once, with what is waited for; what answers at once says nothing."""
    heard = []
    task = SimpleNamespace(looks=looks, answer=7)
    assert waiting.wait_for_task(task, "a GPU", heard.append) == 7
    assert len(heard) == said and all("waiting for a GPU" in text for text in heard)


def test_a_wait_has_an_end(tasks):
    """It ends in a sentence, and the task doesn't stay behind to take what was waited for."""
    task = SimpleNamespace(looks=3, answer=7)
    with pytest.raises(UserError, match=r"^waited 30 minutes for a GPU: "):
        waiting.wait_for_task(task, "a GPU", lambda text: None)
    assert tasks == [task]


@pytest.fixture
def group(monkeypatch):
    """A placement group that is ready after so many looks, in place of Ray's."""
    group = SimpleNamespace(looks=1, removed=0, asked=None)

    def look(seconds):
        group.looks -= 1
        return group.looks < 0

    def make(bundles):
        group.asked = bundles
        return group

    group.wait = look
    monkeypatch.setattr(GROUPS, "placement_group", make)
    monkeypatch.setattr(
        GROUPS, "remove_placement_group", lambda group: setattr(group, "removed", group.removed + 1)
    )
    return group


def test_nodes_that_a_cluster_starts_are_waited_for(group, monkeypatch):
    """All workers are asked for at once, and nothing of what came is kept from them."""
    monkeypatch.setattr(waiting, "cannot_grow", lambda group: False)
    monkeypatch.setattr(waiting, "SAY_AFTER_S", -1)
    group.looks, heard = 3, []
    waiting.wait_for_room([{"CPU": 1}, {"GPU": 1}], "refused", heard.append)
    assert group.asked == [{"CPU": 1}, {"GPU": 1}] and group.removed == 1 and len(heard) == 1


@pytest.mark.parametrize(
    ("grows", "limit", "sentence"),
    [(False, 1800, "^refused$"), (True, -1, "^refused; it was to start more nodes, and didn't in")],
)
def test_nodes_that_never_come_are_refused(grows, limit, sentence, group, monkeypatch):
    """At once where the cluster says that it has none such, else after a while."""
    monkeypatch.setattr(waiting, "cannot_grow", lambda group: not grows)
    monkeypatch.setattr(waiting, "GIVE_UP_S", limit)
    with pytest.raises(UserError, match=sentence):
        waiting.wait_for_room([{"CPU": 1}], "refused", lambda text: None)
    assert group.removed == 1
