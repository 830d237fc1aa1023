"""A cluster is examined before a search: on one machine that costs nothing, and all faults are one error."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from common import tiny_model

from adept_ray.config.errors import UserError
from adept_ray.config.search_space import Range
from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.data.hub_files import HubFiles
from adept_ray.data.loading import Backbone
from adept_ray.engine.nodes import Answers, Disk, Node, NodeFacts
from adept_ray.run import examination as examination_module
from adept_ray.run import fetching as fetching_module
from adept_ray.run.context import Session
from adept_ray.run.disk_needs import DiskNeeds, list_tried_depths
from adept_ray.run.examination import Examination, plan_examination, plan_refusal, refuse_faults

HERE, OTHER = Node("0", "here", 4, 0, here=True), Node("1", "other", 4, 0, here=False)
DISKS = {name: Disk(f"/{name}", 1, 100) for name in ("storage", "temporary", "hub")}
VERSIONS = {"python": "3.11", "ray": "1", "torch": "2", "transformers": "3"}
FACTS = NodeFacts(VERSIONS, "c0de", disks=DISKS)
FOLDER = Backbone("mine", "/mine")
ON_HUB = Backbone("org/model", "org/model", revision="c0ffee")
SMALL, LARGE = DiskNeeds(10, 0, 10), DiskNeeds(1000, 0, 1000)


@pytest.fixture
def cluster(monkeypatch):
    """A made-up cluster of one node; what is asked of others is in `asked`."""
    made = SimpleNamespace(nodes=[HERE], asked=[], answers={}, fetched=[], failing={})

    def ask(nodes, question, *_):
        made.asked.append(question.__name__)
        return made.answers[question.__name__]

    def fetch(nodes, repository, missing, token, update, say):
        made.fetched.append((repository, missing, token))
        return made.failing

    shared = {"--storage": Answers({"other": ""}), "--cache": Answers({"other": "there is no such place"})}
    monkeypatch.setattr(examination_module, "list_nodes", lambda: made.nodes)
    monkeypatch.setattr(examination_module, "inspect_node", lambda *_, **__: FACTS)
    monkeypatch.setattr(examination_module, "ask_nodes", ask)
    monkeypatch.setattr(examination_module, "compare_places", lambda *_: shared)
    monkeypatch.setattr(fetching_module, "look_for_files", lambda *_: HubFiles(50))
    monkeypatch.setattr(fetching_module, "fetch_on_nodes", fetch)
    monkeypatch.setattr(examination_module, "find_token", lambda: "token")
    return made


@pytest.fixture
def shown(display):
    """A display that has stages, too."""

    class Stage:
        def __enter__(self):
            return print

        def __exit__(self, *_):
            return None

    display.show_stage = lambda name, what: display.lines.append(what) or Stage()
    return display


def test_one_machine_is_looked_at_without_a_word(cluster, shown):
    """No other process is asked, nothing is compared, and what is fine isn't shown."""
    refuse_faults(Examination(SearchRun(), FOLDER, SMALL), shown)
    assert not cluster.asked and not shown.lines


def test_one_fault_is_its_own_sentence(cluster, shown):
    """A disk that is too small for the checkpoints ends the search before it begins."""
    with pytest.raises(UserError, match=r"^node here has 100 bytes free where up to 4 kB are needed") as told:
        refuse_faults(Examination(SearchRun(), FOLDER, LARGE), shown)
    assert "\n" not in str(told.value)


def test_several_faults_are_all_named(cluster, shown):
    """Another version there, a cache of its own, no backbone, no room: none hides another."""
    cluster.nodes = [HERE, OTHER]
    older = replace(FACTS, versions=VERSIONS | {"ray": "0"})
    files = Answers({"here": "a", "other": ""})
    cluster.answers = {"<lambda>": Answers({"here": FACTS, "other": older}), "name_files": files}
    with pytest.raises(UserError, match=r"^5 things are wrong with the cluster: \(1\) ") as told:
        refuse_faults(Examination(SearchRun(), FOLDER, LARGE), shown)
    for words in (
        "has ray 0 where",
        "--cache ",
        "/mine isn't there on node other",
        "node here has 100 bytes",
    ):
        assert words in str(told.value)


def test_a_command_that_is_no_search_looks_at_its_cluster_too(cluster, shown):
    """A training of days must not find out at its end that a place isn't shared. Disks aren't looked at."""
    cluster.nodes = [HERE, OTHER]
    files = Answers({"here": "a", "other": "a"})
    cluster.answers = {"<lambda>": Answers({"here": FACTS, "other": FACTS}), "name_files": files}
    session = Session(RunSpec(), SimpleNamespace(), shown)
    with pytest.raises(UserError, match=r"^--cache .* isn't the command's on node other"):
        plan_refusal(session, SimpleNamespace(backbone=FOLDER))()


def test_files_of_the_hub_are_fetched_under_a_bar(cluster, shown):
    """With the command's token, once it is known that there is room; a failure is a fault."""
    refuse_faults(Examination(SearchRun(), ON_HUB, SMALL), shown)
    assert cluster.fetched == [(("org/model", "c0ffee"), {"here": 50}, "token")]
    assert shown.lines == ["files of org/model on 1 nodes"]
    cluster.failing = {"here": "the hub is gone"}
    with pytest.raises(UserError, match="node here: the hub is gone"):
        refuse_faults(Examination(SearchRun(), ON_HUB, SMALL), shown)


def test_files_are_not_fetched_onto_a_disk_that_is_too_small(cluster, shown):
    """The room for them counts with that for checkpoints."""
    with pytest.raises(UserError, match="HF_HOME"):
        refuse_faults(Examination(SearchRun(), ON_HUB, DiskNeeds(20, 0, 10)), shown)
    assert not cluster.fetched


@pytest.mark.parametrize(
    ("searched", "depths"),
    [({"int": [2, 5]}, [2, 3, 4, 5]), ({"choice": [8, 1]}, [1, 8]), ({"fixed": 3}, [3])],
)
def test_depths_are_all_that_a_trial_may_have(searched, depths):
    """Whatever the form of the range of k."""
    assert list_tried_depths(Range(**searched)) == depths


@pytest.mark.parametrize(
    ("changes", "kept"), [({}, 2), ({"trials": 1}, 1), ({"pareto": True, "trials": 3}, 3)]
)
def test_the_plan_of_disks_follows_the_search(changes, kept):
    """The best of each k is kept, no more than there are trials, and with a front any of them."""
    model = tiny_model()
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    sources = SimpleNamespace(build_skeleton=lambda: model, backbone=FOLDER)
    question = SimpleNamespace(space=SimpleNamespace(parameters={"k": Range(int_=(1, 2))}))
    needs = plan_examination(SearchRun(**changes), sources, question).needs
    weights = sum((2 * layer, layer, 2 * layer)[:kept])
    assert (needs.checkpoint, needs.kept) == (12 * 2 * layer, 4 * weights)
    by_wsd = plan_examination(SearchRun(**changes, schedule="wsd"), sources, question).needs
    plateaus = SearchRun(**changes).trials * needs.checkpoint  # any of them may be gone on with
    assert by_wsd.storage == needs.storage + plateaus
    assert by_wsd.count_trials(by_wsd.storage) == by_wsd.crews
