"""The checkpoints of a job: the first worker writes, who goes on repeats what may not have been heard."""

import json
import os

import pytest
import torch

from adept_ray.engine.job import Branch, Job, LeavingNodes
from adept_ray.engine.job_checkpoints import LAST_REPORT, open_checkpoints
from adept_ray.engine.voice import JobVoice
from adept_ray.storage.checkpoints import Checkpoint, find_last_checkpoint
from adept_ray.storage.files import fetch_temporarily

CPU = torch.device("cpu")


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / "trials" / "trial-001")


def of_text(step, text, resumable=True):
    """A checkpoint with a file, as a loop hands it over."""
    return Checkpoint(step, {"weights": lambda stream: stream.write(text.encode())}, resumable)


def open_for(board, place, number=3, first=True, branch=None):
    folder, _, name = place.rpartition("/")
    job = Job(name, "train", None, None, folder, branch=branch)
    return open_checkpoints(JobVoice(board, number, first, CPU), job)


def read_weights(found):
    """What a job goes on from, or None."""
    if not found:
        return None
    with fetch_temporarily(found) as folder:
        return (folder / "weights").read_text()


def list_reports(board):
    return [(number, {**metrics, "peak_gib": None}) for number, metrics in board.list_calls("add_report")]


def test_only_the_first_worker_speaks_and_writes(board, place):
    """All of them leave."""
    with pytest.raises(LeavingNodes), open_for(board, place, first=False) as checkpoints:
        assert checkpoints.find_last() == ""
        checkpoints.pass_report({"step": 2}, None)
        checkpoints.keep(None)
        checkpoints.leave(None)
    assert board.heard == [] and not os.path.exists(place)


def test_a_report_says_where_its_checkpoint_is(board, place):
    """A job that resumes repeats the report of that checkpoint, and doesn't write over it."""
    with open_for(board, place) as checkpoints:
        assert checkpoints.find_last() == ""
        checkpoints.pass_report({"report": 1, "step": 5}, of_text(5, "first"))
    with open_for(board, place, 4) as checkpoints:
        assert read_weights(checkpoints.find_last()) == "first"
        checkpoints.pass_report({"report": 1, "step": 5}, of_text(5, "second", resumable=False))
    with open_for(board, place, 5) as checkpoints:
        assert read_weights(checkpoints.find_last()) == "first"
    saved = {"report": 1, "step": 5, "saved": f"{place}/step-5", "peak_gib": None}
    assert list_reports(board) == [(3, saved), (4, saved)]


def test_who_leaves_keeps_the_last_report_for_who_goes_on(board, place):
    """It may not have been heard. The checkpoint is that of the step at which the notice came."""
    with pytest.raises(LeavingNodes), open_for(board, place) as checkpoints:
        checkpoints.pass_report({"report": 1, "step": 5}, of_text(5, "at 5"))
        checkpoints.leave(of_text(7, "at 7"))
    (remark,) = board.list_calls("add_remark")
    assert remark == ["trial-001 leaves a node that will be taken away; saved at step 7"]
    with open_for(board, place, 4) as checkpoints:
        assert read_weights(checkpoints.find_last()) == "at 7"
    (_, first), (number, repeated) = board.list_calls("add_report")
    assert number == 4 and repeated == {**first, "saved": f"{place}/step-7"}


def test_who_leaves_before_any_report_has_none_to_keep(board, place):
    with pytest.raises(LeavingNodes), open_for(board, place) as checkpoints:
        checkpoints.leave(of_text(2, "at 2"))
    assert not os.path.exists(f"{place}/step-2/{LAST_REPORT}")
    with open_for(board, place, 4) as checkpoints:
        assert read_weights(checkpoints.find_last()) == "at 2"
    assert board.list_calls("add_report") == []


def test_a_job_goes_on_from_what_was_saved_by_the_clock_and_reports_again(board, place):
    """Weights of a later report are no beginning: what came after the clock's checkpoint is done again."""
    with open_for(board, place) as checkpoints:
        checkpoints.pass_report({"report": 1, "step": 5}, of_text(5, "at 5", resumable=False))
        checkpoints.keep(of_text(7, "at 7"))
        checkpoints.pass_report({"report": 2, "step": 10}, of_text(10, "at 10", resumable=False))
    assert sorted(os.listdir(place)) == ["step-7", "weights-10"]
    with open_for(board, place, 4) as checkpoints:
        assert read_weights(checkpoints.find_last()) == "at 7"
        checkpoints.pass_report({"report": 2, "step": 10}, of_text(10, "again", resumable=False))
    said = [(number, metrics["report"], metrics["saved"]) for number, metrics in list_reports(board)]
    first, again = (3, 1, f"{place}/weights-5"), (4, 1, f"{place}/step-7")
    assert said == [first, (3, 2, f"{place}/weights-10"), again, (4, 2, f"{place}/weights-10")]
    assert read_weights(f"{place}/weights-10") == "again"


