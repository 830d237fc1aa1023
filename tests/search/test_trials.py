"""A trial as an object and as a row of the results folder."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.config.specs import ScoreWeights
from adept_ray.search.trials import (
    HIDDEN,
    Reading,
    Trial,
    describe_trial,
    format_table,
    read_trials,
    title_trial,
    write_trials,
)
from adept_ray.storage.results import Results

# A trial as a search wrote it to trials.json and trials.csv before it was an object.
WRITTEN = """{"trial": "trial-001", "k": 2, "layers": "1 4", "recompute_every": 8, "base_lr": 0.003,
 "placement": "uniform", "offset": 1, "general_bpb": 1.25, "domain_bpb": 0.75, "general_accuracy": null,
 "domain_accuracy": null, "general_delta": -0.5, "domain_delta": 9.5, "score": 4.5, "score_se": 0.25,
 "dial": 0.5, "plain_score": 4.0, "tokens": 512, "seconds": 1.5, "state": "finished",
 "saved": "/results/x/ray/trials/trial-001/step-8",
 "pulls": {"general": [0.1, -0.1], "domain": [0.0, 0.0]},
 "turned": {"turns": [{"dial": 0.5, "gains": {"general": [-0.15, -0.35], "domain": [5.0, 4.5]}}],
  "shares": {"general": [0.5, 0.5], "domain": [0.4, 0.6]}},
 "curve": [
  {"step": 4, "tokens": 256, "general_delta": -0.25, "domain_delta": 5.0, "score": 2.375,
   "plain_general_delta": -0.25, "plain_domain_delta": 5.0, "plain_score": 2.375, "dial": 1.0, "loss": 3.5},
  {"step": 8, "tokens": 512, "general_delta": -0.5, "domain_delta": 9.5, "score": 4.5,
   "plain_general_delta": -1.5, "plain_domain_delta": 9.5, "plain_score": 4.0, "dial": 0.5, "loss": 3.0}],
 "error": null}"""
UNTOUCHED = """{"trial": "untouched", "k": 0, "layers": "", "general_bpb": 1.0, "domain_bpb": 1.0,
 "general_accuracy": null, "domain_accuracy": null, "general_delta": 0.0, "domain_delta": 0.0, "score": 0.0,
 "score_se": 0.0, "dial": null, "plain_score": null, "tokens": 0, "seconds": 0.0, "state": "untouched",
 "saved": null, "pulls": {"general": [0.0, 0.0], "domain": [0.0, 0.0]}, "turned": null, "curve": []}"""
TABLE = """trial,k,layers,recompute_every,base_lr,placement,offset,general_bpb,domain_bpb,general_delta,\
domain_delta,score,score_se,dial,plain_score,tokens,seconds,state
untouched,0,,,,,,1.0,1.0,0.0,0.0,0.0,0.0,,,0,0.0,untouched
trial-001,2,1 4,8,0.003,uniform,1,1.25,0.75,-0.5,9.5,4.5,0.25,0.5,4.0,512,1.5,finished
"""
DIALS = """trial,dial,general_delta,domain_delta,score
trial-001,0.5,-0.5,9.5,4.5
"""


@pytest.mark.parametrize("text", [WRITTEN, UNTOUCHED])
def test_a_written_row_is_written_again_as_it_is(text):
    """Key by key in the same order: searched parameters stay columns, and `error` is there only if it was."""
    row = json.loads(text)
    assert json.dumps(Trial.from_row(row).as_row()) == json.dumps(row)


def test_a_row_is_read_with_its_types():
    """Layers are numbers, the searched parameters a setting, the curve readings."""
    trial = Trial.from_row(json.loads(WRITTEN))
    assert (trial.name, trial.k, trial.layers, trial.score) == ("trial-001", 2, (1, 4), 4.5)
    setting = {"recompute_every": 8, "base_lr": 0.003, "placement": "uniform", "offset": 1}
    assert trial.setting == setting and trial.config == {"k": 2, **setting}
    last = Reading(
        step=8,
        tokens=512,
        general_delta=-0.5,
        domain_delta=9.5,
        score=4.5,
        plain_general_delta=-1.5,
        plain_domain_delta=9.5,
        plain_score=4.0,
        dial=0.5,
        loss=3.0,
    )
    assert trial.curve[-1] == last and trial.is_comparable and trial.error is None


def test_the_files_of_a_search_keep_their_form(tmp_path):
    """trials.csv and dials.csv to the letter, trials.json row by row, curves.jsonl a line a reading."""
    results = Results(str(tmp_path), "x")
    results.open(resume=False)
    rows = [json.loads(text) for text in (UNTOUCHED, WRITTEN)]
    write_trials(results, [Trial.from_row(row) for row in rows], ScoreWeights())
    assert (results.folder / "trials.csv").read_text() == TABLE
    assert (results.folder / "trials.json").read_text() == json.dumps({"trials": rows}, indent=1) + "\n"
    curves = [json.loads(line) for line in (results.folder / "curves.jsonl").read_text().splitlines()]
    assert curves == [{"trial": "trial-001", **reading} for reading in rows[1]["curve"]]
    assert (results.folder / "dials.csv").read_text() == DIALS
    assert read_trials(results) == [Trial.from_row(row) for row in rows]


def test_dials_are_written_where_some_were_looked_for(tmp_path):
    """By other weights the same changes have other scores; without a dial there is no such file."""
    results = Results(str(tmp_path), "x")
    results.open(resume=False)
    untouched, trial = (Trial.from_row(json.loads(text)) for text in (UNTOUCHED, WRITTEN))
    write_trials(results, [untouched], ScoreWeights())
    assert not (results.folder / "dials.csv").exists()
    write_trials(results, [untouched, trial], ScoreWeights(general=0, domain=1))
    assert (results.folder / "dials.csv").read_text() == DIALS.replace("4.5\n", "9.5\n")


def test_a_title_has_the_rate_where_it_is_searched():
    """To two digits, in as few letters as can be."""
    assert title_trial("trial-010", {"k": 12, "base_lr": 0.0123}) == "trial-010 k=12 lr=1.2e-2"
    assert title_trial("trial-001", {"k": 2}) == "trial-001 k=2"


@given(
    st.dictionaries(st.sampled_from(["base_lr", "warmup", "clip"]), st.floats(0, 1)),
    st.sampled_from(["running", "finished", "stopped", "failed"]),
    st.none() | st.floats(allow_infinity=False),
    st.lists(st.integers(0, 9)).map(tuple),
)
def test_any_trial_comes_back_from_its_row(setting, state, score, layers):
    """A trial that has reported nothing, too, and through JSON, where nan stays nan."""
    metrics = {} if score is None else {"score": score, "tokens": 9, "saved": "there"}
    trial = describe_trial("trial-001", {"k": 3, **setting}, metrics, state, layers)
    again = Trial.from_row(json.loads(json.dumps(trial.as_row())))
    assert json.dumps(again.as_row()) == json.dumps(trial.as_row())
    assert not set(HIDDEN) & set(format_table([trial.as_row()]).splitlines()[0].split(","))
