"""Files that a node's workers share: one of them fetches, and none goes on before it is done; without Ray."""

from types import SimpleNamespace

import pytest
import ray.train
import ray.train.collective
import torch

from adept_ray.data.hub_files import HubFiles
from adept_ray.data.loading import Backbone
from adept_ray.engine import node_files
from adept_ray.engine.node_files import fetch_backbone, fetch_blocks, fetch_once_a_node
from adept_ray.engine.voice import JobVoice

HUB = Backbone("tiny", "owner/tiny", revision="0" * 40)


@pytest.fixture
def log(monkeypatch):
    """What was done in which order; Ray Train's barrier and its word of the first worker are stand-ins."""
    done = []
    monkeypatch.setattr(ray.train.collective, "barrier", lambda: done.append("barrier"))
    monkeypatch.setattr(ray.train.collective, "broadcast_from_rank_zero", lambda name: f"shared-{len(name)}")
    monkeypatch.setattr(node_files, "look_for_files", lambda *_: HubFiles(16_400_000_000))
    monkeypatch.setattr(node_files, "fetch_files", lambda source, revision: [done.append(source)])
    return done


def be_worker(monkeypatch, local_rank, node_rank=0):
    """Be the worker of that number on its node."""
    context = SimpleNamespace(get_local_rank=lambda: local_rank, get_node_rank=lambda: node_rank)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)


@pytest.mark.parametrize(("local_rank", "does"), [(0, ["owner/tiny", "barrier"]), (1, ["barrier"])])
def test_a_backbone_of_the_hub_is_fetched_once_a_node_before_any_worker_goes_on(
    log, board, monkeypatch, local_rank, does
):
    """And not silently: the run's user reads how much it is, and when it is there."""
    be_worker(monkeypatch, local_rank)
    fetch_backbone(HUB, JobVoice(board, 3, False, torch.device("cpu")))
    assert log == does
    said = [text for (text,) in board.list_calls("add_remark")]
    assert len(said) == (0 if local_rank else 2) and all("owner/tiny" in text for text in said)
    assert not said or "16.4 GB" in said[0]


def test_a_node_that_has_all_files_fetches_and_says_nothing(log, board, monkeypatch):
    be_worker(monkeypatch, 0)
    monkeypatch.setattr(node_files, "look_for_files", lambda *_: HubFiles())
    fetch_backbone(HUB, JobVoice(board, 3, True, torch.device("cpu")))
    assert log == ["barrier"] and board.heard == []


def test_a_hub_that_can_not_be_reached_keeps_no_worker_waiting(log, board, monkeypatch):
    """The files may be there all the same; if not, the loading says so in its sentence."""
    be_worker(monkeypatch, 0)

    def fail(*_):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(node_files, "fetch_files", fail)
    fetch_backbone(HUB, JobVoice(board, 3, True, torch.device("cpu")))
    monkeypatch.setattr(node_files, "look_for_files", lambda *_: HubFiles(fault="the hub can't be asked"))
    fetch_backbone(HUB, JobVoice(board, 3, True, torch.device("cpu")))
    (_,), (failed,), (unseen,) = board.list_calls("add_remark")
    assert log == ["barrier", "barrier"] and failed.endswith("could not fetch owner/tiny: no route")
    assert unseen.endswith("the hub can't be asked")


def test_a_folder_on_a_disk_is_no_download(log, board):
    fetch_backbone(Backbone("tiny", "/somewhere"), JobVoice(board, 3, True, torch.device("cpu")))
    assert log == []


def test_a_checkpoint_behind_a_uri_is_copied_once_a_node(log, tmp_path, monkeypatch):
    """The worker that copied it takes the copy away again; the others use it. A shared disk needs no copy."""
    saved = tmp_path / "step-1"
    saved.mkdir()
    (saved / "weights").write_text("x")
    with fetch_once_a_node(str(saved)) as folder:
        assert folder == saved and log == []
    monkeypatch.setattr(node_files, "find_local_folder", lambda place: None)
    monkeypatch.setattr(node_files.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    be_worker(monkeypatch, 0)
    with fetch_once_a_node(str(saved)) as first:
        be_worker(monkeypatch, 1)
        with fetch_once_a_node(str(saved)) as second:
            assert first == second != saved and (second / "weights").read_text() == "x"
        be_worker(monkeypatch, 0, node_rank=1)  # whose temporary folder may be the same one
        with fetch_once_a_node(str(saved)) as other:
            assert other != first and (other / "weights").read_text() == "x"
        assert (first / "weights").exists() and not other.exists()
        assert first.exists()
    assert not first.exists() and log == 3 * ["barrier"]


@pytest.mark.parametrize(("local_rank", "does"), [(0, ["train", "replay", "barrier"]), (1, ["barrier"])])
def test_blocks_are_copied_once_a_node_before_any_worker_goes_on(log, board, monkeypatch, local_rank, does):
    """And not silently; blocks that came in memory are there already, so nobody waits for any."""
    be_worker(monkeypatch, local_rank)

    def make_stored(name):
        def fetch(say):
            log.append(name)
            say("fetches token blocks")

        return SimpleNamespace(is_in_memory=False, fetch=fetch)

    held = SimpleNamespace(is_in_memory=True, fetch=lambda say: None)
    voice = JobVoice(board, 3, False, torch.device("cpu"))
    fetch_blocks({"probe": held}, voice)
    assert log == []
    fetch_blocks({"probe": held, "train": make_stored("train"), "replay": make_stored("replay")}, voice)
    assert log == does
    said = [text for (text,) in board.list_calls("add_remark")]
    assert len(said) == 2 * (local_rank == 0) and all(text.endswith(" fetches token blocks") for text in said)
