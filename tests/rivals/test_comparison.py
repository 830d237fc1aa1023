"""The comparison's arithmetic: rates that are tried, seeds that count, intervals, files and the page."""

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.config.errors import UserError
from adept_ray.config.specs import CompareRun, ScoreWeights, TrainingSpec
from adept_ray.data.loading import Backbone
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.importance import LayerImportance
from adept_ray.report.comparison_page import express_verdict, write_comparison
from adept_ray.report.evidence import read_rivals
from adept_ray.rivals import comparison
from adept_ray.rivals.comparison import (
    APART,
    ComparisonField,
    compare_entrants,
    count_trainings,
    propose_rate,
    trains_anything,
)
from adept_ray.rivals.methods import METHODS, Entrant, list_entrants
from adept_ray.rivals.table import (
    ComparedTraining,
    compare_scores,
    compute_interval,
    format_csv,
    parse_runs,
    summarise_methods,
)
from adept_ray.training.work import TrainWork

# --- base rates -----------------------------------------------------------------------------------


def tried(score, start, number):
    """Rates in the order in which they are tried, and their scores."""
    found = {}
    for _ in range(number):
        rate = propose_rate(found, start)
        assert rate not in found
        found[rate] = score(rate)
    return found


@given(st.floats(-4, -2), st.floats(-1.4, 1.4))
def test_the_best_rate_is_found_wherever_it_lies(peak, off):
    """On a score with one peak eight tries come within a factor of two of it, from 25 times off."""
    found = tried(lambda rate: -abs(math.log10(rate) - peak), 10 ** (peak + off), 8)
    best = max(found, key=found.get)
    assert abs(math.log10(best) - peak) < math.log10(2)


def test_a_rate_that_fails_is_not_passed():
    """Where trainings diverge above a rate the search goes down, even if the very first one failed."""
    found = tried(lambda rate: -math.inf if rate > 2e-4 else rate, 1e-2, 6)
    rates = list(found)
    assert rates[1] == pytest.approx(1e-2 / APART, rel=0.05) and max(found.values()) > 5e-5


def test_rates_are_told_in_three_digits():
    """What a table prints is what was trained with."""
    found = tried(lambda rate: -abs(math.log(rate / 1e-3)), 3.3e-3, 6)
    assert all(rate == float(f"{rate:.3g}") for rate in found)


# --- who takes part -------------------------------------------------------------------------------


def test_all_methods_train_on_the_same_number_of_tokens():
    """Whatever a method is, its tokens, its steps' size and its reports are the run's."""
    run = CompareRun(tokens=999, tokens_per_step=77, k=3)
    found = list_entrants(run)
    assert [entrant.label for entrant in found] == list(METHODS)
    sizes = {(e.training.tokens, e.training.tokens_per_step, e.training.reports) for e in found}
    assert sizes == {(999, 77, 1)}
    assert [e.label for e in found if not trains_anything(e.training)] == ["vanilla"]
    assert {e.training.replay for e in found if e.label == "replay"} == {0.2}


def test_a_variant_changes_its_settings():
    """After the name come settings of the training, checked as everywhere."""
    (found,) = list_entrants(CompareRun(methods=("adept:placement=stratified:offset=2",)))
    assert (found.training.placement, found.training.offset) == ("stratified", 2)
    assert "placement=stratified" in found.about


@pytest.mark.parametrize(
    "methods, words",
    [
        (("adpt",), "unknown method 'adpt': did you mean adept"),
        (("adept", "adept"), "'adept' is given twice"),
        (("adept:placment=uniform",), "unknown key 'placment': did you mean placement"),
        (("adept:placement=even",), "placement"),
        (("adept:layers=[2,10]",), r"layers must name k = 4 different ones, not \[2, 10\]"),
        (("adept:layers=[2,10,10]:k=3",), r"layers must name k = 3 different ones"),
        (("adept:uniform",), "a variant is NAME:key=value"),
        (("adept:k=[",), r"'\[' can't be read as a value of k"),
        (("lora:tokens=5",), "tokens is not for a method to choose"),
    ],
)
def test_bad_methods_are_refused(methods, words):
    with pytest.raises(UserError, match=words):
        list_entrants(CompareRun(methods=methods))


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 2.0])
def test_a_replay_ratio_outside_of_0_to_1_is_refused(ratio):
    with pytest.raises(ValueError, match=r"replay\n.* (greater than or equal to 0|less than 1)"):
        CompareRun(replay=ratio)


# --- the trainings --------------------------------------------------------------------------------


