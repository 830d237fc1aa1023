"""Choosing k: the smallest that is not worse beyond noise, what that leaves open, what other weights pick."""

import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import horizon

from adept_ray.config.errors import UserError
from adept_ray.config.search_space import Range, SearchSpace
from adept_ray.config.specs import ScoreWeights
from adept_ray.method.scores import combine_changes, compare_losses
from adept_ray.search.answers import Choice, Depth, Horizon
from adept_ray.search.choice import USUAL_TOKENS, choose_k, find_candidates, list_readings
from adept_ray.search.choice_words import explain_neighbours, format_choice
from adept_ray.search.edges import DepthLimit, Edge, find_edges
from adept_ray.search.front import find_front
from adept_ray.search.horizon import DOUBLINGS, Aim
from adept_ray.search.ranges import double_amount, limit_depths, override_ranges, parse_amount
from adept_ray.search.rescoring import rescore
from adept_ray.search.trials import UNTOUCHED, Reading, Trial

EVEN = ScoreWeights()


SCORES = {1: 3.0, 2: 8.0, 4: 9.5, 6: 10.0}
NOW = replace(Horizon(**horizon(1000, 2)), beyond=1.0)
HORIZONS = (NOW, replace(NOW, tokens=2000, beyond=2.0), replace(NOW, tokens=8000, advised_k=0, beyond=8.0))


def make_trial(k, score, error=1.0, state="finished", name=None, rate=3e-3):
    """A trial as it is read from an older file: without the pulls of single blocks."""
    name = name or f"trial of {k}"
    return Trial(name, k=k, score=score, score_se=error, state=state, setting={"base_lr": rate})


def measure_trial(k, general, domain, name=None, weights=EVEN):
    """A trial as a search has it, from losses of each block before and after; reported once, at the end."""
    size = np.full(len(general[0]), 100)
    sides = [compare_losses(np.array(before), np.array(after), size) for before, after in (general, domain)]
    score, error = combine_changes(*sides, weights)
    deltas = {"general_delta": sides[0].delta, "domain_delta": sides[1].delta}
    return replace(
        make_trial(k, score, error, name=name),
        **deltas,
        curve=(Reading(step=8, tokens=512, **deltas, score=score, loss=3.0),),
        pulls={"general": sides[0].pulls, "domain": sides[1].pulls},
    )


NOISE = np.array([-20.0, 15.0, -5.0, 25.0, -15.0, 0.0])  # what makes a block's change differ from another's
BEFORE = [100.0] * len(NOISE)
AS_BEFORE = (BEFORE, BEFORE)


def learnt(points, shared=NOISE, own=0.0):
    """Losses before and after a reduction of so many percent, unlike from block to block."""
    return BEFORE, 100 - points + shared + own


def test_the_smallest_k_that_costs_no_more_than_the_tolerance():
    """Sure differences below the tolerance don't buy layers; the reason names best k and tolerance."""
    rows = [make_trial(k, score, 0.1, name=f"{k} {n}") for k, score in SCORES.items() for n in range(3)]
    picked = {points: choose_k(rows, EVEN, Aim(tolerance=points)).k for points in (0.0, 1.2, 3.0, 99.0)}
    assert picked == {0.0: 6, 1.2: 4, 3.0: 2, 99.0: 1}
    found = choose_k(rows, EVEN, Aim(tolerance=1.2))
    assert "the best, k = 6, no more than 1.20 points more, as sure as 80%" in found.reason
    assert (found.asked.end, found.asked.best_k, found.score) == ("tolerance", 6, SCORES[4])


def test_readings_on_the_way_count_where_they_are_of_whole_trainings():
    """Those of branches do, of stopped trials too; what a trial reads on its way by cosine is no training."""
    curve = tuple(Reading(step=n, tokens=512 * n, score=2.0 * n) for n in (1, 2, 4))
    whole = replace(
        make_trial(2, 8.0, 0.8), curve=curve, tokens=2048, pulls={"general": [0.2], "domain": [0.4]}
    )
    cut = replace(make_trial(3, 4.0, state="stopped"), curve=curve[:2], tokens=1024)
    found = {each: list_readings([whole, cut], EVEN, each) for each in (False, True)}
    assert [(r.k, r.tokens, r.score) for r in found[False]] == [(2, 2048, 8.0)]
    branches = [(2, 512, 2.0), (2, 1024, 4.0), (2, 2048, 8.0), (3, 512, 2.0), (3, 1024, 4.0)]
    assert [(r.k, r.tokens, r.score) for r in found[True]] == branches
    assert [r.pulls for r in found[True]][:3] == [(0.025, 0.05), (0.05, 0.1), (0.1, 0.2)]


