"""A tracker that can't be used is refused before anything begins."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

from adept_ray.commands.main import COMMANDS
from adept_ray.config.choices import TRACKERS
from adept_ray.config.errors import UserError
from adept_ray.run.flags import parse_flags
from adept_ray.tracking.libraries import check_trackers

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_names_the_extra_that_brings_it(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    sentence = rf"--track {name} needs the package {TRACKERS[name]}, .*: pip install 'adept_ray\[{name}\]'"
    with pytest.raises(UserError, match=sentence):
        check_trackers([name])


@pytest.mark.parametrize("command", ["tune-k", "train --config best.yaml --tokens 9"])
def test_several_trackers_are_taken_and_an_unknown_one_is_not(command):
    """Whichever way they are divided, each once; the sentence has the nearest name."""
    name, *words = command.split()
    spec = COMMANDS[name].spec
    for given in (["mlflow", "wandb"], ["mlflow,wandb", "mlflow"]):
        assert parse_flags(spec, "", [*words, "--track", *given]).track == ("mlflow", "wandb")
    with pytest.raises(UserError, match=r"--track: unknown tracker 'tensorbord': did you mean tensorboard\?"):
        parse_flags(spec, "", [*words, "--track", "tensorbord"])


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    """W&B keeps its runs in a folder wandb, from which Python would import nothing."""
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[-1:])  # without the importers of editable packages
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(UserError, match="needs the package mlflow-skinny"):
        check_trackers(["mlflow"])


def test_every_tracker_has_its_extra():
    """It brings the package that is named where that is missing, and nothing else needs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, package in TRACKERS.items():
        (brought,) = project["optional-dependencies"][name]
        assert brought.startswith(f"{package}>=")
    assert not [each for each in project["dependencies"] if each.startswith(tuple(TRACKERS.values()))]


def test_nobody_is_asked_for_a_login(monkeypatch, tmp_path):
    """Where runs are to be sent and nobody is logged in, that is a sentence; offline nobody need be."""
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"--track wandb: nobody is logged in: run `wandb login`, .*offline"):
        check_trackers(["wandb"])
    wandb.teardown()  # else it goes by what it read first
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(["wandb"])