class Pretended:
    """A field on which a training's score follows from method, rate and seed; it counts what is run."""

    def __init__(self, fails=lambda entrant, rate: False):
        self.work = type("work", (), {"seed": 5})
        self.ran = []
        self._fails = fails

    def train(self, entrant, phase, base_lr, seed, name):
        self.ran.append((entrant.label, phase, base_lr, seed))
        row = ComparedTraining(entrant.label, phase, seed, base_lr)
        if self._fails(entrant, base_lr):
            return replace(row, error="it diverged")
        gain = 0.0 if base_lr is None else 10 - abs(math.log(base_lr / 2e-3)) + seed / 10
        return replace(row, general_delta=gain, domain_delta=gain, score=gain, tokens=64)


RIVALS = list_entrants(CompareRun(methods=("vanilla", "full", "adept")))


def test_every_method_gets_the_same_number_of_tries_and_seeds():
    """The untouched backbone needs none; rates are tried on the first seed, the others count."""
    field = Pretended()
    rows = compare_entrants(RIVALS, field, rate_trials=4, seeds=3)
    assert len(rows) == len(field.ran) == count_trainings(RIVALS, 4, 3) == 15
    for method in ("full", "adept"):
        own = [row for row in rows if row.method == method]
        assert [(row.phase, row.seed) for row in own] == [("rate", 5)] * 4 + [("test", s) for s in (6, 7, 8)]
        best = max(own[:4], key=lambda row: row.score)
        assert {row.base_lr for row in own[4:]} == {best.base_lr}


def test_what_was_run_is_not_run_again():
    """A comparison that goes on with the rows of runs.csv ends as one that was never stopped."""
    whole = compare_entrants(RIVALS, Pretended(), 4, 3)
    for kept in (0, 1, 6, len(whole)):
        field = Pretended()
        known = parse_runs(format_csv([vars(row) for row in whole[:kept]])) if kept else []
        assert compare_entrants(RIVALS, field, 4, 3, known) == whole
        assert len(field.ran) == len(whole) - kept


def test_a_method_that_always_fails_spoils_no_other():
    """Its tries are rows with their error, the others are compared; resumed, what failed is tried again."""
    rows = compare_entrants(RIVALS, Pretended(lambda entrant, rate: entrant.label == "full"), 2, 1)
    assert [row.error for row in rows if row.method == "full"] == ["it diverged"] * 2
    summaries = {row["method"]: row for row in summarise_methods(rows)}
    assert (summaries["full"]["failed"], summaries["full"]["score"]) == (2, None)
    assert summaries["adept"]["score"] > 0
    again = Pretended()
    compare_entrants(RIVALS, again, 2, 1, rows)
    assert {method for method, *_ in again.ran} == {"full"}


def test_when_every_training_fails_the_reason_is_given():
    rivals = list_entrants(CompareRun(methods=("full", "adept")))
    with pytest.raises(UserError, match="all 4 trainings failed, the last with: it diverged"):
        compare_entrants(rivals, Pretended(lambda *_: True), 2, 1)


# --- what it comes to -----------------------------------------------------------------------------


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_the_interval_is_students(values):
    """Half the width is t times the standard error; t of two degrees of freedom is 4.303."""
    mean, half = compute_interval(values)
    assert mean == pytest.approx(statistics.fmean(values))
    if len(values) == 3:
        assert half == pytest.approx(4.302653 * statistics.stdev(values) / math.sqrt(3), rel=1e-6, abs=1e-9)
    assert compute_interval(values[:1])[1] is None


def scored(method, scores, rate=1e-3):
    return [
        ComparedTraining(method, "test", s, rate, general_delta=v, domain_delta=v, score=v) for s, v in scores
    ]


def test_differences_go_seed_by_seed():
    """A seed that one of the two lacks is left out; the untouched backbone counts at every seed."""
    measure = {1: 5.0, 2: 7.0}
    assert compare_scores(scored("full", [(1, 6.0), (3, 99.0)]), measure) == [1.0]
    assert compare_scores(scored("vanilla", [(0, 0.0)], rate=None), measure) == [-5.0, -7.0]


def test_a_loser_is_shown_losing():
    """ADEPT behind a rival by more than the noise: the sentence and the table's difference say so."""
    rows = (
        scored("vanilla", [(0, 0.0)], rate=None)
        + scored("full", [(1, 9.0), (2, 10.0), (3, 11.0)])
        + scored("lora", [(1, 1.0), (2, 7.0), (3, 5.0)])
        + scored("adept", [(1, 4.0), (2, 5.0), (3, 6.1)])
    )
    summaries = {row["method"]: row for row in summarise_methods(rows)}
    assert summaries["full"]["against_adept"] == pytest.approx(14.9 / 3)
    assert summaries["full"]["against_adept_ci"] < 1
    text = express_verdict(list(summaries.values()))
    assert "number 2 of 4" in text
    assert "Better beyond the noise over seeds: full. Worse: vanilla. Not told apart: lora." in text