def test_each_k_is_judged_at_its_best_rate():
    """A k that was tried at a poor rate isn't called worse for that."""
    rates = {"good": 3e-3, "poor": 3e-2, "poorer": 1e-1}
    lost = {"good": 0.0, "poor": 2.0, "poorer": 5.0}
    rows = [make_trial(2, 10 - lost[each], 0.1, name=f"2 {each}", rate=rates[each]) for each in rates]
    rows.append(make_trial(4, 9.0, 0.1, name="4 poor", rate=rates["poor"]))
    _, two, four = choose_k(rows).depths
    assert four.score > 9.4 and four.gain > 0 and not four.differs
    assert two.rate < rates["poor"] / 3


def test_errors_are_paired_document_by_document():
    """What all trials share tells none from another: two scores of huge errors can differ surely."""
    alike = [measure_trial(k, AS_BEFORE, learnt(20 + 6 * k)) for k in (1, 2)]
    unlike = [alike[0], measure_trial(2, AS_BEFORE, learnt(32, -NOISE))]
    (_, first, second), (_, _, doubtful) = (choose_k(rows).depths for rows in (alike, unlike))
    assert first.standard_error > 0.8 * alike[0].score_se > 1.5
    assert second.gain_error < 1 < 2 < doubtful.gain_error
    assert second.differs and not doubtful.differs


