"""Choosing k: the smallest that is not worse beyond noise, what that leaves open, what other weights pick."""

import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.config.errors import UserError
from adept_ray.config.search_space import Range, SearchSpace
from adept_ray.config.specs import ScoreWeights
from adept_ray.method.scores import combine_changes, compare_losses, standard_error
from adept_ray.search.choice import choose_k, find_candidates, format_choice, rescore
from adept_ray.search.edges import DepthLimit, Edge, find_edges
from adept_ray.search.front import find_front
from adept_ray.search.ranges import double_amount, limit_depths, override_ranges, parse_amount
from adept_ray.search.trials import UNTOUCHED, Reading, Trial

EVEN = ScoreWeights()


def make_trial(k, score, error=1.0, state="finished", name=None):
    """A trial as it is read from an older file: without the pulls of single blocks."""
    return Trial(name or f"trial of {k}", k=k, score=score, score_se=error, state=state)


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


def test_the_smallest_k_within_one_standard_error():
    """Of the k whose best score reaches the best minus the error of the difference, the smallest is taken."""
    rows = [
        make_trial(1, 7.9, 0.6),
        make_trial(2, 9.1, 0.6),
        make_trial(2, 3.0),
        make_trial(4, 9.0, 9.0),
        make_trial(6, 10.0, 0.8),
        make_trial(6, 9.9),
    ]
    found = choose_k(rows)
    assert (found.k, found.score, found.best_k, found.best_score) == (2, 9.1, 6, 10.0)
    assert found.threshold == pytest.approx(9.0)  # the errors of independent scores add up in squares
    assert all(part in found.reason for part in ("k = 2", "9.10", "1.00", "10.00", "k = 6"))


def test_errors_are_paired_block_by_block():
    """What all trials share tells none from another: two scores of huge errors can differ surely."""
    rows = [measure_trial(k, AS_BEFORE, learnt(10 + k)) for k in (1, 2)]
    assert rows[0].score_se > 2 and choose_k(rows).k == 2
    apart = [measure_trial(1, AS_BEFORE, learnt(21)), measure_trial(2, AS_BEFORE, learnt(22, -NOISE))]
    assert choose_k(apart).k == 1
    (_, first, second) = choose_k(apart).depths
    assert first.differs and not second.differs
    assert second.gain_error == pytest.approx(0.5 * standard_error(2 * NOISE / len(NOISE)))
    assert first.gain_error == first.standard_error == pytest.approx(apart[0].score_se)


rows_of_trials = st.lists(
    st.builds(
        make_trial,
        st.integers(1, 5),
        st.integers(-8, 8).map(float) | st.just(math.nan),
        st.floats(0, 5) | st.just(math.nan),
        st.sampled_from(["finished", "finished", "stopped", "failed"]),
    ),
    min_size=1,
)


@given(rows_of_trials, st.none() | st.floats(0, 2))
def test_the_choice_can_be_justified(rows, price):
    """What is chosen was finished, no smaller k is as good, and what beats it does so within the noise."""
    rows.insert(0, make_trial(0, 0.0, 0.0, UNTOUCHED, UNTOUCHED))
    able = [r for r in rows if r.state == "finished" and not math.isnan(r.score)]
    if not able:
        failed = all(r.state == "failed" for r in rows[1:])
        with pytest.raises(UserError, match="trials failed" if failed else "no trial was trained to its end"):
            choose_k(rows, EVEN, price)
        return
    found = choose_k(rows, EVEN, price)
    worth = {id(r): r.score - (price or 0) * r.k for r in able}
    mine = next(r for r in able if r.name == found.trial and r.score == found.score)
    assert found.score == max(r.score for r in able if r.k == found.k)
    assert found.best_score == max(r.score for r in able)
    assert all(worth[id(r)] < worth[id(mine)] for r in able if r.k < found.k)
    top = max(worth.values())
    errors = [math.hypot(r.score_se, mine.score_se) for r in able if worth[id(r)] == top]
    assert top - worth[id(mine)] <= max([0.0, *(e for e in errors if e == e)]) + 1e-9
    assert found.threshold <= found.score + 1e-9


