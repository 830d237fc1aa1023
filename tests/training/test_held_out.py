"""Readings on the way are on half of the held-out text, the last one of a training is on all of it."""

from pathlib import Path

import numpy as np
import pytest
from test_scoring import BLOCKS as CUT
from test_scoring import MODEL
from trainings import BLOCKS, CPU, changed, stories

from adept_ray.data.benchmark_tasks import TaskItems
from adept_ray.data.blocks import Blocks
from adept_ray.method.scores import SIDES, tasks_key
from adept_ray.training import held_out as held_out_module
from adept_ray.training.callbacks import Callbacks
from adept_ray.training.held_out import FEWEST, HeldOut
from adept_ray.training.scoring import measure_document_nats
from adept_ray.training.stage1 import run_probe
from adept_ray.training.stage2 import train
from adept_ray.training.work import ProbeWork

# Documents of two thirds of a block each, so that some are cut by a block's end.
LONG = {side: stories(number, number, 1) for side, number in (("general", 12), ("domain", 10))}
LONG = {
    side: Blocks(each.tokens, each.bytes, np.arange(each.tokens.size).reshape(each.tokens.shape) % 10 == 0)
    for side, each in LONG.items()
}


def test_half_of_the_blocks_has_whole_documents_as_in_all_of_them():
    """A document that goes on in the other half isn't measured; the others are what they are in the whole."""
    half = CUT.take_half()
    assert len(half) == 4 and len(CUT) == 7
    nats, whole = measure_document_nats(MODEL, half, 3), measure_document_nats(MODEL, CUT, 3)
    count = half.counted
    assert 1 < count == len(nats) == len(half.document_bytes) < len(whole)
    assert nats == pytest.approx(whole[:count], rel=1e-6)
    assert np.array_equal(half.document_bytes, CUT.document_bytes[:count])
    assert (CUT.documents[len(half) :] == count).any()  # it is the first one that goes on


def test_half_of_the_items_is_every_second_of_each_task():
    """And what was measured of all of them is found again for these."""
    items = TaskItems({"both": ("a", "b")}, {"a": tuple(range(7)), "b": (3, 5, 8, 9)}, {}, "", Path())
    answers = np.arange(11.0)
    whole = HeldOut(dict.fromkeys(SIDES, CUT), {"domain": items}, {tasks_key("domain"): answers})
    half = whole.take_half()
    assert half.items["domain"].numbers == {"a": (0, 2, 4, 6), "b": (3, 8)}
    expected = [0, 2, 4, 6, 7, 9]
    assert half.before[tasks_key("domain")].tolist() == expected
    assert half.select({tasks_key("domain"): answers})[tasks_key("domain")].tolist() == expected


def test_a_side_of_few_documents_or_items_keeps_all():
    """Nothing is gained by an error that says nothing."""
    items = TaskItems({"a": ("a",)}, {"a": tuple(range(2 * FEWEST - 2))}, {}, "", Path())
    few = HeldOut({side: BLOCKS[side] for side in SIDES}, {"general": items}, {})
    assert few.take_half() == few


def reports_of(work, **options):
    """What a training says that is judged by the long texts."""
    found = []
    callbacks = Callbacks(lambda metrics, saved: found.append((metrics, saved is not None)), **options)
    train(work, BLOCKS | LONG, CPU, callbacks)
    return found


@pytest.fixture(scope="module")
def judged(work):
    """A training of four steps and as many reports."""
    measured = run_probe(ProbeWork(work.backbone, 2, importance=False, held_out=SIDES), LONG, CPU)
    return changed(work, before=measured["nats"], tokens=work.count_tokens(4), reports=4)


def test_the_last_reading_is_on_all_and_those_before_it_on_half(judged):
    """The curve is on the same half to its end, since other documents would look like another model."""
    found = [metrics for metrics, _ in reports_of(judged)]
    counts = [[len(metrics["pulls"][side]) for side in SIDES] for metrics in found]
    assert counts == 3 * [[9, 8]] + [[20, 16]]
    assert [metrics["read_on_all"] for metrics in found] == [False] * 3 + [True]
    (once,) = [metrics for metrics, _ in reports_of(changed(judged, reports=1))]
    assert {name: found[-1][name] for name in ("score", "score_se", "pulls")} == {
        name: once[name] for name in ("score", "score_se", "pulls")
    }
    curve = [row["score"] for row in found[-1]["curve"]]
    assert curve[:3] == [metrics["score"] for metrics in found[:3]] and curve[3] != once["score"]
    assert [row["score"] for row in once["curve"]] == [once["score"]]


def test_a_training_that_is_stopped_is_read_on_all_at_its_end(judged, monkeypatch):
    """The same report comes once more, with nothing to save and the numbers of a reading on all."""
    found = reports_of(judged, should_stop=lambda report: report == 2)
    assert [(m["report"], m["read_on_all"], saved) for m, saved in found] == [
        (1, False, True),
        (2, False, True),
        (2, True, False),
    ]
    curve = [row["score"] for row in found[2][0]["curve"]]
    assert curve == pytest.approx([metrics["score"] for metrics, _ in found[:2]])
    monkeypatch.setattr(held_out_module, "FEWEST", 99)
    plain = reports_of(judged, should_stop=lambda report: report == 2)
    assert len(plain) == 2
    for name in ("score", "score_se", "pulls", "general_bpb", "domain_delta", "loss", "scales"):
        assert found[2][0][name] == plain[1][0][name]
