"""Backbone and corpora of a run: what has changed since its beginning is refused before its code runs."""

from types import SimpleNamespace

import pytest

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.data.loading import Backbone
from adept_ray.run import model_checks
from adept_ray.run import sources as sources_module
from adept_ray.run import texts as texts_module
from adept_ray.run.context import Session
from adept_ray.run.sources import find_sources
from adept_ray.run.terminal import Display
from adept_ray.run.texts import STEP_BYTES, count_text_bytes


def session(run=None, **about):
    """A session in a folder whose run.json holds that."""
    return Session(run or RunSpec(), SimpleNamespace(read_record=lambda: about), Display())


@pytest.fixture
def texts(monkeypatch):
    """Both corpora and the backbone, found without looking for them."""
    files = {name: SimpleNamespace(name=name, fingerprint=f"{name} now") for name in ("boolq", "medical")}
    backbone = Backbone("mine", "mine", fingerprint="now")
    monkeypatch.setattr(sources_module, "resolve_backbone", lambda *_: backbone)
    monkeypatch.setattr(sources_module, "load_checked_config", lambda *_: None)
    monkeypatch.setattr(texts_module, "find_corpus", lambda name, *_: files[name])


@pytest.mark.parametrize("known", ["by the run", "by what it was made from"])
def test_another_backbone_than_before_is_refused_before_its_code_runs(monkeypatch, known):
    """A run continues with what it began with: reading a config may already run code of a backbone."""
    found = Backbone("mine", "mine", fingerprint="now", trusted=True)
    monkeypatch.setattr(sources_module, "resolve_backbone", lambda *_: found)
    monkeypatch.setattr(model_checks, "load_config", lambda *_: pytest.fail("its code ran"))
    then = {"backbone": "then"}
    with pytest.raises(UserError, match="the backbone 'mine' has changed since"):
        if known == "by the run":
            find_sources(session(fingerprints=then), made_from={"backbone": "now"})
        else:
            find_sources(session(), made_from=then)


@pytest.mark.parametrize("side", ["general", "domain"])
def test_another_text_than_before_is_refused(texts, side):
    """One line more in a file is another corpus; one about which nothing is known from before will do."""
    now = find_sources(session()).fingerprints
    assert find_sources(session(fingerprints=now)).fingerprints == now
    assert find_sources(session(), made_from=now).fingerprints == now
    with pytest.raises(UserError, match=f"the {side} corpus '{getattr(RunSpec(), side)}' has changed"):
        find_sources(session(fingerprints={**now, f"{side} corpus": "then"}))


def test_text_of_the_hub_follows_from_the_tokens():
    """The most that any split needs, by its share, in whole steps; each side by what it trains on."""
    small = RunSpec()
    assert count_text_bytes(small, "general", 0) == count_text_bytes(small, "domain", 0) == STEP_BYTES
    trained = count_text_bytes(small, "domain", 10**9)
    assert 6e9 / 0.9 <= trained < 6e9 / 0.9 + STEP_BYTES and trained % STEP_BYTES == 0
    assert count_text_bytes(RunSpec(test_tokens=10**8), "general", 0) >= 6e8 / 0.4


def test_a_probe_needs_no_text_to_learn(texts):
    """Its sources have the general corpus alone."""
    sources = find_sources(session(), with_domain=False)
    assert sources.domain is None and set(sources.fingerprints) == {"backbone", "general corpus"}


def test_too_many_workers_are_refused_before_anything_is_fetched(monkeypatch):
    """This machine's CPUs are counted first."""
    monkeypatch.setattr(sources_module, "resolve_backbone", lambda *_: pytest.fail("it was fetched"))
    with pytest.raises(UserError, match="--workers 4000: this machine has"):
        find_sources(session(RunSpec(workers=4000)))
