"""Where Ray can't keep its files is known before it is started, and it needs no home."""

import os
import shutil
import stat

import pytest

from adept_ray.config.errors import UserError
from adept_ray.config.places import default_cache
from adept_ray.engine import own_ray
from adept_ray.engine.own_ray import bring_token, check_ray_folder


def test_a_folder_that_does_is_made(tmp_path, monkeypatch):
    """Ray would make it as well, and so that every user of this machine may write there."""
    monkeypatch.setattr(own_ray, "find_ray_folder", lambda: tmp_path / "new")
    monkeypatch.setattr(own_ray, "LONGEST_SOCKET", 1000)
    check_ray_folder()
    own = tmp_path / "new" / "ray"
    assert own.is_dir() and stat.S_IMODE(own.stat().st_mode) == 0o777


@pytest.mark.parametrize(
    ("kind", "said"),
    [("long", "bytes too long for sockets"), ("a file", "a file where a folder"), ("full", "0 MiB are left")],
)
def test_one_that_does_not_is_refused_with_what_to_set(tmp_path, monkeypatch, kind, said):
    """Ray would say so in its own words, or wait for half a minute on a full disk."""
    (tmp_path / "file").write_text("")
    folder = {"long": tmp_path / ("x" * 120), "a file": tmp_path / "file", "full": tmp_path}[kind]
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    if kind != "long":
        monkeypatch.setattr(own_ray, "LONGEST_SOCKET", 1000)
    if kind == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(UserError, match=said) as told:
        check_ray_folder()
    assert "set RAY_TMPDIR" in str(told.value)


def test_without_a_home_ray_gets_a_token(tmp_path, monkeypatch):
    """It keeps one at home otherwise, and doesn't start where it can't."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    bring_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    bring_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_who_has_no_home_is_told_what_to_set(monkeypatch):
    """A user whom this machine doesn't know."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("ADEPT_RAY_CACHE", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    with pytest.raises(UserError, match="no home folder: set HOME, or set ADEPT_RAY_CACHE"):
        default_cache()
