"""What is to keep a search is looked at before it begins, all of it at once."""

import importlib.util
from types import SimpleNamespace

from adept_ray.config.specs import SearchRun
from adept_ray.run.check_list import CheckList
from adept_ray.run.keepers import check_keepers


def test_every_keeper_that_cannot_be_used_is_a_fault(tmp_path, monkeypatch):
    """A study and a tracker; what wasn't asked for isn't looked at."""
    checks = CheckList(SimpleNamespace(show_check=lambda check: None))
    check_keepers(SearchRun(), checks)
    assert checks.checks == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_keepers(SearchRun(study=f"{tmp_path}/no/such/a.log", track=["mlflow"]), checks)
    study, track = checks.faults
    assert "can't be opened" in study and "--track mlflow needs the package mlflow-skinny" in track
