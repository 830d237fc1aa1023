"""A command's trackers: they hear its events from a thread of their own, and end nothing."""

import json

import pytest

from adept_ray.config.errors import UnfinishedRun
from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.run import tracking
from adept_ray.run.context import Session
from adept_ray.run.terminal import Display
from adept_ray.run.tracking import TRACKING, describe_run, track_run
from adept_ray.storage.results import Results

ROW = {"trial": "trial-001", "k": 2, "layers": "3", "state": "running"}


def open_run(tmp_path, resume=False, **settings):
    """The session of a search in a new folder, or of one that goes on."""
    run = SearchRun(storage=str(tmp_path), name="mine", **settings)
    results = Results(run.storage, run.name)
    results.open(resume)
    results.write_json("run.json", {"run": run.model_dump(mode="json")})
    return Session(run, results, Display())


def read_scores(folder):
    """Step → score of the curve that TensorBoard has of a trial."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = EventAccumulator(str(folder / "tensorboard" / "trial-001")).Reload().Scalars("score")
    return [(point.step, point.value) for point in points]


def report(display, *steps):
    """A search that shows a trial and reports at these steps."""
    display.emit("stage_began", stage="search", what="")
    display.emit("trial", **ROW)
    for step in steps:
        display.emit("reading", trial="trial-001", k=2, step=step, score=step / 2)


def test_a_resumed_run_goes_on_in_the_same_runs(tmp_path):
    """What it says again isn't told again; the trial that ran when the first one stopped was interrupted."""
    session = open_run(tmp_path)
    with pytest.raises(KeyboardInterrupt), track_run(session, ["tensorboard"]):
        report(session.display, 4, 8)
        raise KeyboardInterrupt
    kept = json.loads((session.results.folder / TRACKING).read_text())["tensorboard"]
    assert (kept["trial-001"]["step"], kept["trial-001"]["state"]) == (8, "interrupted")
    session.results.release()
    session = open_run(tmp_path, resume=True)
    with track_run(session, ["tensorboard"]):
        report(session.display, 8, 12)
    assert read_scores(session.results.folder) == [(4, 2.0), (8, 4.0), (12, 6.0)]
    assert session.display.listeners == []


def test_a_tracker_that_fails_costs_one_warning_and_nothing_else(tmp_path, capsys):
    """What it missed is there in the end, if it can be had by then."""
    session = open_run(tmp_path)
    blocked = session.results.folder / "tensorboard"
    blocked.write_text("a file where a folder is to be")
    warned, warn = [], session.display.warn
    session.display.warn = lambda text: (warned.append(text), warn(text), blocked.unlink())
    with track_run(session, ["tensorboard"]):
        report(session.display, 4)
        while not warned:
            pass
        session.display.emit("reading", trial="trial-001", k=2, step=8, score=4.0)
    assert read_scores(session.results.folder) == [(4, 2.0), (8, 4.0)]
    assert capsys.readouterr().out.count("warning: --track tensorboard: ") == 1


def test_what_a_tracker_never_got_is_said(tmp_path, capsys, monkeypatch):
    """The run's own end stays what it was."""
    session = open_run(tmp_path)
    (session.results.folder / "tensorboard").write_text("a file where a folder is to be")
    monkeypatch.setattr(tracking, "HURRY_S", 20.0)
    with pytest.raises(UnfinishedRun), track_run(session, ["tensorboard"]):
        report(session.display, 4)
        raise UnfinishedRun("the workers are gone")
    assert "of the last messages didn't get there: " in capsys.readouterr().out


def test_what_a_library_prints_is_not_on_the_terminal(tmp_path, capsys, monkeypatch):
    """It goes where Ray's output goes; with --json stdout holds events alone."""

    class Chatty:
        def __getattr__(self, name):
            print(f"chatter of {name}")
            return lambda *_: ""

    monkeypatch.setattr(tracking, "start_tracker", lambda *_: Chatty())
    session = open_run(tmp_path)
    with track_run(session, ["trackio"]):
        report(session.display, 4)
    assert capsys.readouterr().out == ""
    assert "chatter of begin_run" in (session.results.folder / "ray.log").read_text()


def test_without_trackers_nothing_is_done(tmp_path):
    session = Session(SearchRun(), None, None)
    with track_run(session, ()):
        pass


def test_places_and_passwords_stay_here(tmp_path):
    """A tracker is told what was computed, not where; a training says what it trained with, too."""
    session = open_run(tmp_path, study="postgresql://me:secret@there/db", track=("mlflow",))
    search = describe_run(session)
    assert (search.name, search.group, search.settings["seq_len"]) == ("mine", "mine", 128)
    assert "secret" not in str(search) and str(tmp_path) not in str(search)
    session.results.write_json(
        "run.json", {"run": RunSpec(name="mine").model_dump(mode="json"), "training": {"k": 3}}
    )
    training = describe_run(Session(RunSpec(name="mine"), session.results, None))
    assert training.group == "" and training.settings["training.k"] == 3
