"""A command at work: the order in which it takes the cluster, and where others' output goes."""

import logging
import os
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
from ray.exceptions import WorkerCrashedError

from adept_ray.config.errors import UnfinishedRun, UserError
from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.config.validation import apply_changes
from adept_ray.engine.layout import Load
from adept_ray.run import context as context_module
from adept_ray.run.context import (
    OUTPUT_LOG,
    Context,
    Session,
    open_context,
    open_session,
    redirect_output,
    report_stage_times,
    take_back_refused,
)
from adept_ray.run.terminal import Display
from adept_ray.storage.files import fetch_temporarily
from adept_ray.storage.results import Results

LOAD = Load(blocks=2)


@pytest.fixture
def order(monkeypatch):
    """The order in which a context takes what it needs; nothing of it is real."""
    order = []

    @contextmanager
    def note(name):
        order.append(name)
        yield name

    for name, instead in {
        "connect_cluster": lambda run, say: note("cluster"),
        "check_compiler": lambda run, say: order.append("compiler"),
        "measure_worker_memory": lambda run, say: order.append("memory") or 7,
        "resolve_layout": lambda run, *_: apply_changes(run, {"workers": 3}),
    }.items():
        monkeypatch.setattr(context_module.cluster, name, instead)
    monkeypatch.setattr(context_module, "start_crews", lambda run, storage, say, memory: note("crew"))
    monkeypatch.setattr(context_module, "redirect_output", nullcontext)
    monkeypatch.setattr(context_module, "report_stage_times", lambda *_: nullcontext())
    return order


def test_memory_and_compiler_are_asked_for_before_the_crew_takes_the_gpus(order, display):
    """The other way round the questions would wait for a GPU for ever; a compiler is for what trains."""
    session = Session(RunSpec(), SimpleNamespace(place="", ray=""), display)
    with open_context(session, LOAD, print) as context:
        assert (context.board, context.memory) == ("crew", 7)
    with open_context(session, LOAD, print, trains=False):
        assert order == ["cluster", "compiler", "memory", "crew", "cluster", "memory", "crew"]


def test_a_cluster_is_examined_before_anything_is_started_on_it(order, display):
    """A fault that it finds ends the command there."""

    def examine():
        order.append("examined")
        raise UserError("node other has another --cache")

    session = Session(RunSpec(), SimpleNamespace(place="", ray="", withdraw=lambda: True), display)
    with pytest.raises(UserError, match="another --cache"), open_context(session, LOAD, examine):
        pass
    assert order == ["cluster", "examined"]


def test_a_context_has_the_numbers_that_were_chosen(order, display):
    """The session keeps what was asked for: a run is recorded so, and other machines may resume it."""
    session = Session(SearchRun(workers="auto"), SimpleNamespace(place="", ray=""), display)
    with open_context(session, LOAD, print) as context:
        assert context.run.machine.workers == 3 and context.display is display
    assert session.run.machine.workers == "auto"


def test_a_lost_worker_ends_a_context_in_a_sentence(order, display, capsys):
    """The report that Ray makes of it is printed, which goes to the results; a mistake of ours stays one."""
    session = Session(RunSpec(), SimpleNamespace(place="", ray=""), display)
    refused = pytest.raises(
        UnfinishedRun, match=r"^Ray lost a part of the run \(WorkerCrashedError.*; ray\.log "
    )
    with refused, open_context(session, LOAD, print):
        raise WorkerCrashedError
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(KeyError), open_context(session, LOAD, print):
        raise KeyError("x")
    assert capsys.readouterr().err == ""


def test_a_session_opens_the_folder_that_the_run_names(tmp_path):
    """It is new, or that of the run that it continues."""
    run = RunSpec(storage=str(tmp_path), name="mine")
    session = open_session(run)
    session.results.write("run.json", "{}")
    assert session.run is run and session.results.place == f"{tmp_path}/mine"
    assert open_session(run, continues=True).results.read_record() == {}


