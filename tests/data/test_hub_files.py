"""A backbone's files from the hub: what a machine lacks, what it may not have, and fetching it."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from common import save_tiny_backbone
from huggingface_hub import constants

from adept_ray.data.hub_files import HubFiles, fetch_files, look_for_files

REPO, COMMIT = "org/model", "0123456789abcdef0123456789abcdef01234567"
EXTRA = ("README.md", "consolidated.safetensors", "original/model.safetensors")  # which nobody needs


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: the list of a repository's files, and each of them."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        files, asked = self.server.files, self.path.partition("?")[0]
        if self.server.gated and self.headers.get("Authorization") != "Bearer may-read":
            self.reply(401, b"", {"X-Error-Code": "GatedRepo"}, body)
        elif "/tree/" in asked:
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            self.reply(200, json.dumps(rows).encode(), {"Content-Type": "application/json"}, body)
        elif (name := asked.partition(f"/resolve/{COMMIT}/")[2]) in files:
            content = files[name]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.reply(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT}, body)
        else:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, body)

    def reply(self, status, content, headers, body):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        """Stay silent."""


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Name → bytes of the files of a repository."""
    folder = save_tiny_backbone(tmp_path_factory.mktemp("backbone"))
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return files | dict.fromkeys(EXTRA, bytes(1000))


@pytest.fixture
def hub(content, tmp_path, monkeypatch):
    """A hub on this machine, with an empty cache before it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.gated = content, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()


def test_what_is_missing_is_fetched_and_then_nobody_needs_the_hub(hub, content, monkeypatch):
    """Weights, config and tokenizer, and nothing that is no part of the model as transformers reads it."""
    needed = sum(len(each) for name, each in content.items() if name not in EXTRA)
    assert look_for_files(REPO, COMMIT) == HubFiles(needed)
    *_, came = fetch_files(REPO, COMMIT)
    assert came == needed
    assert look_for_files(REPO, COMMIT) == HubFiles()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert look_for_files(REPO, COMMIT) == HubFiles()


def test_half_a_model_in_the_cache_needs_the_hub(hub, content, monkeypatch):
    """Without weights it can't be trained offline, and that is said before a worker finds out."""
    list(fetch_files(REPO, COMMIT))
    (weights,) = Path(constants.HF_HUB_CACHE).rglob("snapshots/*/model.safetensors")
    weights.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "can't be asked for 'org/model'" in look_for_files(REPO, COMMIT).fault


def test_a_gated_model_needs_a_token_that_may_read_it(hub):
    """The sentence says where to ask and where to put it; with the token there is no fault."""
    hub.gated = True
    fault = look_for_files(REPO, COMMIT).fault
    assert "only to who may read it" in fault and "hf auth login" in fault and "HF_TOKEN" in fault
    assert look_for_files(REPO, COMMIT, "may-read").missing > 0
    with pytest.raises(OSError):
        list(fetch_files(REPO, COMMIT))


def test_no_hub_is_one_sentence(hub, monkeypatch):
    """It names the repository and what lets a machine reach the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # its client tries a dead one for half a minute
    fault = look_for_files(REPO, COMMIT).fault
    assert "can't be asked for 'org/model' (" in fault and "HTTPS_PROXY" in fault and "\n" not in fault
