"""The terminal: a line an event for persons where none looks on, JSON and nothing else for machines."""

import io
import json
import math
import sys
import time
from dataclasses import replace

import pytest
from rich.console import Console
from rich.progress import Progress

from adept_ray.config.plain_text import allow_any_terminal
from adept_ray.rivals.table import ComparedTraining, summarise_methods
from adept_ray.run.terminal import (
    Display,
    TimeLeft,
    build_trials_table,
    compute_shares,
    estimate_time_left,
    format_cells,
    format_clock,
)

ROW = {"trial": "trial-001", "k": 2, "base_lr": 3e-4, "general_delta": 1.0, "domain_delta": 2.0}
RUNNING = {**ROW, "score": 1.5, "score_se": math.nan, "state": "running"}
OVER = {**RUNNING, "state": "finished"}


def play(display):
    """A stage, a warning, and a trial that is seen running twice and then over."""
    with display.show_stage("probe", "stage 1") as update:
        update(1, 2)
    display.warn("too few blocks")
    with display.show_trials(2) as show:
        show({"trial-001": (1, 4)}, [RUNNING])
        show({"trial-001": (2, 4)}, [RUNNING])
        show({"trial-001": (4, 4)}, [OVER])


def test_every_event_is_an_object_of_json_on_a_line(capsys):
    """Nothing else is on stdout, a trial's row comes when it changes, and what isn't finite is null."""
    display = Display(json_lines=True)
    play(display)
    display.show_importance(
        {"order": [0], "ties": [], "confidence": 0.95, "base_loss": 1.0, "layers": [LAYER]}
    )
    printed = capsys.readouterr()
    events = [json.loads(line) for line in printed.out.splitlines()]
    names = "stage_began stage_ended warning stage_began trial trial stage_ended importance"
    assert [event["event"] for event in events] == names.split() and not printed.err
    assert events[1]["stage"] == "probe" and events[1]["seconds"] >= 0
    assert events[2]["text"] == "too few blocks"
    assert [event["state"] for event in events[4:6]] == ["running", "finished"]
    assert events[4]["score"] == 1.5 and events[4]["score_se"] is None
    assert events[7]["layers"] == [LAYER]


LAYER = {"layer": 0, "mean": 0.1, "standard_error": 0.01}


def test_where_nobody_looks_on_there_are_plain_lines(capsys):
    """Into a pipe goes a line an event: no bar, no cursor movements, no trial that is still running."""
    play(Display())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stage 1 …" and lines[1].startswith("stage 1: ") and lines[1].endswith(" s")
    assert lines[2] == "warning: too few blocks"
    assert lines[3].startswith("trial trial-001  k 2") and "finished" in lines[3]
    assert len(lines) == 5 and not any("\x1b" in line for line in lines)


def test_the_time_left_counts_what_running_trials_have_done():
    """One and a half of two trials took 30 s, so 10 s are left; before the first step nothing is said."""
    rows = [OVER, {**RUNNING, "trial": "trial-002"}, {**RUNNING, "trial": "trial-003"}]
    assert compute_shares(rows, {"trial-002": (2, 4), "probe": (1, 1)}) == {
        "trial-001": 1.0,
        "trial-002": 0.5,
    }
    assert (
        estimate_time_left(30.0, 1.5, 0.5) == pytest.approx(10.0)
        and estimate_time_left(30.0, 0.0, 2.0) is None
    )
    assert format_clock(30.0, 1, 2, 10.0) == "search: 1 of 2 trials over, 30 s, about 10 s left"
    assert format_clock(30.0, 0, 2, None) == "search: 0 of 2 trials over, 30 s"


def test_a_stage_says_how_long_it_has_to_go_once_a_part_is_done():
    """At its pace so far: a third took 30 s, so two have 60 to go; before and without a whole, dashes."""
    now = [0.0]
    bar = Progress(TimeLeft(), get_time=lambda: now[0], disable=True)
    bar.add_task("a stage", total=None)
    (task,) = bar.tasks
    assert str(TimeLeft().render(task)) == "-:--:--"
    now[0] = 30.0
    bar.update(task.id, completed=1, total=3)
    assert str(TimeLeft().render(task)) == "0:01:00"


