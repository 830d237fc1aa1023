"""The trainings of a comparison: each seed's blocks, what all rivals need, how the backbone is measured."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from common import of_one_document

from adept_ray.config.specs import CompareRun
from adept_ray.data.loading import Backbone
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.scores import SIDES
from adept_ray.rivals.methods import list_entrants
from adept_ray.run import comparison
from adept_ray.run.comparison import build_field, list_needs, plan_rivals, split_blocks
from adept_ray.run.context import Context


@pytest.mark.parametrize("passes", [1, 4])
def test_seeds_train_on_blocks_of_their_own_as_often_as_asked(passes):
    """No two seeds share a block, and a training takes its text so many times."""
    run = CompareRun(tokens=64 * 8, passes=passes, seeds=2, seq_len=8)
    tokens = np.arange(1600).reshape(200, 8)
    text = of_one_document(tokens)
    prepared = SimpleNamespace(blocks=dict.fromkeys(("train", "replay", *SIDES), text))
    prepared.blocks["train"] = prepared.blocks["train"].take_first(run.tokens // passes * (run.seeds + 1))
    found = [split_blocks(run, prepared, number, {})["train"].tokens for number in range(3)]
    assert [len(each) for each in found] == [64 // passes] * 3
    assert len(np.unique(np.concatenate(found))) == sum(each.size for each in found)


def test_the_untouched_backbone_is_made_to_fit_as_the_trainings_are(monkeypatch, display):
    """One that no worker can hold is shared out for this, too; each training brings its own fit."""
    run, fit, asked = CompareRun(seeds=1), Fit(sharded=True), []
    backbone = Backbone("a model", "a model", trusted=True)
    text = of_one_document(np.zeros((4, 8), int))
    prepared = SimpleNamespace(
        sources=SimpleNamespace(backbone=backbone, select_items=lambda split: {}),
        sets={},
        blocks=dict.fromkeys(("train", "replay", *SIDES), text),
        importance={"units": {}},
        layer_importance=None,
        before={},
        fit=fit,
    )
    for name, instead in {
        "load_test_blocks": lambda *_: dict.fromkeys(SIDES, text),
        "store_blocks": lambda blocks: blocks,
        "run_job": lambda board, job: asked.append(job.work) or {"nats": {}, "correct": {}},
    }.items():
        monkeypatch.setattr(comparison, name, instead)
    monkeypatch.setattr(Context, "show_jobs", lambda *_: nullcontext())
    context = Context(run, SimpleNamespace(ray=""), display, "board", 7)
    field = build_field(context, prepared)
    assert asked[0].fit == fit and asked[0].backbone == field.work.backbone == backbone
    assert field.work.fit == PLAIN and field.board == "board"


RIVALS = list_entrants(CompareRun(methods=("vanilla", "adept", "adept:placement=receptive", "full")))


def test_rivals_need_the_most_that_one_of_them_does():
    """Of layers in order, of measurements and of what saves memory; of text what all seeds need."""
    run = CompareRun(tokens=2048, passes=2, seeds=3)
    fits = (PLAIN, Fit(recompute=True), PLAIN, Fit(sharded=True))
    rivals = [replace(rival, fit=fit) for rival, fit in zip(RIVALS, fits, strict=True)]
    needs = list_needs(run, rivals, SimpleNamespace(layers=30))
    assert (needs.k_max, needs.train_tokens, needs.replay, needs.reception) == (30, 4096, True, True)
    assert needs.fit == Fit(recompute=True, sharded=True)
    few = list_needs(run, RIVALS[:2], SimpleNamespace(layers=30))
    assert (few.k_max, few.reception, few.fit) == (4, False, PLAIN)


def test_rivals_of_one_size_are_planned_once(monkeypatch, display):
    """What trains nothing isn't planned at all."""
    planned = []
    fit = Fit(recompute=True)
    monkeypatch.setattr(comparison, "plan_fit", lambda *_, what: planned.append(what) or fit)
    context = Context(CompareRun(), SimpleNamespace(), display, "board", 7)
    found = plan_rivals(context, SimpleNamespace(), RIVALS)
    assert planned == ["adept", "full"]
    assert [rival.fit for rival in found] == [PLAIN, fit, fit, fit]
