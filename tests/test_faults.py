"""What the benchmark of faults says is so: faults fixed by a seed, outcomes told apart, its page's tables."""

from pathlib import Path

import pytest
from fault_room import NAME, Quiet, Results
from faults import (
    ERRORS,
    PROCESSES,
    ROWS,
    WRITES,
    Fault,
    draw_fault,
    find_next,
    format_tables,
    judge_end,
    read_rows,
)

PAGE = Path(__file__).parents[1] / "docs" / "faults.md"
DRIVER_KILLED = Fault("kill", "driver", "search", 0.5, once=False, cold=False)
GOES_ON = f"python scripts/tune_k.py --name {NAME} --resume"


def test_a_seed_fixes_every_fault_and_all_kinds_come():
    """Whatever was drawn before; another seed draws others."""
    drawn = [draw_fault(0, number) for number in range(1, 201)]
    assert draw_fault(0, 200) == drawn[-1] and drawn != [draw_fault(1, number) for number in range(1, 201)]
    wanted = {(kind, what) for kind in ("kill", "stop") for what in PROCESSES}
    wanted |= {(kind, what) for kind in ERRORS for what in WRITES}
    assert {(fault.kind, fault.what) for fault in drawn} == wanted


@pytest.mark.parametrize(
    ("fault", "status", "said", "plain", "why"),
    [
        (None, 0, "", "", ""),
        (None, 2, f"error: no space left: make room and go on with {GOES_ON}", "", ""),
        (None, 130, f"interrupted; to go on from here: {GOES_ON}", "", ""),
        (DRIVER_KILLED, -9, "", "", "no sentence, status -9"),
        (None, -9, "", "", "no sentence, status -9"),
        (None, 1, f"error: this command's process has died; go on with {GOES_ON}", "", ""),
        (None, 2, "error: Ray can't be started on this machine: no", "", "no command that goes on"),
        (None, 2, "error: it exists: continue it with --resume", "", "no command that goes on"),
        (None, 0, "a warning of a library's", "", "a complaint on stderr"),
        (None, 2, "error: one thing\nand another", "", "no sentence, status 2"),
        (None, 1, "Traceback (most recent call last):", "", "a traceback"),
        (None, 0, "", "half a line", "stdout has a line that is no event: half a line"),
        (None, None, "", "", "it hangs"),
    ],
)
def test_only_a_result_or_a_sentence_with_a_command_is_a_good_end(fault, status, said, plain, why):
    """Of a run that has begun, whatever became of its command: killed, refused or stopped."""
    assert judge_end(fault, status, said, plain, begun=True) == why


def test_before_a_run_has_begun_there_is_no_command_to_name():
    """A sentence is enough then, and a killed command can't say anything; others have to."""
    assert judge_end(None, 2, "error: no space left: give the command again", "", begun=False) == ""
    assert judge_end(DRIVER_KILLED, -9, "", "", begun=False) == ""
    assert judge_end(None, -9, "", "", begun=False) == "no sentence, status -9"


def test_the_command_that_a_sentence_names_is_the_next():
    """As it is printed, and none is guessed."""
    resumed = ["tune_k.py", "--name", NAME, "--resume", "--json"]
    assert find_next(f"error: it is full; go on with {GOES_ON}") == resumed
    assert find_next("error: it exists: continue it with --resume") is None
    assert find_next("") is None


def test_results_that_differ_are_told():
    """In what is missing, in the table, and in the model."""
    whole = Results([{"trial": "trial-001"}], "ab", [])
    quiet = Quiet({}, whole)
    assert quiet.compare(whole) == ""
    assert quiet.compare(Results([], "ab", ["run.json"])) == "without run.json"
    assert quiet.compare(Results([], "ab", [])) == "another table, of 0 rows"
    other = Results([{"trial": "trial-002"}], "ab", [])
    assert quiet.compare(other) == "another table: trial-001: trial trial-002, not trial-001"
    assert quiet.compare(Results(whole.table, "cd", [])) == "another model"


def test_the_page_has_the_tables_of_the_rows():
    """No figure there is made up, and none is older than the rows."""
    assert format_tables(read_rows(ROWS)) in PAGE.read_text()