@pytest.mark.parametrize(("resumed", "lefts"), [(False, [16.7, 20]), (True, [None, 80])])
def test_what_was_done_before_a_resume_says_nothing_of_the_time_left(capsys, monkeypatch, resumed, lefts):
    """Of four trials one and a half were there already: half of one took 20 s, and two have to follow."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = Display(json_lines=True)
    second = {**RUNNING, "trial": "trial-002"}
    with display.show_trials(4, resumed) as show:
        show({}, [])
        show({}, [OVER, second])
        now[0] = 10.0
        show({"trial-002": (2, 4)}, [OVER, {**second, "score": 1.0}])
        now[0] = 20.0
        show({"trial-002": (4, 4)}, [OVER, {**second, "state": "finished"}])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["left"] for event in events if event["event"] == "trial"][2:] == pytest.approx(lefts)


TURNED = {**OVER, "dial": 0.62, "plain_score": 1.25}


def test_a_trial_is_shown_with_its_dial_and_as_it_was_trained(capsys):
    """In its line, and among the numbers that machines get; one that has reported nothing has dashes."""
    for json_lines in (False, True):
        with Display(json_lines).show_trials(1) as show:
            show({}, [TURNED])
    line, *events = [line for line in capsys.readouterr().out.splitlines() if "trial-001" in line]
    assert "score +1.50  dial 0.62  as trained +1.25  state finished" in line
    (event,) = map(json.loads, events)
    assert (event["dial"], event["plain_score"]) == (0.62, 1.25)
    assert format_cells(OVER, {})[-3:-1] == ["–", "–"]


def test_a_comparison_is_shown_at_the_dial_and_as_it_was_trained(capsys, monkeypatch):
    """Training by training, and as a column where the terminal has room and anything was turned."""
    row = ComparedTraining("lora", "test", 1, 9e-3, general_delta=1.0, domain_delta=2.0, score=1.5)
    turned = replace(row, dial=0.62, plain_general_delta=-1.0, plain_domain_delta=2.5, plain_score=0.75)
    tables = []
    for each, width in ((turned, "120"), (row, "120"), (turned, "60")):
        monkeypatch.setenv("COLUMNS", width)
        display = Display()
        display.show_training(each)
        display.show_comparison(summarise_methods([each]))
        line, *table = capsys.readouterr().out.splitlines()
        assert ("score +1.50 at dial 0.62, as trained +0.75" in line) == (each is turned)
        tables.append("as trained" in table[0] and "+0.75" in table[1])
    assert tables == [True, False, False]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_names_and_states_stay_readable_in_a_narrow_terminal(width):
    """Other columns go instead, and with enough room none does."""
    rows = [{**OVER, "trial": f"trial-{number:03}"} for number in (1, 2)]
    console = Console(width=width, file=io.StringIO())
    console.print(build_trials_table(rows, {row["trial"]: (24, 24) for row in rows}, width))
    head, *lines = console.file.getvalue().splitlines()
    assert len(lines) == 2 and all("trial-00" in line and "finished" in line for line in lines)
    assert "…" not in console.file.getvalue() and ("rate" in head) == (width > 60)


@pytest.mark.parametrize("width", [50, 60, 80])
def test_the_times_of_a_stage_stay_readable_in_a_narrow_terminal(width):
    """What it does is cut where there is no room, and said whole at its end."""
    what = "stage 1, importance of layers and units"
    display, file = Display(), io.StringIO()
    display.console = Console(width=width, file=file, force_terminal=True, color_system=None)
    display.live = True
    with display.show_stage("probe", what) as update:
        update(1, 2)
    *_, last, end = [line for line in file.getvalue().replace("\r", "\n").splitlines() if what[:15] in line]
    assert " 50% 0:00:0" in last and last.endswith("0") and f"{what}: " in end


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_can_print_all_that_is_said(encoding, monkeypatch):
    """Our own signs become letters where a terminal hasn't them, and stay as they are where it has."""
    bytes_ = io.BytesIO()
    out = io.TextIOWrapper(bytes_, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    allow_any_terminal()
    display = Display()
    play(display)
    display.show("1.0 → 0.9, ± 0.1, 漢 ✓ –")
    out.flush()
    printed = bytes_.getvalue().decode(encoding)
    assert "trial-001" in printed
    last = {"ascii": "1.0 -> 0.9, +- 0.1, ? + -", "latin-1": "1.0 -> 0.9, ± 0.1, ? + -"}
    assert last.get(encoding, "1.0 → 0.9, ± 0.1, 漢 ✓ –") in printed
