"""What every command makes ready: whether what is held out can say how sure a score is."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from common import of_one_document, one_document_each

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec, TrainingSpec
from adept_ray.data.loading import Backbone
from adept_ray.data.mixing import MixedBlocks
from adept_ray.method.fit import Fit
from adept_ray.run import fetching, preparing
from adept_ray.run.context import Context
from adept_ray.run.preparing import FEW, check_sample_sizes, prepare, select_blocks, warn_of_unjudged
from adept_ray.run.sources import Needs


def blocks(documents):
    return one_document_each(np.full((documents, 4), 5))


def sources(items=None):
    """Sources with so many items on the general side, if any."""
    return SimpleNamespace(select_items=lambda split: {"general": range(items)} if items else {})


def warnings(run, general, domain, found=None):
    """What is warned of."""
    lines = []
    check_sample_sizes(
        run, "validation", {"general": general, "domain": domain}, found or sources(), lines.append
    )
    return lines


def test_a_single_document_is_refused():
    """However many blocks it fills: a score without an error would be taken for certain."""
    long = of_one_document(np.full((12, 4), 5))
    with pytest.raises(UserError, match=r"for validation is a single document.*--validation-tokens"):
        warnings(RunSpec(), blocks(FEW), long)


def test_few_documents_are_warned_of():
    """Once for each side, with the flag that gives more; enough of them give no line."""
    (line,) = warnings(RunSpec(), blocks(FEW), blocks(FEW - 1))
    assert f"'medical' for validation is {FEW - 1} documents" in line and "--validation-tokens" in line
    assert warnings(RunSpec(), blocks(FEW), blocks(FEW)) == []


def test_a_corpus_without_a_held_out_block_is_named():
    """With how many tokens it would have one; none is named that has one."""
    run = RunSpec(seq_len=128, validation_tokens=1536, test_tokens=128 * 50)
    sets = {"domain": MixedBlocks((), ("a", "b"), (0.98, 0.02)), "general": MixedBlocks((), ("c",))}
    lines = []
    warn_of_unjudged(run, sets, lines.append)
    assert lines == [
        "'b' is 2.0% of the domain text, and no block of it is held out for validation, so nothing there is "
        "measured on it: with --validation-tokens 6400 it has one"
    ]
    warn_of_unjudged(RunSpec(seq_len=128, validation_tokens=6400, test_tokens=6400), sets, lines.append)
    assert len(lines) == 1


def test_items_count_where_a_side_is_judged_by_them():
    """A side that is scored by tasks takes its error from the items, unless bits per byte are asked for."""
    assert warnings(RunSpec(), blocks(1), blocks(FEW), sources(FEW)) == []
    with pytest.raises(UserError, match=r"a single item.*--task-items"):
        warnings(RunSpec(), blocks(FEW), blocks(FEW), sources(1))
    with pytest.raises(UserError, match="a single document"):
        warnings(RunSpec(score="bpb"), blocks(1), blocks(FEW), sources(FEW))


def test_a_model_that_is_shared_out_has_no_reception(display):
    """Reception is measured of a whole model; that is refused before anything is read or measured."""
    context = Context(RunSpec(), SimpleNamespace(), display, "board", 7)
    needs = Needs(4, reception=True, fit=Fit(sharded=True))
    with pytest.raises(UserError, match="placement receptive needs the whole model on each worker"):
        prepare(context, sources(), needs)


@pytest.mark.parametrize("domain", [True, False])
@pytest.mark.parametrize("replay", [True, False])
def test_a_run_uses_the_blocks_that_it_needs(domain, replay):
    """Its training text is as long as was asked for, and general text is loaded if it is trained on."""
    loaded = []

    def make_set(side, name):
        def open_split(split, tokens, seq_len, name):
            loaded.append((side, split, name))
            return blocks(64)

        return MixedBlocks((SimpleNamespace(open_split=open_split),), (name,))

    run = RunSpec(seq_len=8, probe_tokens=32, validation_tokens=24, remeasure_tokens=64)
    sets = {side: make_set(side, str(getattr(run, side))) for side in ("general", "domain")}
    found = select_blocks(run, SimpleNamespace(domain=domain), sets, Needs(4, 80, replay=replay))
    names = ["probe", "remeasure", "general"] + domain * (["domain", "train"] + replay * ["replay"])
    assert list(found) == names
    assert len(found["remeasure"]) == len(found["probe"])  # no more is measured again than is probed
    assert (("general", "train", "boolq") in loaded) == (domain and replay)
    if domain:
        assert ("domain", "train", "medical") in loaded
        assert len(found["train"]) == len(blocks(64).take_first(80))


def test_what_the_hub_has_comes_before_anything_is_built_of_it(display, monkeypatch):
    """When the plan is known to fit: weights on every node, then the text that isn't here; no local one.

    What of it isn't read is said.
    """
    done = []
    monkeypatch.setattr(fetching, "fetch_to_nodes", lambda backbone, _: done.append(backbone.name))
    monkeypatch.setattr(fetching, "fill_corpus", lambda corpus, *_: done.append(corpus.name))
    monkeypatch.setattr(fetching, "check_tokenizer", lambda *_: done.append("tokenizer"))
    monkeypatch.setattr(preparing, "plan_packing", lambda *_: {})
    monkeypatch.setattr(preparing, "build_block_sets", lambda *_: done.append("blocks") or {})
    monkeypatch.setattr(preparing, "select_blocks", lambda *_: sys.exit())
    display.show_stage = lambda *_: nullcontext(print)
    display.say = done.append
    far, here = (
        SimpleNamespace(name=name, is_to_be_filled=name == "far", omitted="left out: a.pdf" * (name == "far"))
        for name in ("far", "here")
    )
    context = Context(RunSpec(), SimpleNamespace(), display, "board", 7)
    for backbone in (Backbone("theirs", "org/theirs", revision="c0ffee"), Backbone("mine", "/mine")):
        corpora = {"general": here, "domain": far}
        sources = SimpleNamespace(
            backbone=backbone, config=SimpleNamespace(vocab_size=9), list_corpora=lambda found=corpora: found
        )
        with pytest.raises(SystemExit):
            prepare(context, sources, Needs(1))
    told = "far: left out: a.pdf"
    assert done == ["theirs", "tokenizer", "far", told, "blocks", "far", told, "blocks"]


@pytest.mark.parametrize(
    ("settings", "sides"),
    [
        ({}, ("domain",)),
        ({"replay": 0.2}, ("general", "domain")),
        ({"text": "general"}, ("general",)),
        ({"text": "general", "replay": 0.2}, ("general",)),
    ],
)
def test_the_sides_that_are_trained_on_follow_from_the_settings(settings, sides):
    """General text alone, where that is the text; both where some is mixed in."""
    share = TrainingSpec(**settings).general_share
    assert Needs(4, 80, replay=share, least_replay=share).trained_on == sides
