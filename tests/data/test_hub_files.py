"""A backbone on the hub: what is missing of it, what one may not have, what goes wrong, and no hub at all."""

from pathlib import Path

import pytest
from common import save_tiny_backbone
from hub_stand_in import READER, STRANGER
from huggingface_hub import constants

from adept_ray.config.errors import UserError
from adept_ray.data import hub_client, loading
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.hub_faults import explain_hub_error
from adept_ray.data.hub_files import HubFiles, fetch_files, fetch_missing_files, find_snapshot, look_for_files
from adept_ray.data.loading import load_config, load_model, load_tokenizer

REPO = "org/model"
EXTRA = ("README.md", "consolidated.safetensors", "original/model.safetensors")  # which nobody needs


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Name → bytes of the files of a repository."""
    folder = save_tiny_backbone(tmp_path_factory.mktemp("backbone"))
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return files | dict.fromkeys(EXTRA, bytes(1000))


@pytest.fixture
def repository(hub, content):
    loading._keep_tokenizer.cache_clear()
    return hub.put(REPO, content, "model")


def fetch(repository):
    """Fetch all that a backbone needs; returns the bytes that came."""
    *_, came = fetch_files(REPO, repository.commit)
    return came


def explain(repository):
    """What a fetch that fails ends in."""
    with pytest.raises(Exception) as told:
        fetch(repository)
    sentence = explain_hub_error(REPO, told.value)
    assert "\n" not in sentence
    return sentence


def refused(tmp_path):
    """What is said of a backbone that can't be used; it is one line."""
    with pytest.raises(UserError) as told:
        resolve_backbone(REPO, tmp_path / "cache")
    assert "\n" not in str(told.value)
    return str(told.value)


# --- what is there --------------------------------------------------------------------------------


def test_what_is_missing_is_fetched_and_then_nobody_asks_the_hub(hub, repository, content, tmp_path):
    """Weights, config and tokenizer, and nothing else; config, tokenizer and model come from the cache."""
    needed = sum(len(each) for name, each in content.items() if name not in EXTRA)
    assert look_for_files(REPO, repository.commit) == HubFiles(needed)
    assert fetch(repository) == needed
    backbone = resolve_backbone(REPO, tmp_path)
    hub.clear()
    assert look_for_files(REPO, repository.commit) == HubFiles()
    load_config(backbone), load_model(backbone), load_tokenizer(backbone)
    assert hub.log == []


def test_a_tokenizer_is_asked_for_once_and_may_be_changed(hub, repository, tmp_path):
    """A second scoring asks nobody, and hears nothing of what the first one set."""
    backbone = resolve_backbone(REPO, tmp_path)
    first = load_tokenizer(backbone)
    first.padding_side, asked = "elsewhere", len(hub.log)
    assert load_tokenizer(backbone).padding_side != "elsewhere" and len(hub.log) == asked


def test_a_cached_backbone_needs_no_hub(hub, repository, tmp_path, silence):
    """Its commit was written down nowhere but in the folder's name, since it was fetched by that."""
    before = resolve_backbone(REPO, tmp_path)
    fetch(repository)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("refs/*"))
    silence()
    assert resolve_backbone(REPO, tmp_path) == before
    load_config(before), load_tokenizer(before), load_model(before)
    assert look_for_files(REPO, str(before.revision)) == HubFiles() and hub.said == []


def test_a_run_goes_on_with_its_own_commit(hub, repository, content, tmp_path):
    """It is in the cache, so nobody asks whether there is a newer one; a new run takes that."""
    before = resolve_backbone(REPO, tmp_path)
    fetch(repository)
    repository.push(**{"config.json": content["config.json"] + b" "})
    hub.clear()
    assert resolve_backbone(REPO, tmp_path, made_from=before.fingerprint) == before and hub.log == []
    assert resolve_backbone(REPO, tmp_path).revision == repository.commit != before.revision


def test_half_a_model_in_the_cache_needs_the_hub(hub, repository, monkeypatch):
    """Without weights it can't be trained offline, and that is said before a worker finds out."""
    fetch(repository)
    (weights,) = Path(constants.HF_HUB_CACHE).rglob("snapshots/*/model.safetensors")
    weights.unlink()
    assert find_snapshot(REPO, repository.commit) is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (
        "HF_HUB_OFFLINE keeps it from the Hugging Face hub" in look_for_files(REPO, repository.commit).fault
    )


# --- what one may not have ------------------------------------------------------------------------


def test_who_may_not_read_is_told_where_to_ask(hub, repository, monkeypatch):
    """Without a token: how to log in; a stranger: that it is known; with a bad one: how to get another."""
    repository.gated = True
    page = f"{hub.endpoint}/{REPO}"
    nobody = look_for_files(REPO, repository.commit).fault
    assert "no token came along" in nobody and page in nobody and "`hf auth login`" in nobody
    stranger = look_for_files(REPO, repository.commit, STRANGER).fault
    assert "knows the token, but its owner may not read 'org/model'" in stranger and page in stranger
    bad = look_for_files(REPO, repository.commit, "made-up").fault
    assert "doesn't know the token" in bad and "/settings/tokens" in bad and "`hf auth login`" in bad
    assert all("\n" not in each and "made-up" not in each for each in (nobody, stranger, bad))
    assert look_for_files(REPO, repository.commit, READER).missing > 0


