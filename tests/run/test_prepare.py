"""What every command makes ready: whether what is held out can say how sure a score is."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray
from common import of_one_document, one_document_each, tiny_model

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.data.loading import Backbone
from adept_ray.method.fit import PLAIN
from adept_ray.run import preparing as prepare
from adept_ray.run import sources as sources_module
from adept_ray.run.preparing import FEW, check_sample_sizes
from adept_ray.run.sources import Sources, find_sources
from adept_ray.run.terminal import Display


def blocks(documents):
    return one_document_each(np.full((documents, 4), 5))


def sources(items=None):
    """Sources with so many items on the general side, if any."""
    return SimpleNamespace(items_of=lambda split: {"general": range(items)} if items else {})


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


def test_items_count_where_a_side_is_judged_by_them():
    """A side that is scored by tasks takes its error from the items, unless bits per byte are asked for."""
    assert warnings(RunSpec(), blocks(1), blocks(FEW), sources(FEW)) == []
    with pytest.raises(UserError, match=r"a single item.*--task-items"):
        warnings(RunSpec(), blocks(FEW), blocks(FEW), sources(1))
    with pytest.raises(UserError, match="a single document"):
        warnings(RunSpec(score="bpb"), blocks(1), blocks(FEW), sources(FEW))


def test_another_backbone_than_before_is_refused_before_its_code_runs(monkeypatch):
    """What a run goes on with is what it began with: reading a config may already run code of a backbone."""
    found = Backbone("mine", "mine", None, "now", "", trusted=True)
    monkeypatch.setattr(sources_module, "resolve_backbone", lambda *_: found)
    monkeypatch.setattr(sources_module, "load_config", lambda *_: pytest.fail("its code ran"))
    with pytest.raises(UserError, match="the backbone 'mine' has changed since"):
        find_sources(RunSpec(), Display(), made_from={"backbone": "then"})


@pytest.mark.parametrize("side", ["general", "domain"])
def test_another_text_than_before_is_refused(monkeypatch, side):
    """One line more in a file is another corpus; one about which nothing is known from before will do."""
    files = {name: SimpleNamespace(name=name, fingerprint=f"{name} now") for name in ("boolq", "medical")}
    backbone = Backbone("mine", "mine", None, "now", "")
    monkeypatch.setattr(sources_module, "resolve_backbone", lambda *_: backbone)
    monkeypatch.setattr(sources_module, "load_checked_config", lambda *_: None)
    monkeypatch.setattr(sources_module, "resolve_corpus", lambda name, *_: files[name])
    now = find_sources(RunSpec(), Display()).fingerprints
    assert find_sources(RunSpec(), Display(), made_from=now).fingerprints == now
    with pytest.raises(UserError, match=f"the {side} corpus '{getattr(RunSpec(), side)}' has changed"):
        find_sources(RunSpec(), Display(), made_from={**now, f"{side} corpus": "then"})


@pytest.mark.parametrize("trusted", [True, False])
def test_trust_reaches_all_that_loads_the_backbone(tmp_path, monkeypatch, trusted):
    """Its config, the tokenizer of the blocks, and both measurements of stage 1."""
    heard = {}
    backbone = Backbone("b", "b", "r", "f", trusted=trusted)
    text = blocks(FEW)
    each = SimpleNamespace(name="c", fingerprint="f", files=(), load=lambda *_: text)
    run = RunSpec(cache=str(tmp_path))
    found = Sources(backbone, None, each, each)

    def load_config(backbone):
        heard["config"] = backbone.trusted
        return tiny_model().config

    def build_blocks(plan, *_):
        heard["blocks"] = plan.backbone.trusted

    def do(board, task):
        heard[task.name] = task.work.backbone.trusted
        return {"importance": {}, "nats": {}, "correct": {}, "reception": [0.0]}

    monkeypatch.setattr(sources_module, "load_config", load_config)
    for name, instead in (("build_blocks", build_blocks), ("run_job", do)):
        monkeypatch.setattr(prepare, name, instead)
    monkeypatch.setattr(ray, "put", lambda value: value)
    sources_module.load_checked_config(backbone, 8)
    prepare.token_blocks(run, found, lambda *_: None, print)
    sets = {"general": each, "domain": each}
    cached = iter((None, {"nats": [1.0]}, {"nats": [1.0]}))  # no importance yet, but the losses
    prepare.measure_stage_one(run, found, sets, {"probe": text}, None, 1, PLAIN, lambda _: next(cached))
    prepare.measure_reception(run, found, sets, None, PLAIN, lambda _: None)
    assert heard == dict.fromkeys(("config", "blocks", "probe", "reception"), trusted)
