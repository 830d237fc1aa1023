"""Stage 1 of a run: what the cache holds is read, what it lacks is measured."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from common import one_document_each, store_corpus, tiny_model

from adept_ray.config.specs import RunSpec
from adept_ray.data.corpora import CorpusFiles
from adept_ray.data.loading import Backbone
from adept_ray.data.mixing import MixedBlocks, MixedCorpus
from adept_ray.run import block_sets, model_checks
from adept_ray.run import stage_one as stage_module
from adept_ray.run.context import Context
from adept_ray.run.sources import Needs, Sources
from adept_ray.run.stage_one import StageOne, measure_reception

TEXT = one_document_each(np.full((8, 4), 5))
CORPUS = MixedCorpus((CorpusFiles(Path(), "f", "c", ""),))
SETS = {
    side: MixedBlocks((SimpleNamespace(fingerprint=name, open_split=lambda *_: TEXT),), (side,))
    for side, name in (("general", "f"), ("domain", "g"))
}


@pytest.fixture
def asked(monkeypatch):
    """The jobs that a crew is given; it measures nothing real."""
    jobs = []

    def run_job(board, job):
        jobs.append(job)
        work = job.work
        return {
            "importance": {"layers": []} if work.importance else None,
            "nats": {side: [1.0, 2.0] for side in work.held_out},
            "correct": {side: [1.0] for side in work.items},
            "reception": [0.5],
        }

    monkeypatch.setattr(stage_module, "run_job", run_job)
    monkeypatch.setattr(ray, "put", lambda value: value)
    return jobs


def stage_in(folder, display, needs=None, trusted=False, **settings):
    """Stage 1 of a run whose cache is that folder."""
    backbone = Backbone("b", "b", "r", "f", trusted=trusted)
    run = RunSpec(cache=str(folder), **settings)
    context = Context(run, SimpleNamespace(), display, "board", 7)
    blocks = {"probe": TEXT, "general": TEXT, "domain": TEXT}
    sources = Sources(backbone, None, CORPUS, CORPUS)
    return StageOne(context, sources, SETS, blocks, needs or Needs(4))


def test_what_is_measured_once_is_read_afterwards(tmp_path, display, asked):
    """Importance with where it comes from, and both sides' losses; the second run asks no worker."""
    importance, before = stage_in(tmp_path, display).read_or_measure()
    (job,) = asked
    assert (job.work.importance, set(job.work.held_out)) == (True, {"general", "domain"})
    assert set(job.blocks) == {"probe", "general", "domain"}
    assert importance["made_from"]["backbone"] == "b"
    assert before == {"general": [1.0, 2.0], "domain": [1.0, 2.0]}
    assert stage_in(tmp_path, display).read_or_measure() == (importance, before) and len(asked) == 1


def test_only_what_is_missing_is_measured(tmp_path, display, asked):
    """Of a lost file that side alone; with more validation tokens both sides' losses, and no importance."""
    stage = stage_in(tmp_path, display)
    stage.read_or_measure()
    Path(stage.locate_losses()["domain"]).unlink()
    stage.read_or_measure()
    assert (asked[1].work.importance, asked[1].work.held_out) == (False, ("domain",))
    assert set(asked[1].blocks) == {"probe", "domain"}
    stage_in(tmp_path, display, validation_tokens=999).read_or_measure()
    assert not asked[2].work.importance and set(asked[2].work.held_out) == {"general", "domain"}


@pytest.mark.parametrize(("probe", "same"), [("exhaustive", True), ("raced", False)])
def test_an_exhaustive_probe_serves_every_depth(tmp_path, display, probe, same):
    """A raced one tells apart no layers beyond its own, so its file is that of its depth."""
    places = {stage_in(tmp_path, display, Needs(k), probe=probe).locate_importance() for k in (2, 4)}
    assert (len(places) == 1) == same


def test_reception_is_kept_like_the_rest(tmp_path, display, asked):
    """It is measured on training text, and read the second time."""
    stage = stage_in(tmp_path, display)
    assert measure_reception(stage) == measure_reception(stage) == [0.5]
    (job,) = asked
    assert job.work.reception and set(job.blocks) == {"reception"}
    (file,) = (tmp_path / "receptions").glob("*.json")
    assert json.loads(file.read_text()) == {"reception": [0.5]}


@pytest.mark.parametrize("trusted", [True, False])
def test_trust_reaches_all_that_loads_the_backbone(tmp_path, monkeypatch, display, asked, trusted):
    """Its config, the tokenizer of the blocks, and both measurements of stage 1."""
    heard = {}

    def load_config(backbone):
        heard["config"] = backbone.trusted
        return tiny_model().config

    def build_blocks(plan, *_):
        heard["blocks"] = plan.backbone.trusted

    monkeypatch.setattr(model_checks, "load_config", load_config)
    monkeypatch.setattr(block_sets, "build_blocks", build_blocks)
    corpus = MixedCorpus((store_corpus(tmp_path, "c", ["a document"]),))
    stage = stage_in(tmp_path, display, trusted=trusted)
    stage = replace(stage, sources=replace(stage.sources, general=corpus, domain=corpus))
    model_checks.load_checked_config(stage.sources.backbone, 8)
    plans = block_sets.plan_packing(stage.context.run, stage.sources)
    block_sets.build_block_sets(stage.context, plans, lambda *_: None)
    stage.read_or_measure()
    measure_reception(stage)
    heard |= {job.name: job.work.backbone.trusted for job in asked}
    assert heard == dict.fromkeys(("config", "blocks", "probe", "reception"), trusted)
