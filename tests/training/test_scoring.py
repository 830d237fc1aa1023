"""Scores: bits per byte as a plain computation has them, changes with honest errors, 0 for no change."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import logits, random_ids, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.config.specs import ScoreWeights
from adept_ray.data.blocks import Blocks
from adept_ray.method.scores import (
    SIDES,
    Change,
    bits_per_byte,
    combine_changes,
    compare_answers,
    compare_losses,
    difference_error,
)
from adept_ray.training import scoring
from adept_ray.training.scoring import measure_document_nats, measure_held_out, score_model

MODEL = tiny_model("qwen3")
EOS = 2
ENDS = (3, 4, 21, 50, 52, 79, 80, 110)  # in the stream; 79 is the last token of a block, 80 the first


def packed():
    """Seven blocks of 16 tokens that cut documents of 1 to 30 tokens; bytes unlike each other."""
    tokens = random_ids(7, 16).numpy().astype(np.int32)
    tokens.ravel()[list(ENDS)] = EOS
    starts = np.isin(np.arange(tokens.size), [0, *(end + 1 for end in ENDS)]).reshape(tokens.shape)
    return Blocks(tokens, np.where(tokens == EOS, 0, tokens % 5 + 1)[:, 1:], starts)


BLOCKS = packed()


def made_up(seed=0, documents=60):
    """Losses before and after, and bytes, of unequal documents."""
    rng = np.random.default_rng(seed)
    size = rng.integers(200, 600, documents)
    before = size * rng.gamma(30, 1 / 30, documents)
    return before, before * rng.normal(0.8, 0.1, documents), size


def sized(sizes):
    """Blocks of a document each, of so many bytes."""
    tokens = np.tile(np.array([5, 6], np.int32), (len(sizes), 1))
    return Blocks(tokens, np.array(sizes)[:, None], np.tile([True, False], (len(sizes), 1)))


def plain_nats():
    """Summed −log p of each document's tokens, but for those at the beginning of a block."""
    ids = torch.from_numpy(BLOCKS.tokens.astype(np.int64))
    log_p = logits(MODEL, ids).double().log_softmax(-1)[:, :-1]
    losses = -log_p.gather(2, ids[:, 1:, None])[..., 0]
    found = [[]]
    for place, token in enumerate(ids.flatten().tolist()):
        if place % 16:
            found[-1].append(float(losses[place // 16, place % 16 - 1]))
        if token == EOS:
            found.append([])
    return [sum(document) for document in found if document]


def test_bits_per_byte_equal_a_plain_computation():
    """They are −log2 p of all predicted tokens over the bytes of their text; each document keeps its own."""
    nats = measure_document_nats(MODEL, BLOCKS, 3)
    assert len(plain_nats()) == len(ENDS)  # one was nothing but a block's first token, one has no end
    assert nats == pytest.approx(plain_nats(), rel=1e-5)
    bits = -sum(math.log2(math.exp(-document)) for document in plain_nats())
    size = sum(token % 5 + 1 for row in BLOCKS.tokens for token in row[1:] if token != EOS)
    assert bits_per_byte(nats, BLOCKS.document_bytes) == pytest.approx(bits / size, rel=1e-5)


def test_micro_batch_changes_no_result():
    """However blocks are batched, each document keeps its loss and its place."""
    one = measure_document_nats(MODEL, BLOCKS, 1)
    for size in (2, 7, 100):
        assert measure_document_nats(MODEL, BLOCKS, size) == pytest.approx(one, rel=1e-6)
    assert len({round(float(nats), 3) for nats in one}) == len(one)


def test_measuring_needs_no_gradient():
    """Scoring leaves no gradient behind and builds no graph."""
    measure_document_nats(MODEL, BLOCKS, 4)
    assert all(parameter.grad is None for parameter in MODEL.parameters())


def test_an_untouched_model_scores_exactly_zero():
    """Without a change the delta, its error and the score are 0, not about 0."""
    nats = measure_document_nats(MODEL, BLOCKS, 3)
    same = compare_losses(nats, nats.copy(), BLOCKS.document_bytes)
    assert (same.delta, same.standard_error) == (0, 0) and same.after == same.before
    assert combine_changes(same, same, ScoreWeights()) == (0, 0)


def test_delta_is_the_relative_reduction_in_percent():
    """A quarter fewer bits is +25, a quarter more −25, whatever the documents' sizes."""
    before, _, size = made_up()
    for factor, delta in ((0.75, 25), (1.25, -25)):
        found = compare_losses(before, factor * before, size)
        assert found.delta == pytest.approx(delta)
        assert found.delta == pytest.approx(100 * (1 - found.after / found.before))
        assert found.standard_error == pytest.approx(0, abs=1e-9)  # every document agrees


@pytest.mark.parametrize("seed", range(3))
def test_standard_error_is_that_of_leaving_documents_out(seed):
    """It agrees with the jackknife, and so says how much other documents would have moved the delta."""
    before, after, size = made_up(seed)
    kept = ~np.eye(len(size), dtype=bool)
    deltas = [compare_losses(before[k], after[k], size[k]).delta for k in kept]
    jackknife = math.sqrt((len(size) - 1) * np.var(deltas))
    assert compare_losses(before, after, size).standard_error == pytest.approx(jackknife, rel=0.05)


def test_standard_error_of_documents_alike_is_the_textbook_s():
    """Where every document had the same loss before, it is s/√n of their own deltas, n small or not."""
    after = np.array([80.0, 95.0, 90.0, 70.0])
    found = compare_losses(np.full(4, 100.0), after, np.full(4, 50))
    assert found.standard_error == pytest.approx(np.std(100 - after, ddof=1) / 2)


def test_a_single_document_has_no_standard_error():
    """One document says nothing about the spread: nan, never 0."""
    found = compare_losses(np.array([3.0]), np.array([2.0]), np.array([4]))
    assert math.isnan(found.standard_error) and found.delta == pytest.approx(100 / 3)


weights = st.floats(0, 3)


@given(weights, weights, st.floats(-50, 50), st.floats(-50, 50), st.floats(0, 9), st.floats(0, 9))
def test_the_score_weighs_both_sides(w_general, w_domain, general, domain, error_general, error_domain):
    """It is w_g·Δ_general + w_d·Δ_domain, and the errors of independent sides add up in squares."""
    sides = Change(1, 1, general, error_general), Change(1, 1, domain, error_domain)
    score, error = combine_changes(*sides, ScoreWeights(general=w_general, domain=w_domain))
    assert score == pytest.approx(w_general * general + w_domain * domain)
    assert error**2 == pytest.approx((w_general * error_general) ** 2 + (w_domain * error_domain) ** 2)


def test_points_are_the_gain_in_accuracy_with_a_paired_error():
    """Items right both before and after say nothing about the change: only those that moved do."""
    before = np.array([1.0] * 50 + [0.0] * 50)
    after = before.copy()
    after[50:60], after[:4] = 1, 0
    found = compare_answers(before, after)
    assert (found.before, found.after, found.delta) == (0.5, 0.56, pytest.approx(6))
    moved = [1] * 10 + [-1] * 4 + [0] * 86
    assert found.standard_error == pytest.approx(100 * np.std(moved, ddof=1) / 10)
    assert compare_answers(before, before).delta == compare_answers(before, before).standard_error == 0
    assert math.isnan(compare_answers(before[:1], after[:1]).standard_error)


@pytest.mark.parametrize("seed", range(3))
def test_the_error_of_a_difference_is_that_of_leaving_documents_out(seed):
    """For two models on the same documents, too: it agrees with the jackknife of their scores' difference."""
    before, after, size = made_up(seed)
    other = after + np.random.default_rng(9).normal(0, 0.05, len(size)) * before
    weights = ScoreWeights(general=0.3, domain=0.7)

    def score(losses, kept):
        held, found = ({side: values[kept] for side in SIDES} for values in (before, losses))
        return score_model(held, found, {side: sized(size[kept]) for side in SIDES}, False, weights)

    kept = ~np.eye(len(size), dtype=bool)
    moved = [score(after, k)["score"] - score(other, k)["score"] for k in kept]
    jackknife = math.sqrt((len(size) - 1) * np.var(moved))
    whole = np.ones(len(size), dtype=bool)
    found = difference_error(*(SimpleNamespace(**score(losses, whole)) for losses in (after, other)), weights)
    # both sides are the same text here, so their errors don't add up in squares but in full
    assert found * 1 / math.hypot(0.3, 0.7) == pytest.approx(jackknife, rel=0.05)


def test_tasks_count_where_a_side_has_them_unless_bits_per_byte_are_asked_for():
    """The score takes points on one side and percent on the other; both measures stay in sight."""
    nats = np.linspace(40, 60, len(BLOCKS.document_bytes))
    right = np.array([0.0, 1, 0, 1, 1, 0, 0, 0])
    before = {"general": nats, "domain": nats, "general tasks": right}
    after = {"general": 0.9 * nats, "domain": 0.8 * nats, "general tasks": 1 - right}
    blocks, weights = {"general": BLOCKS, "domain": BLOCKS}, ScoreWeights(general=0.5, domain=0.25)
    by_tasks = score_model(before, after, blocks, True, weights)
    by_text = score_model(before, after, blocks, False, weights)
    assert by_tasks["score"] == pytest.approx(0.5 * 25 + 0.25 * 20)
    assert by_text["score"] == pytest.approx(0.5 * 10 + 0.25 * 20)
    for found in (by_tasks, by_text):
        assert (found["general_accuracy_before"], found["general_accuracy"]) == (0.375, 0.625)
        assert found["general_bpb"] == pytest.approx(0.9 * found["general_bpb_before"])
        assert "domain_accuracy" not in found


def test_a_side_is_measured_on_its_own_text_and_tasks(monkeypatch):
    """Losses of both sides, and answers of the side that has tasks, by the backbone's own tokenizer."""
    asked = []

    def answer(*given):
        asked.append(given)
        return np.array([1.0, 0.0])

    monkeypatch.setattr(scoring, "load_tokenizer", lambda backbone: f"that of {backbone}")
    monkeypatch.setattr(scoring, "answer_items", answer)
    work = SimpleNamespace(items={"domain": "items"}, backbone="b", micro_batch=3)
    blocks = {"general": BLOCKS, "domain": BLOCKS.take_piece(0, 2)}
    found = measure_held_out(MODEL, work, blocks)
    assert asked == [(MODEL, "that of b", "items", 3)]
    assert found.keys() == {"general", "domain", "domain tasks"} and found["domain tasks"].tolist() == [1, 0]
    for side in SIDES:
        assert len(found[side]) == len(blocks[side].document_bytes)
