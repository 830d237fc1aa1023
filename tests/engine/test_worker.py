"""What a worker says of its job: by the first worker alone, once, with checkpoints that stay; without Ray."""

import json

import pytest
import torch

from adept_ray.engine import worker
from adept_ray.engine.job import LeavingNodes
from adept_ray.engine.worker import LAST_REPORT, JobVoice
from adept_ray.storage.checkpoints import NO_STEP

CPU = torch.device("cpu")


class RecordingBoard:
    """Keeps what is said to it: (method, arguments)."""

    def __init__(self):
        self.heard = []

    def __getattr__(self, method):
        return lambda *given: self.heard.append((method, *given))

    def list_calls(self, method):
        return [given for name, *given in self.heard if name == method]


@pytest.fixture
def board():
    return RecordingBoard()


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / "trials" / "trial-001")


def write_checkpoint(folder, text):
    """A folder with a file, as a loop hands it over."""
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(text)
    return folder


def read_weights(voice, place):
    """What a job resumes from, or None."""
    with voice.open_last_checkpoint(place) as folder:
        return folder and (folder / "weights").read_text()


def test_only_the_first_worker_speaks(board, place, tmp_path):
    """All of them leave."""
    voice = JobVoice(board, 3, False, CPU)
    voice.show_progress("trial-001", 2, 2)
    with voice.show_running("trial-001", 4):
        voice.pass_report(place, {"step": 2}, write_checkpoint(tmp_path / "made", "x"))
    assert read_weights(voice, place) is None
    with pytest.raises(LeavingNodes):
        voice.leave_nodes(place, 2, None)
    assert board.heard == []


def test_progress_is_said_now_and_then_and_at_the_end(board, monkeypatch):
    """So often that one sees it move, and no step waits for it."""
    now = 100.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    voice = JobVoice(board, 3, True, CPU)
    for step in range(1, 12):
        voice.show_progress("trial-001", step, 11)
        now += worker.PROGRESS_EVERY_S / 4.5
    assert board.list_calls("record_progress") == [["trial-001", step, 11] for step in (1, 6, 11)]


def test_a_training_runs_until_it_ends_however_it_does(board):
    voice = JobVoice(board, 3, True, CPU)
    with pytest.raises(FloatingPointError), voice.show_running("trial-001", 4):
        raise FloatingPointError
    said = [{"k": 4, "running": True}, {"running": False}]
    assert board.list_calls("record_numbers") == [["trial-001", numbers] for numbers in said]


def test_a_report_says_where_its_checkpoint_is(board, place, tmp_path):
    """A job that resumes repeats the report of that checkpoint, and doesn't write over it."""
    voice = JobVoice(board, 3, True, CPU)
    assert read_weights(voice, place) is None and voice.resumed == NO_STEP
    voice.pass_report(place, {"report": 1, "step": 5}, write_checkpoint(tmp_path / "made", "first"))
    voice.pass_report(place, {"loss": 1.0}, None)
    again = JobVoice(board, 4, True, CPU)
    assert read_weights(again, place) == "first" and again.resumed == 5
    again.pass_report(place, {"report": 1, "step": 5}, write_checkpoint(tmp_path / "made", "second"))
    assert read_weights(JobVoice(board, 5, True, CPU), place) == "first"
    saved = {"report": 1, "step": 5, "saved": f"{place}/step-5"}
    heard = [(number, {**metrics, "peak_gib": None}) for number, metrics in board.list_calls("add_report")]
    expected = [(3, saved), (3, {"loss": 1.0}), (4, saved)]
    assert heard == [(number, {**metrics, "peak_gib": None}) for number, metrics in expected]


def test_who_leaves_keeps_the_last_report_for_who_goes_on(board, place, tmp_path):
    """It may not have been heard. The checkpoint is that of the step at which the notice came."""
    voice = JobVoice(board, 3, True, CPU)
    assert read_weights(voice, place) is None
    voice.pass_report(place, {"report": 1, "step": 5}, write_checkpoint(tmp_path / "made", "at 5"))
    with pytest.raises(LeavingNodes):
        voice.leave_nodes(place, 7, write_checkpoint(tmp_path / "made", "at 7"))
    (remark,) = board.list_calls("add_remark")
    assert remark == ["trial-001 leaves a node that will be taken away; saved at step 7"]
    again = JobVoice(board, 4, True, CPU)
    assert read_weights(again, place) == "at 7" and again.resumed == 7
    (_, first), (number, repeated) = board.list_calls("add_report")
    assert number == 4 and repeated == {**first, "saved": f"{place}/step-7"}


def test_who_leaves_before_any_report_has_none_to_keep(board, place, tmp_path):
    voice = JobVoice(board, 3, True, CPU)
    folder = write_checkpoint(tmp_path / "made", "at 2")
    with pytest.raises(LeavingNodes):
        voice.leave_nodes(place, 2, folder)
    assert not (folder / LAST_REPORT).exists()
    assert read_weights(JobVoice(board, 4, True, CPU), place) == "at 2"
    assert board.list_calls("add_report") == []


def test_a_checkpoint_that_was_cut_off_is_remarked_and_passed_over(board, place, tmp_path):
    voice = JobVoice(board, 3, True, CPU)
    voice.pass_report(place, {"step": 5}, write_checkpoint(tmp_path / "made", "whole"))
    half = tmp_path / "trials" / "trial-001" / "step-9"
    half.mkdir()
    (half / "manifest.json").write_text(json.dumps({"weights": 4}))
    again = JobVoice(board, 4, True, CPU)
    assert read_weights(again, place) == "whole" and again.resumed == 5
    ((remark,),) = board.list_calls("add_remark")
    assert "step-9 was only half written" in remark