def test_a_gated_config_is_one_sentence(hub, repository, tmp_path, monkeypatch):
    """The first that is read of a backbone: its list of files is public, its files aren't."""
    repository.gated = True
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    with pytest.raises(UserError, match="knows the token, but its owner may not read 'org/model'"):
        load_config(resolve_backbone(REPO, tmp_path))


def test_a_private_or_missing_repository_may_be_misspelt(hub, tmp_path):
    """The hub says the same of both."""
    assert "no local path and no model on the Hugging Face hub is called 'org/model'" in refused(tmp_path)


def test_pickles_are_refused_by_the_list_of_files(hub, content, tmp_path):
    """Nothing is fetched for that; a repository without a config isn't one for transformers."""
    kept = {name: each for name, each in content.items() if not name.endswith(".safetensors")}
    hub.put(REPO, kept | {"pytorch_model.bin": b"pickle"}, "model")
    assert "pytorch_model.bin is a pickle, which can run code" in refused(tmp_path)
    hub.put(REPO, {"model.gguf": b"GGUF"}, "model")
    assert "has no config.json" in refused(tmp_path)
    assert hub.count("resolve") == 0


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 503},
        {"status": 500},
        {"cut": 5},
    ],
    ids=str,
)
def test_a_passing_fault_is_asked_again_with_a_word(hub, repository, tmp_path, fault):
    """Of the hub's own, of a list of files, and of the CDN's; each pause is a line that names who failed."""
    hub.fail("/api/models/org/model$", times=2, **fault)
    assert resolve_backbone(REPO, tmp_path).revision == repository.commit
    assert hub.said and "127.0.0.1" in hub.said[0] and "asked again in" in hub.said[0]
    hub.fail("tree", times=1, **fault)
    hub.fail(r"GET /model/.*safetensors", times=1, **fault)
    came = list(fetch_files(REPO, repository.commit))
    assert find_snapshot(REPO, repository.commit)
    assert any("asked again" in each for each in came if isinstance(each, str))


def test_a_slow_answer_is_a_passing_fault(hub, repository, tmp_path, monkeypatch):
    """Whoever doesn't answer in time is asked again."""
    monkeypatch.setattr("adept_ray.data.hub.HUB_TIMEOUT_S", 0.1)
    hub.fail("/api/models", times=1, slow=0.3)
    assert resolve_backbone(REPO, tmp_path).revision == repository.commit
    assert "Timeout" in hub.said[0]


def test_pauses_grow_and_come_to_an_end(hub, repository, tmp_path, monkeypatch):
    """Each is twice as long as the one before; what is asked for next doesn't wait all over again."""
    clock = [0.0]
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(hub_client, "PATIENCE_S", 100)
    monkeypatch.setattr(hub_client, "FIRST_PAUSE_S", 1)
    monkeypatch.setattr(hub_client, "monotonic", lambda: clock[0])
    monkeypatch.setattr(hub_client, "sleep", pause)
    hub.fail("/api/models", status=503)
    assert "answers 503 for 'org/model'; it was asked for minutes" in refused(tmp_path)
    assert pauses == [1, 2, 4, 8, 16, 30, 30] and len(hub.said) == len(pauses)
    refused(tmp_path)
    assert sum(pauses) <= 100
    hub.clear()
    hub.fail("/api/models", status=429, headers={"Retry-After": "3600"})
    clock[0], before = 1000, len(pauses)
    assert "answers 429" in refused(tmp_path) and len(pauses) == before


def test_one_machine_fetches_under_a_bar(hub, repository):
    """It hears of every byte and every pause, and of a fault in a sentence; once all is there, of nothing."""
    hub.fail(r"GET /model/.*safetensors", times=1, status=503)
    seen = []
    fetch_missing_files(REPO, repository.commit, lambda *amounts: seen.append(amounts))
    assert seen[-1][0] == seen[-1][1] > 0 and "asked again in" in hub.said[0]
    fetch_missing_files(REPO, repository.commit, lambda *amounts: pytest.fail("nothing was missing"))
    other = hub.put("org/other", repository.files, "model")
    hub.fail(r"GET /model/.*safetensors", status=404)
    with pytest.raises(UserError, match="or a file of it is gone"):
        fetch_missing_files("org/other", other.commit, lambda *_: None)
    other.gated = True
    with pytest.raises(UserError, match="only to who may read it"):
        fetch_missing_files("org/other", other.commit, lambda *_: None)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"cut": 100}, "is cut off again and again"),
        ({"status": 503}, "where the Hugging Face hub keeps its files, answers 503"),
        ({"status": 404}, "or a file of it is gone"),
    ],
)
def test_a_cdn_that_fails_for_good_is_one_sentence(hub, repository, fault, words):
    """A download that is cut each time it goes on, a CDN that is out of order, one that has lost the file."""
    hub.fail(r"GET /model/.*/model.safetensors", **fault)
    assert words in explain(repository)


def test_no_hub_is_one_sentence(hub, repository, tmp_path, monkeypatch):
    """It names the repository and what lets a machine reach the hub."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refused(tmp_path)
    assert "can't be asked for 'org/model' (" in said and "HTTPS_PROXY" in said and hub.said == []
