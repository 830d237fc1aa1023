"""What trackers are told of a run's events, without any of their libraries."""

import math

import pytest

from adept_ray.tracking.deliveries import (
    Begin,
    End,
    EventReader,
    File,
    Note,
    Numbers,
    Values,
    flatten_settings,
)
from adept_ray.tracking.tracker import MAIN, TrackedRun

SEARCH = TrackedRun(MAIN, "mine", "mine", {"seed": 0})
ROW = {"trial": "trial-001", "k": 2, "layers": "3 5", "base_lr": 1e-3, "state": "running", "left": 7.0}
READING = {"trial": "trial-001", "k": 2, "step": 8, "score": 1.5, "scales": {"q_proj": 0.5}, "dial": None}
SUMMARY = {
    "k": 2,
    "advised_k": 1,
    "layers": [3, 5],
    "reason": "k = 2 scores best.",
    "doubt": "",
    "test": {"general": {"delta": 1.0}, "domain": {"delta": 2.0}, "score": 1.5, "score_se": math.nan},
    "files": {"report.html": "results/mine/report.html"},
    "seconds": {"search": 9.0},
}


def read(reader, *events):
    """All that is to be delivered after some events."""
    return [delivery for name, facts in events for delivery in reader.read(name, facts)]


@pytest.fixture
def reader(tmp_path):
    """A reader of a search whose trials have begun."""
    reader = EventReader(SEARCH, tmp_path)
    reader.read("stage_began", {"stage": "search"})
    return reader


def test_nothing_is_delivered_before_a_training_begins(tmp_path):
    """A run that is refused leaves no trace; the stages until then are told afterwards, behind the run."""
    reader = EventReader(SEARCH, tmp_path)
    assert read(reader, ("note", {"text": "x"}), ("stage_ended", {"stage": "probe", "seconds": 3.0})) == []
    assert reader.end("failed") == []
    began = read(reader, ("stage_began", {"stage": "search", "what": "8 trials"}))
    assert began == [Begin(SEARCH), Numbers(MAIN, {"seconds/probe": 3.0})]


def test_a_trial_is_a_run_with_its_settings_and_curves(reader):
    """Its scales are curves of their own; what isn't finite, and a second row that says the same, is not."""
    over = {**ROW, "state": "finished"}
    reading = {**READING, "loss": math.inf}
    found = read(reader, ("trial", ROW), ("reading", reading), ("trial", over), ("trial", over))
    settings = {"k": 2, "base_lr": 1e-3, "layers": "3 5"}
    run = TrackedRun("trial-001", "trial-001", "mine", settings)
    values = Values("trial-001", {"score": 1.5, "scale/q_proj": 0.5}, 8)
    assert found == [Begin(run), values, End("trial-001", "finished")]


def test_a_reading_waits_for_the_row_of_its_trial(reader):
    """Only that says with which settings it trains."""
    assert read(reader, ("reading", READING)) == []
    kinds = [type(each) for each in read(reader, ("trial", ROW))]
    assert kinds == [Begin, Values]


def test_a_resumed_search_tells_what_was_written_down(tmp_path):
    """Whoever turns a tracker on late, or was killed, has whole curves."""
    earlier = {"trial-001": [{"step": 4, "tokens": 64, "score": 1.0}, {"step": 8, "score": 1.5}]}
    reader = EventReader(SEARCH, tmp_path, earlier)
    reader.read("stage_began", {"stage": "search"})
    found = read(reader, ("trial", {**ROW, "state": "finished"}))
    assert [each.step for each in found if isinstance(each, Values)] == [4, 8]
    assert found[0].state == "finished" and found[-1] == End("trial-001", "finished")


def test_a_training_alone_has_one_run(tmp_path):
    """What it reports is that run's, whatever the job is called."""
    reader = EventReader(TrackedRun(MAIN, "long"), tmp_path)
    found = read(reader, ("stage_began", {"stage": "train"}), ("reading", {**READING, "trial": "train"}))
    assert found[1] == Values(MAIN, {"score": 1.5, "scale/q_proj": 0.5}, 8)
    assert reader.end("finished") == [End(MAIN, "finished")]


def test_the_end_brings_the_choice_and_the_report(reader, tmp_path):
    """The test's numbers as far as they are finite, the reason in words, and the file."""
    (tmp_path / "report.html").write_text("<p>")
    numbers, note, file = read(reader, ("summary", SUMMARY))
    assert numbers.numbers == {
        "k": 2.0,
        "advised_k": 1.0,
        "test/general_delta": 1.0,
        "test/domain_delta": 2.0,
        "test/score": 1.5,
        "seconds/search": 9.0,
    }
    assert isinstance(note, Note) and "k = 2 scores best." in note.text and "3 5" in note.text
    assert file == File(MAIN, tmp_path / "report.html")


def test_a_trial_that_ran_when_all_stopped_is_interrupted(reader):
    """Before the search itself ends; trials that were over stay as they ended."""
    other = {**ROW, "trial": "trial-002", "state": "stopped"}
    read(reader, ("trial", ROW), ("trial", other))
    assert reader.end("interrupted") == [End("trial-001", "interrupted"), End(MAIN, "interrupted")]


def test_settings_become_what_every_tracker_takes():
    """Nested ones by their path, lists as text, none where there is none."""
    flat = flatten_settings({"a": {"b": 1, "c": [1, 2]}, "d": None, "e": True, "f": []})
    assert flat == {"a.b": 1, "a.c": "1 2", "e": True, "f": ""}
