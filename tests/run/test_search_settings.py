"""A search that begins, is resumed, is extended or is picked from: its settings and its space."""

import pytest
from record_parts import PREPARED, SOURCES, SPACE, session_at

from adept_ray.config.errors import UserError
from adept_ray.config.specs import PickRun, SearchRun
from adept_ray.run.flags import parse_flags
from adept_ray.run.record import record_run
from adept_ray.run.search_settings import (
    continue_search,
    load_space,
    open_finished,
    open_search,
    override_machine,
)
from adept_ray.storage.results import Results


def test_results_stay_whole_while_a_search_is_extended(tmp_path):
    """Cut off, it has what it was finished with, and is to be resumed first; at its end no pick holds."""
    run, results = SearchRun(name="x", storage=str(tmp_path)), Results(str(tmp_path), "x")
    record_run(session_at(run, results, 9, search=8), SOURCES, PREPARED)
    results.write_json("run.json", results.read_record() | {"pick": {"general": 0.7}})
    whole = results.read_record()
    asked = SearchRun(name="x", storage=str(tmp_path), more_trials=2)
    results.write_json("trials.json", {"trials": [{"state": "finished"}] * 8})
    longer = continue_search(asked, results)
    assert longer.trials == 10
    record_run(session_at(longer, results, 1), SOURCES)
    assert {**results.read_record(), "run": whole["run"], "ended": True} == whole
    with pytest.raises(UserError, match="isn't finished"):
        continue_search(asked, results)
    record_run(session_at(longer, results, 2, search=1), SOURCES, PREPARED)
    assert "pick" not in results.read_record() and continue_search(asked, results).trials == 10


def test_a_search_continues_with_the_space_that_it_began_with(tmp_path, display):
    """An edited file, or one that is gone, is told of; one that only has another comment isn't."""
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    run = SearchRun(name="x", storage=str(tmp_path), search_space=file, range=("k=1:4",))
    begun, results = load_space(run, {}), Results(str(tmp_path), "x")
    record_run(session_at(run, results, 1), SOURCES, space=begun)
    file.write_text(f"# the same\n{SPACE}")
    assert load_space(run, results.read_record(), display.say) == begun and not display.lines
    file.write_text(SPACE.replace("[1, 3]", "[1, 2]").replace("0.001", "0.01"))
    assert load_space(run, results.read_record(), display.say) == begun
    assert "space.yaml isn't what the search 'x' began with any more" in display.lines[0]
    file.unlink()
    assert load_space(run, results.read_record(), display.say) == begun and len(display.lines) == 2
    with pytest.raises(UserError, match="no such file"):
        load_space(run, {"run": {}})  # an older folder keeps none


def test_a_search_is_picked_from_on_its_own_machine():
    """Unless another one is given: of a search with a cache of its own nothing is measured twice."""
    searched = SearchRun(cache="s3://b/c", workers=2, min_workers=1, concurrent=3)
    same = override_machine(searched, parse_flags(PickRun, "", ["results/x"]))
    assert (same.machine.cache, same.machine.workers) == ("s3://b/c", 2)
    assert (same.machine.min_workers, same.concurrent) == (0, 1)
    words = ["results/x", "--cache", "/d/", "--workers", "1"]
    other = override_machine(searched, parse_flags(PickRun, "", words))
    assert (other.machine.cache, other.machine.workers) == ("/d", 1)


def test_what_is_picked_from_has_the_search_and_the_machine_apart(tmp_path):
    """What a choice and its advice say is of the search as it was; the machine is the one that picks."""
    run = SearchRun(name="x", storage="/elsewhere", workers=2, concurrent=2, min_gain_per_layer=0.5)
    results = Results(str(tmp_path), "x")
    record_run(session_at(run, results, 9), SOURCES, PREPARED)
    results.write_json("trials.json", {"trials": []})
    args = parse_flags(PickRun, "", [f"{tmp_path}/x", "--workers", "1", "--json"])
    searched, session = open_finished(args)
    assert (searched.machine.workers, searched.concurrent, searched.storage) == (2, 2, str(tmp_path))
    assert searched.min_gain_per_layer is None  # that of pick.py, which wasn't given
    assert (session.run.machine.workers, session.run.concurrent) == (1, 1)
    assert session.run.name == "x" and session.results.place == f"{tmp_path}/x"


def test_a_training_that_follows_is_no_shorter_than_a_trial(tmp_path):
    """Else trials would be longer than what they are for; nothing is left behind."""
    run = SearchRun(name="x", storage=str(tmp_path), for_tokens="6k")
    with pytest.raises(UserError, match="--for-tokens 6k is less than a trial's 6,144 tokens: give at least"):
        open_search(run)
    assert not list(tmp_path.iterdir())