@given(rows_of_trials)
def test_every_choice_can_be_written_and_told(rows):
    """YAML takes it, nothing in it is nan, the reason is two sentences, each k has a line in the table."""
    if not any(r.state == "finished" and not math.isnan(r.score) for r in rows):
        return
    found = choose_k(rows)
    written = yaml.safe_load(yaml.safe_dump(asdict(found)))
    assert written["depths"][0] == asdict(found.depths[0]) and ".nan" not in yaml.safe_dump(asdict(found))
    assert len(re.findall(r"\.(?: |$)", found.reason)) == 2
    ks = [depth.k for depth in found.depths]
    assert ks == sorted(set(ks)) and ks[0] == 0 and found.k in ks
    assert set(ks) | set(found.unfinished) == {0, *(r.k for r in rows)}
    assert (
        format_choice(found).count("\n") == len(ks) + len(found.unfinished)
        and format_choice(found).count("chosen") == 1
    )
    for before, depth in zip(found.depths, found.depths[1:], strict=False):
        assert depth.gain == pytest.approx(depth.score - before.score)
        assert depth.per_layer * (depth.k - before.k) == pytest.approx(depth.gain)


def test_the_table_is_told_to_the_letter():
    """A line for each k and for each end of a range; what isn't known leaves nothing behind."""
    found = choose_k([make_trial(1, 3.0, 1.0), make_trial(2, 9.0, math.nan)])
    edges = (
        Edge("k", 2, "high", "tune --k 4", held="the budget ends there"),
        Edge("base_lr", 0.1, "low", "tune --lr 1"),
        Edge("warmup", 0.5, "high", ""),
    )
    depths = (*found.depths, replace(found.depths[-1], k=4, trials=None, gain=-1.5, differs=True))
    assert format_choice(replace(found, edges=edges, depths=depths)).splitlines() == [
        "  k  trials  score           against the next smaller k",
        "  0       –  0  untouched",
        "  1       1  +3.00 ± 1.00    +3.00 ± 1.00",
        "  2       1  +9.00           +6.00 ← chosen",
        "  4       –  +9.00           -1.50",
        "k = 2 lies at the high end of its range, the budget ends there; to allow more: tune --k 4",
        "base_lr = 0.1 lies at the low end of its range; to widen it: tune --lr 1",
        "warmup = 0.5 lies at the high end of its range",
    ]
    assert found.reason.endswith(
        ". 1 layer fewer (k = 1) would score 6.00 less; no larger k was trained to its end."
    )


def test_trials_that_did_not_finish_do_not_count():
    """A stopped, failed or interrupted trial saw fewer tokens, so its score is not compared, only counted."""
    rows = [make_trial(5, 50.0, state=state) for state in ("stopped", "failed", "interrupted")]
    found = choose_k([*rows, make_trial(5, 1.0)])
    assert (found.k, found.score, found.depths[1].trials) == (5, 1.0, 4)
    found = choose_k([*rows, make_trial(7, 1.0)])
    assert found.unfinished == {5: 3} and "  5       3  –               none was trained" in format_choice(
        found
    )
    with pytest.raises(UserError, match="search again with a larger --trials"):
        choose_k(rows)


def test_when_every_trial_failed_the_first_reason_is_given():
    """The sentence counts the trials and quotes the innermost line of the first error."""
    rows = [replace(make_trial(k, math.nan, state="failed"), error=f"reason {k}") for k in (2, 3)]
    with pytest.raises(UserError, match="all 2 trials failed; the first with: reason 2"):
        choose_k([make_trial(0, 0.0, 0.0, UNTOUCHED), *rows])


def test_layers_have_to_earn_what_is_asked_of_each():
    """Two points for each of two layers pay at a price of 1.5, four more for half a point each don't."""
    rows = [make_trial(2, 6.0, 0.0), make_trial(4, 10.0, 0.0), make_trial(8, 12.0, 0.0)]
    picked = {price: choose_k(rows, EVEN, price).k for price in (None, 0.4, 0.6, 1.5, 2.5)}
    assert picked == {None: 8, 0.4: 8, 0.6: 4, 1.5: 4, 2.5: 2}
    assert "and more layers don't earn 1.5 points each" in choose_k(rows, EVEN, 1.5).reason
    assert "+4.00 ± 0.00, +2.00 a layer ← chosen" in format_choice(choose_k(rows, EVEN, 1.5))