def test_a_comparison_says_who_is_where_at_the_dial_and_as_trained(tmp_path):
    """A sentence and two columns, where anything was turned; an older comparison.csv has no such numbers."""
    ends = {"adept": (6.0, 2.0), "lora": (5.0, 4.0)}
    rows = scored("vanilla", [(0, 0.0)], rate=None) + [
        replace(row, dial=0.5, plain_score=plain + row.seed)
        for method, (score, plain) in ends.items()
        for row in scored(method, [(seed, score + seed) for seed in (1, 2)])
    ]
    summaries = write_comparison(tmp_path, rows, {}, {"backbone": "tiny", "domain": "texts"})
    text = express_verdict(summaries)
    assert text.startswith("ADEPT is number 1 of 3 by mean score.")
    assert "as they were trained ADEPT is number 2 of 3, with +3.50, and lora leads with +5.50." in text
    page = (tmp_path / "comparison.html").read_text()
    assert "<th>as trained</th>" in page and "+3.50 ± 6.35" in page and "<th>dial</th>" in page
    plain = [replace(row, dial=row.dial and 1.0, plain_score=row.dial and row.score) for row in rows]
    assert express_verdict(summarise_methods(plain)).endswith("All models are scored as they were trained.")
    asked = [replace(row, dial=row.dial and 0.7, plain_score=None) for row in rows]
    assert express_verdict(summarise_methods(asked)).endswith("scored at dial 0.7, as it was asked for.")
    old = [replace(row, dial=None, plain_score=None) for row in rows]
    write_comparison(tmp_path, old, {}, {"backbone": "tiny", "domain": "texts"})
    assert "as trained" not in (tmp_path / "comparison.html").read_text()
    lines = (tmp_path / "comparison.csv").read_text().splitlines()
    kept = [at for at, name in enumerate(lines[0].split(",")) if name.removesuffix("_ci") in KNOWN_BEFORE]
    older = "".join(",".join(line.split(",")[at] for at in kept) + "\n" for line in lines)
    (tmp_path / "comparison.csv").write_text(older)
    rivals = [rival.model_dump() for rival in read_rivals(tmp_path / "comparison.csv")]
    assert "trained" not in express_verdict(rivals) and len(rivals) == 3


KNOWN_BEFORE = ("method", "score", "general_delta", "domain_delta", "against_adept")


def test_a_rate_at_the_edge_is_marked():
    """The best of the rates tried is the highest one: the table says so."""
    rows = [ComparedTraining("full", "rate", 0, rate, score=rate) for rate in (1e-4, 3e-4)]
    rows += scored("full", [(1, 1.0)], rate=3e-4)
    assert summarise_methods(rows)[0]["rate_at_edge"] is True
    middle = [*rows, ComparedTraining("full", "rate", 0, 9e-4, score=0.0)]
    assert summarise_methods(middle)[0]["rate_at_edge"] is False


def test_the_page_holds_every_method_and_number(tmp_path):
    """Names, means, intervals and differences; no address of another machine."""
    rows = scored("full", [(1, 2.0), (2, 3.0)]) + scored("adept", [(1, 4.0), (2, 5.0)])
    rows.append(ComparedTraining("full", "rate", 0, 1e-3, error="it <diverged>"))
    write_comparison(tmp_path, rows, {"full": "all & everything"}, {"backbone": "tiny", "domain": "texts"})
    page = (tmp_path / "comparison.html").read_text()
    for text in (
        "adept leads",
        "+2.50 ± 6.35",
        "−2.00 ± 0.00",
        "Worse: full.",
        "all &amp; everything",
        "0.001: failed",
    ):
        assert text in page, text
    assert "http" not in page.replace("http://www.w3.org", "")
    lines = (tmp_path / "comparison.csv").read_text().splitlines()
    assert lines[0].startswith("method,seeds")
    assert [line.split(",")[0] for line in lines[1:]] == ["full", "adept"]


def test_a_training_is_made_to_fit_on_its_own_layers(monkeypatch):
    """Each method's plan is for the lowest layers; the ones that it gets may leave room for activations."""
    trained = []
    monkeypatch.setattr(comparison, "run_job", lambda board, job: trained.append(job.work) or {})
    monkeypatch.setattr(comparison, "delete_folder", lambda place: None)
    importance = LayerImportance((3.0, 1.0, 2.0), (0.0,) * 3, 1.0, (1, 2, 0))
    work = TrainWork(Backbone("", ""), TrainingSpec(), (), {}, {}, ScoreWeights(), 8, 1, 0)
    splits = {"rate": {}, "test": {}}
    high = {(1,): PLAIN}
    shared = work, importance, ["blocks"], splits, splits, splits, ""
    field = ComparisonField("board", *shared, lambda work: replace(work, fit=high[work.layers]))
    entrant = Entrant("adept", "", 1e-3, TrainingSpec(k=1), Fit(recompute=True))
    field.train(entrant, "rate", 1e-3, 0, "training-001")
    assert (trained[0].layers, trained[0].fit) == ((1,), PLAIN)