def test_a_job_that_is_over_leaves_the_checkpoint_of_its_last_report_whole_and_alone(board, place):
    """Whether it came to its end or was stopped: a choice, an export and a growth take that one."""
    with open_for(board, place) as checkpoints:
        checkpoints.keep(of_text(7, "at 7"))
        checkpoints.pass_report({"report": 2, "step": 10}, of_text(10, "at 10", resumable=False))
        checkpoints.finish()
        assert os.listdir(place) == ["weights-10"]
    assert read_weights(f"{place}/weights-10") == "at 10"


def test_only_the_first_workers_word_counts(board, place):
    """Another one's view of a shared folder may be older; a job without a report deletes nothing."""
    with open_for(board, place) as checkpoints:
        checkpoints.keep(of_text(7, "at 7"))
        checkpoints.finish()
    with open_for(board, place, first=False) as checkpoints:
        assert checkpoints.find_last() == ""
        checkpoints.finish()
    assert os.listdir(place) == ["step-7"] and board.list_calls("add_report") == []


def test_a_job_whose_last_checkpoint_can_not_be_written_is_not_over(board, place):
    """Its end is the error, though the report was made, and the checkpoint before is what is left."""

    def fail(stream):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), open_for(board, place) as checkpoints:
        checkpoints.pass_report({"report": 1, "step": 5}, of_text(5, "at 5"))
        checkpoints.make_room()
        checkpoints.pass_report({"report": 2, "step": 10}, Checkpoint(10, {"weights": fail}))
        checkpoints.finish()
    assert find_last_checkpoint(place) == 5 and os.listdir(place) == ["step-5"]


def test_a_checkpoint_that_was_cut_off_is_remarked_and_passed_over(board, place):
    with open_for(board, place) as checkpoints:
        checkpoints.pass_report({"step": 5}, of_text(5, "whole"))
    os.mkdir(f"{place}/step-9")
    with open(f"{place}/step-9/manifest.json", "w") as file:
        json.dump({"weights": 4}, file)
    with open_for(board, place, 4) as checkpoints:
        assert read_weights(checkpoints.find_last()) == "whole"
    ((remark,),) = board.list_calls("add_remark")
    assert "step-9 was only half written" in remark


def test_a_branch_goes_on_from_the_plateau_and_leaves_it_later(board, place):
    """It has a folder of its own for all else; who comes next goes on from the plateau's latest step."""
    short, longer, longest = (Branch(tokens, 0, 30) for tokens in (60, 120, 240))
    with open_for(board, place, branch=short) as checkpoints:
        assert checkpoints.find_last() == checkpoints.find_plateau(5) == ""
        checkpoints.keep_plateau(of_text(5, "plateau at 5"))
        checkpoints.pass_report({"report": 1}, of_text(6, "short"))
        checkpoints.finish()
    with open_for(board, place, 4, branch=longer) as checkpoints:
        assert checkpoints.find_last() == "" and read_weights(checkpoints.find_plateau(10)) == "plateau at 5"
        checkpoints.keep_plateau(of_text(10, "plateau at 10"))
    with open_for(board, place, 5, branch=longer) as checkpoints:  # it was killed there
        assert checkpoints.find_last() == "" and read_weights(checkpoints.find_plateau(10)) == "plateau at 10"
        checkpoints.keep_plateau(of_text(10, "never written over"))
        checkpoints.keep(of_text(11, "longer"))
    with open_for(board, place, 6, branch=longer) as checkpoints:
        assert read_weights(checkpoints.find_last()) == "longer"
    with open_for(board, place, 7, branch=longest) as checkpoints:
        assert read_weights(checkpoints.find_plateau(20)) == "plateau at 10"
    with open_for(board, place, 8, branch=short) as checkpoints:  # a plateau beyond its own is of no use
        assert read_weights(checkpoints.find_last()) == "short" and checkpoints.find_plateau(5) == ""
    assert sorted(os.listdir(place)) == ["120", "60", "plateau"]


def test_only_a_branch_looks_for_a_plateau_and_only_the_first_worker_writes_it(board, place):
    branch = Branch(60, 0, 30)
    with open_for(board, place, first=False, branch=branch) as checkpoints:
        checkpoints.keep_plateau(None)
        assert checkpoints.find_plateau(5) == ""
    with open_for(board, place) as checkpoints:
        assert checkpoints.find_plateau(5) == checkpoints.find_plateau(None) == ""
    assert not os.path.exists(place)