def test_the_reason_says_what_neighbours_would_change():
    """Fewer and more layers, by name and by how much; a choice that could be chance says so."""
    reason = choose_k([make_trial(2, 6.0, 0.1), make_trial(4, 6.1, 3.0)]).reason
    assert "2 layers fewer (the untouched backbone) would score 6.00 ± 0.10 less" in reason.replace("L", "l")
    assert "2 layers more (k = 4) would score 0.10 ± 3.00 more (within the noise)" in reason
    assert "no larger k was trained to its end" in choose_k([make_trial(3, 5.0, 0.1)]).reason
    assert "can't be told from the untouched backbone" in choose_k([make_trial(3, 1.0, 0.9)]).reason


# --- trade-offs -----------------------------------------------------------------------------------


TRADES = [
    measure_trial(1, learnt(4), learnt(6), "even"),
    measure_trial(2, learnt(1), learnt(12), "domain"),
    measure_trial(2, learnt(8), learnt(1), "general"),
    measure_trial(3, learnt(3), learnt(5), "beaten"),
]


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
    assert picks == {0.0: "domain", 0.5: "domain", 0.9: "general"}
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
        *TRADES,
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
    "score, words",
    [
        (0.3, "though it can't be told from the untouched backbone"),
        (5.0, "within one standard error of it. "),
    ],
)
def test_what_speaks_against_a_choice_is_said(score, words):
    """Of a score within its noise of 0, at 95 %."""
    assert words in choose_k([make_trial(1, score, 0.2)]).reason


@pytest.mark.parametrize(
    ("rows", "price", "words"),
    [
        (
            [make_trial(1, -0.9, 0.98), make_trial(4, -1.5, 1.1)],
            None,
            "is more than one standard error better than the",
        ),
        (
            [make_trial(8, 0.3, 0.4)],
            None,
            "is more than one standard error better than the untouched backbone, so",
        ),
        (
            [make_trial(1, 0.5, 0.1), make_trial(2, 0.4, 0.1)],
            2.0,
            "earns 2 points a layer by more than one standard error",
        ),
        ([make_trial(8, 0.5, 0.4)], None, ""),
        ([make_trial(1, 2.2, 0.1)], 2.0, ""),
        (
            [make_trial(2, 0.5, 0.1), make_trial(8, 0.7, 3.0)],
            None,
            "",
        ),  # the best is too noisy, but not the chosen one
    ],
)
def test_the_advice_is_that_of_the_smallest_k_with_the_untouched_backbone_among_them(rows, price, words):
    """The rule that prefers the smaller k doesn't end at 1: what isn't surely better isn't advised."""
    found = choose_k(rows, EVEN, price)
    assert found.k == rows[0].k and found.advised_k == (0 if words else found.k)
    assert words in found.reason and found.reason.startswith("Nothing that was tried ") == bool(words)
    assert found.reason.count(". ") == 1


def test_where_nothing_is_better_the_advice_is_to_leave_the_model_as_it_is():
    """All of it beyond the noise; a trial of k = 0 can be chosen itself."""
    rows = [make_trial(1, -5.0, 0.2), make_trial(2, -4.9, 0.2), make_trial(4, -9.0, 0.2)]
    for price in (None, 0.5):
        found = choose_k(rows, EVEN, price)
        assert (found.k, found.advised_k) == (1, 0)
        assert found.reason.startswith(
            "Nothing that was tried is better than the untouched backbone, so the "
        )
        assert (
            "advice is k = 0: leave the model as it is. The exported model is that of k = 1" in found.reason
        )
        assert found.reason.endswith("scores 5.00 ± 0.20 less than the backbone.")
        assert [line[-9:] for line in format_choice(found).splitlines()[1:3]] == ["← advised", " ← chosen"]
    assert choose_k([*rows, make_trial(5, 0.3, 0.2)]).advised_k == 5
    assert (
        choose_k([*rows, make_trial(0, 0.0, 0.0)]).k,
        choose_k([*rows, make_trial(0, 0.0, 0.0)]).advised_k,
    ) == (0, 0)


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