def test_the_stage_shows_how_much_of_its_jobs_is_done(display, monkeypatch):
    """Two jobs, one after the other: the first is done, the second half so."""
    shown = []

    @contextmanager
    def stage(name, what):
        yield lambda done, of: shown.append((name, what, done, of))

    @contextmanager
    def watch_board(board, show):
        show({"one": (4, 4), "two": (1, 2)}, ())
        yield

    display.show_stage = stage
    monkeypatch.setattr(context_module, "watch_board", watch_board)
    board = SimpleNamespace(read_readings=lambda seen: [])
    context = Context(RunSpec(), SimpleNamespace(), display, board, 7)
    with context.show_jobs("probe", "stage 1", "one", "two", "three"):
        pass
    assert shown == [("probe", "stage 1", 1500, 3000)]


def test_a_reading_is_emitted_once_and_before_the_row_that_ends_its_trial(display, monkeypatch):
    """The board knows of both at the same look; whoever listens hears the whole trial before its end."""
    heard, looks = [], []
    monkeypatch.setattr(context_module, "watch_board", lambda _, look: nullcontext(looks.append(look)))
    every = [{"trial": "trial-001", "step": step} for step in (1, 2, 3)]
    board = SimpleNamespace(read_readings=lambda seen: every[seen : 2 if not heard else None])
    display.emit = lambda name, **facts: heard.append((name, facts["step"]))
    context = Context(RunSpec(), SimpleNamespace(), display, board, 7)
    for _ in range(2):
        with context.watch_jobs(lambda _, rows: heard.append(rows)):
            looks[-1]({}, ["row"])
    readings = [("reading", step) for step in (1, 2, 3)]
    assert heard == [*readings[:2], ["row"], readings[2], ["row"]]


def test_the_board_hears_of_every_stage_that_ended():
    """Of those that were over when it came, too; afterwards nothing is sent to it."""
    heard, display = [], Display(json_lines=True)
    board = SimpleNamespace(record_stage_times=lambda seconds: heard.append(list(seconds)))
    with display.show_stage("assets", "backbone"):
        pass
    with report_stage_times(display, board), display.show_stage("probe", "stage 1"):
        pass
    with display.show_stage("search", "trials"):
        pass
    assert heard == [["assets"], ["assets", "probe"]]


@pytest.mark.parametrize("kind", ["path", "file", "s3"])
def test_what_others_print_goes_to_a_file_of_the_results(request, tmp_path, capsys, kind):
    """Only what the display writes comes to the terminal meanwhile; a resumed run adds to the file."""
    storage = {"path": str(tmp_path), "file": tmp_path.as_uri(), "s3": "s3://chatter"}[kind]
    if kind == "s3":
        request.getfixturevalue("s3").create_bucket(Bucket="chatter")
    display = Display()
    for words in ("began", "went on"):
        results = Results(storage, "run")
        results.open(resume=words == "went on")
        results.write("run.json", "{}")
        with pytest.raises(KeyboardInterrupt), redirect_output(results):
            print(words)
            display.show("news")
            raise KeyboardInterrupt
    print("afterwards")
    assert capsys.readouterr().out.splitlines() == ["news", "news", "afterwards"]
    with fetch_temporarily(results.place) as folder:
        assert (folder / OUTPUT_LOG).read_text() == "began\nwent on\n"


@pytest.mark.parametrize("fault", [UserError("it is too small"), UnfinishedRun("a node is gone")])
def test_only_what_is_refused_is_taken_back(tmp_path, fault):
    """What was stopped half-way can be resumed, if only from its beginning."""
    results = Results(str(tmp_path), "run")
    results.open(resume=False)
    results.write("run.json", "{}")
    with pytest.raises(type(fault)), take_back_refused(results):
        raise fault
    assert results.exists() is isinstance(fault, UnfinishedRun)


def test_what_rays_libraries_say_goes_to_that_file_too(tmp_path, capfd, monkeypatch):
    """Those in C++ write to the process's stderr; Data, Train and Tune log with handlers of their own."""
    monkeypatch.setattr(sys, "stderr", os.fdopen(2, "w", closefd=False))  # as it is outside of tests
    results = Results(str(tmp_path), "run")
    results.open(resume=False)
    logger, handler = logging.getLogger("ray.made_up"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with redirect_output(results):
            os.write(2, b"from C++\n")
            logger.error("from Data")
        os.write(2, b"C++ afterwards\n")
        logger.error("Data afterwards")
    finally:
        logger.removeHandler(handler)
    assert (results.folder / OUTPUT_LOG).read_text() == "from C++\nfrom Data\n"
    assert capfd.readouterr().err == "C++ afterwards\nData afterwards\n"