rows_of_trials = st.lists(
    st.builds(
        make_trial,
        st.integers(1, 5),
        st.integers(-8, 8).map(float) | st.just(math.nan),
        st.floats(0, 5) | st.just(math.nan),
        st.sampled_from(["finished", "finished", "stopped", "failed"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25)
@given(rows_of_trials, st.none() | st.floats(0, 2))
def test_every_choice_can_be_justified_written_and_told(rows, price):
    """What is chosen was finished, YAML takes it, nothing in it is nan, each k has a line in the table."""
    rows.insert(0, make_trial(0, 0.0, 0.0, UNTOUCHED, UNTOUCHED))
    able = [r for r in rows if r.state == "finished" and not math.isnan(r.score)]
    if not able:
        failed = all(r.state == "failed" for r in rows[1:])
        with pytest.raises(UserError, match="trials failed" if failed else "no trial was trained to its end"):
            choose_k(rows)
        return
    found = choose_k(rows, EVEN, Aim(price=price or 0.0))
    assert found.score == max(r.score for r in able if r.k == found.k)
    written = yaml.safe_load(yaml.safe_dump(asdict(found)))
    assert written["depths"][0] == asdict(found.depths[0]) and ".nan" not in yaml.safe_dump(asdict(found))
    assert len(re.findall(r"\.(?: |$)", found.reason)) == 2
    ks = [depth.k for depth in found.depths]
    assert ks == sorted(set(ks)) and ks[0] == 0 and found.k in ks
    assert set(ks) | set(found.unfinished) == {0, *(r.k for r in rows)}
    assert format_choice(found).count("chosen") == 1
    for before, depth in zip(found.depths, found.depths[1:], strict=False):
        assert depth.gain == pytest.approx(depth.score - before.score)
        assert depth.per_layer * (depth.k - before.k) == pytest.approx(depth.gain)
    assert sum(depth.chance for depth in found.depths[1:]) == pytest.approx(1)
    assert [each.tokens for each in found.horizons] == [USUAL_TOKENS * 2**i for i in range(DOUBLINGS + 1)]


def test_the_table_is_told_to_the_letter():
    """A line for each k, for the lengths and for each end of a range; what isn't known leaves nothing."""
    edges = (
        Edge("k", 2, "high", "tune --k 4", held="the budget ends there"),
        Edge("base_lr", 0.1, "low", "tune --lr 1"),
        Edge("warmup", 0.5, "high", ""),
    )
    steps = {"gain": 3.0, "gain_error": 1.0, "per_layer": 3.0, "differs": True}
    depths = (
        Depth(k=0, trial=UNTOUCHED, score=0.0, standard_error=0.0),
        Depth(k=1, trials=1, score=3.0, standard_error=1.0, rate=3e-3, chance=0.2, **steps),
        Depth(k=2, trials=2, score=3.1, standard_error=1.0, gain=0.1, gain_error=0.2, differs=False),
        Depth(k=4, score=9.0, gain=-1.5, differs=True),
    )
    chosen = Choice(k=2, reason="", depths=depths, edges=edges, unfinished={3: 2}, horizons=HORIZONS)
    assert format_choice(chosen).splitlines() == [
        "  k  trials  expected score  best rate  against the next smaller k",
        "  0       –  0  untouched",
        "  1       1  +3.00 ± 1.00    3.0e-03    +3.00 ± 1.00",
        "  2       2  +3.10 ± 1.00               +0.10 ± 0.20 within the noise ← chosen",
        "  3       2  –                          none was trained to its end",
        "  4       –  +9.00                      -1.50",
        "for 1 k tokens: k = 2 (80%: 1 to 3), rate 2.0e-03 (1.0e-03 … 4.0e-03); expected score 4.8 ± 0.0",
        "for 8 k tokens: k = 0, since nothing is surely better than the untouched backbone",
        "k = 2 lies at the high end of its range, the budget ends there; to allow more: tune --k 4",
        "base_lr = 0.1 lies at the low end of its range; to widen it: tune --lr 1",
        "warmup = 0.5 lies at the high end of its range",
    ]


def test_trials_that_did_not_finish_do_not_count():
    """A stopped, failed or interrupted trial saw fewer tokens, so its score is not compared, only counted."""
    rows = [make_trial(5, 50.0, state=state) for state in ("stopped", "failed", "interrupted")]
    found = choose_k([*rows, make_trial(5, 1.0)])
    assert (found.k, found.score, found.depths[1].trials) == (5, 1.0, 4)
    found = choose_k([*rows, make_trial(7, 1.0)])
    assert found.unfinished == {5: 3} and "  5       3  –                          none was" in format_choice(
        found
    )
    with pytest.raises(UserError, match="search again with a larger --trials"):
        choose_k(rows)


def test_where_only_the_backbone_came_to_its_end_nothing_else_is_chosen():
    """Though a trial that was stopped has readings."""
    curve = (Reading(step=1, tokens=512, score=2.0),)
    rows = [make_trial(0, 0.0, 0.0), replace(make_trial(3, 2.0, state="stopped"), curve=curve)]
    found = choose_k(rows, EVEN, Aim(branched=True))
    assert (found.k, found.unfinished, found.horizons) == (0, {3: 1}, ())


def test_a_training_as_long_as_a_trial_has_the_k_that_is_exported():
    """One that nobody tried is named for longer trainings alone."""
    rows = [make_trial(k, 8 + k / 8, 0.1) for k in (1, 8)]
    found = choose_k(rows, EVEN, Aim(depths=tuple(range(1, 17))))
    assert found.horizons[0] == found.asked and found.asked.k == found.k and found.asked.high_k == 8
    assert found.horizons[-1].high_k == 16


def test_when_every_trial_failed_the_first_reason_is_given():
    """The sentence counts the trials and quotes the innermost line of the first error."""
    rows = [replace(make_trial(k, math.nan, state="failed"), error=f"reason {k}") for k in (2, 3)]
    with pytest.raises(UserError, match="all 2 trials failed; the first with: reason 2"):
        choose_k([make_trial(0, 0.0, 0.0, UNTOUCHED), *rows])


def test_layers_have_to_earn_what_is_asked_of_each():
    """Two points for each of two layers pay at a price of 1.5, four more for half a point each don't."""
    scores = {2: 6.0, 4: 10.0, 8: 12.0}
    rows = [make_trial(k, scores[k], 0.0, name=f"{k} {n}") for k in scores for n in range(4)]
    picked = {price: choose_k(rows, EVEN, Aim(price=price)).k for price in (0.0, 0.3, 0.8, 1.2, 2.5)}
    assert picked == {0.0: 8, 0.3: 8, 0.8: 4, 1.2: 4, 2.5: 2}
    found = choose_k(rows, EVEN, Aim(price=1.2))
    assert "and more layers don't earn 1.2 points each" in found.reason
    assert re.search(r"\+3\.\d\d ± 0\.\d\d, \+1\.\d\d a layer ← chosen", format_choice(found))


def test_the_reason_says_what_neighbours_would_change():
    """Fewer and more layers, by name and by how much; a choice that could be chance says so."""
    depths = (
        Depth(k=0, score=0.0),
        Depth(k=2, score=6.0, gain=6.0, gain_error=0.1, differs=True),
        Depth(k=4, score=6.1, gain=0.1, gain_error=3.0, differs=False),
    )
    reason = explain_neighbours(2, depths)
    assert reason.startswith("2 layers fewer (the untouched backbone) would score 6.00 ± 0.10 less; ")
    assert "2 layers more (k = 4) would score 0.10 ± 3.00 more (within the noise)." in reason
    assert "no larger k was trained to its end" in choose_k([make_trial(3, 5.0, 0.1)]).reason
    words = "can't be told from the untouched backbone"
    assert [words in choose_k([make_trial(3, 2.0, error)]).reason for error in (0.2, 1.5)] == [False, True]


# --- trade-offs -----------------------------------------------------------------------------------


def list_trades(weights=EVEN):
    """Trials of which one gains most in the domain, another one in general."""
    return [
        measure_trial(1, learnt(4), learnt(6), "even", weights),
        measure_trial(2, learnt(1), learnt(12), "domain", weights),
        measure_trial(4, learnt(8), learnt(1), "general", weights),
        measure_trial(3, learnt(3), learnt(5), "beaten", weights),
    ]


TRADES = list_trades()


def test_the_front_is_what_nothing_beats_on_both_sides():
    """One that loses on both sides isn't on it; where general gains don't count, they keep none on it."""
    assert find_front(TRADES, EVEN) == ("even", "domain", "general")
    assert find_front(TRADES, ScoreWeights(retain=True)) == ("domain",)


def test_other_weights_give_the_scores_that_a_search_with_them_would_have():
    """Scores and errors; so the pick is what that search would choose among the same trials."""
    picks = {}
    for general in (0.0, 0.5, 0.9):
        weights = ScoreWeights(general=general, domain=1 - general)
        again = rescore(TRADES, weights)
        for before, after in zip(TRADES, again, strict=True):
            deltas = before.general_delta, before.domain_delta
            assert after.score == pytest.approx(general * deltas[0] + (1 - general) * deltas[1])
        picks[general] = choose_k(again, weights).trial
        assert max(again, key=lambda each: each.score).name in find_front(TRADES, weights)
        assert picks[general] == choose_k(list_trades(weights), weights).trial
    assert len(set(picks.values())) > 1
    assert [r.score_se for r in rescore(TRADES, EVEN)] == pytest.approx([r.score_se for r in TRADES])
    unscored = make_trial(1, None, None, "failed")
    assert rescore([unscored], EVEN) == [unscored]


@pytest.mark.parametrize("retain", [False, True])
def test_other_weights_are_those_of_the_whole_curve(retain):
    """Every reading has the score that a search with them would have reported; all else of it stays."""
    weights = ScoreWeights(general=0.9, domain=0.1, retain=retain)
    losses = learnt(8), learnt(1)
    (again,) = rescore([measure_trial(2, *losses)], weights)
    ((now, then),) = zip(again.curve, measure_trial(2, *losses, weights=weights).curve, strict=True)
    assert now == then and now.score == again.score == pytest.approx(0.1 if retain else 7.3)


def test_weights_are_kept_of_what_can_still_be_chosen():
    """The best of each k, and of a search for trade-offs the front; with more trials nothing comes back."""
    rows = [
        *(replace(trial, k=2) if trial.name == "general" else trial for trial in TRADES),
        measure_trial(3, learnt(5), learnt(5), "better"),
        make_trial(4, 99.0, state="stopped", name="cut"),
    ]
    assert find_candidates(rows, EVEN, front=False) == {"even", "domain", "better"}
    assert find_candidates(rows, EVEN, front=True) == {"even", "domain", "better", "general"}
    assert find_candidates(rows[:0], EVEN, front=True) == set()
    for end in range(len(rows)):
        gone = {r.name for r in rows[:end]} - find_candidates(rows[:end], EVEN, front=False)
        assert not gone & find_candidates(rows, EVEN, front=False)


def test_a_general_gain_is_not_paid_for_where_only_losses_count():
    """The score is the domain's alone, a loss counts as ever, and a gain within its noise keeps its error."""
    weights = ScoreWeights(retain=True)
    won, lost = (measure_trial(1, learnt(points), learnt(6), weights=weights) for points in (20, -20))
    assert won.score == pytest.approx(3) and lost.score == pytest.approx(3 - 10)
    assert won.score_se < measure_trial(1, learnt(20), learnt(6)).score_se
    slight = measure_trial(1, learnt(0.1), learnt(6), weights=weights)
    assert slight.score == pytest.approx(3)
    assert slight.score_se == pytest.approx(measure_trial(1, learnt(0.1), learnt(6)).score_se)


# --- ends of ranges -------------------------------------------------------------------------------


SPACE = SearchSpace(
    parameters={
        "k": Range(int=(2, 6)),
        "base_lr": Range(log=(0.001, 0.01)),
        "warmup": Range(float=(0.0, 0.6)),
        "normalization": Range(choice=("rank", "none")),
    }
)


@pytest.mark.parametrize(
    ("setting", "most", "ends"),
    [
        ({"k": 4, "base_lr": 0.003, "warmup": 0.3}, 30, {}),
        ({"k": 6, "base_lr": 0.0098, "warmup": 0.3}, 30, {"k": "high", "base_lr": "high"}),
        ({"k": 6, "base_lr": 0.003}, 7, {"k": "high"}),
        ({"k": 2, "base_lr": 0.00101, "warmup": 0.3}, 6, {"k": "low", "base_lr": "low"}),
        ({"k": 4, "base_lr": 0.003, "warmup": 0.0}, 30, {}),  # nothing below 0 is a warm-up
    ],
)
def test_a_value_at_an_end_comes_with_the_command_that_widens_it(setting, most, ends):
    """On the range's own scale; the command names a wider range, which the space takes and k can reach."""
    setting = {"normalization": "rank", **setting}
    found = find_edges(
        setting, SPACE, DepthLimit(30, most), "python scripts/tune_k.py", ["clip=1:2", "k=2:6"]
    )
    assert {edge.parameter: edge.end for edge in found} == ends
    for edge in found:
        words = edge.command.removeprefix("python scripts/tune_k.py --range ").split()
        assert words[:-1] == (["clip=1:2"] if edge.parameter == "k" else ["clip=1:2", "k=2:6"])
        wider = override_ranges(SPACE, words[-1:]).parameters[edge.parameter]
        low, high = SPACE.parameters[edge.parameter].values
        assert wider.values[0] < low if edge.end == "low" else wider.values[1] > high
        assert wider.kind == SPACE.parameters[edge.parameter].kind and low in wider and high in wider
        assert edge.parameter != "k" or wider.values[1] <= most


def test_ends_stay_whole_numbers_and_ranges_only_get_wider():
    """A range of whole numbers from 0 isn't narrowed, and large ends aren't rounded."""
    space = SearchSpace(
        parameters={
            "k": Range(int=(1, 6)),
            "offset": Range(int=(0, 4)),
            "tokens_per_step": Range(int=(65536, 1048576)),
        }
    )
    (edge,) = find_edges({"k": 3, "offset": 0, "tokens_per_step": 1048576}, space, DepthLimit(9, 9), "x")
    assert edge.command == "x --range tokens_per_step=65536:2097152"


@pytest.mark.parametrize(
    ("rows", "price", "words"),
    [
        ([make_trial(1, -0.9, 0.98), make_trial(4, -1.5, 1.1)], 0.0, "is surely better than the untouched"),
        ([make_trial(8, 0.3, 0.4)], 0.0, "is surely better than the untouched backbone, so"),
        ([make_trial(1, 0.5, 0.1), make_trial(2, 0.4, 0.1)], 2.0, "surely earns 2 points a layer"),
        ([make_trial(8, 0.5, 0.3)], 0.0, ""),
        ([make_trial(1, 2.4, 0.1)], 2.0, ""),
    ],
)
def test_what_is_not_surely_better_than_the_backbone_is_not_advised(rows, price, words):
    """The rule that prefers the smaller k doesn't end at 1."""
    found = choose_k(rows, EVEN, Aim(price=price))
    assert found.k == rows[0].k and found.advised_k == (0 if words else found.k)
    assert words in found.reason and found.reason.startswith("Nothing that was tried ") == bool(words)
    assert found.reason.count(". ") == 1


def test_where_nothing_is_better_the_advice_is_to_leave_the_model_as_it_is():
    """All of it beyond the noise; a trial of k = 0 can be chosen itself."""
    rows = [make_trial(1, -5.0, 0.2), make_trial(2, -4.9, 0.2), make_trial(4, -9.0, 0.2)]
    for price in (0.0, 0.5):
        found = choose_k(rows, EVEN, Aim(price=price))
        assert found.k in (1, 2) and found.advised_k == 0
        assert "advice is k = 0: leave the model as it is. The exported model is that of k" in found.reason
        assert re.search(r"scores [45]\.\d0 ± 0\.20 less than the backbone\.$", found.reason)
        marks = [line[-9:] for line in format_choice(found).splitlines() if "←" in line]
        assert marks == ["← advised", " ← chosen"]
    with_none = choose_k([*rows, make_trial(0, 0.0, 0.0)])
    assert (with_none.k, with_none.advised_k) == (0, 0)


def test_below_one_layer_is_the_untouched_backbone():
    """So a range of k that begins at 1 has no edge there; one of choices has ends, too."""
    nine = DepthLimit(9, 9)
    assert find_edges({"k": 1}, SearchSpace(parameters={"k": Range(int=(1, 6))}), nine, "x") == ()
    (edge,) = find_edges({"k": 4}, SearchSpace(parameters={"k": Range(choice=(4, 1, 2))}), nine, "x")
    assert (edge.end, edge.command) == ("high", "x --range k=1:8")


@pytest.mark.parametrize(
    ("k", "reach", "words", "command"),
    [
        ((2, 6), DepthLimit(6, 6), "and the backbone has no more than 6 layers to copy", ""),
        (
            (2, 6),
            DepthLimit(9, 6, "--max-new-params 10%", "rich"),
            "where --max-new-params 10% ends it",
            "2:9",
        ),
        (
            (2, 6),
            DepthLimit(30, 6, "--max-new-params 10%", "rich"),
            "where --max-new-params 10% ends it",
            "2:12",
        ),
        (
            (6, 6),
            DepthLimit(30, 6, "--max-new-params 10%", "rich"),
            "where --max-new-params 10% ends it",
            "6:12",
        ),
        ((6, 6), DepthLimit(30, 9, "--max-new-params 10%", "rich"), None, ""),  # nothing but 6 was asked for
    ],
)
def test_what_ends_the_range_of_k_is_said(k, reach, words, command):
    """No command goes beyond all layers; one beyond the budget begins with a larger budget."""
    edges = find_edges({"k": 6}, SearchSpace(parameters={"k": Range(int=k)}), reach, "poor")
    lines = format_choice(replace(choose_k([make_trial(6, 5.0, 0.1)]), edges=edges)).splitlines()
    told = [line for line in lines if line.startswith("k = 6 lies")]
    again = f"; to allow more: rich --range k={command}" if command else ""
    assert told == ([f"k = 6 lies at the high end of its range, {words}{again}"] if words else [])


def test_the_doubled_budget_affords_twice_as_many_layers():
    """Whatever the sizes of the layers, in every form that the flag takes."""
    sizes = [100, 100, 70, 70, 70, 60]
    space = SearchSpace(parameters={"k": Range(int=(1, 6))})
    for text in ("200", "0.2k", "2e2", "20%", " 0.0002M "):
        mosts = [
            limit_depths(space, sizes, parse_amount(each, 1000), "")[1]
            for each in (text, double_amount(text))
        ]
        assert mosts == [2, 4]
