"""Settings made definite: precision, places, studies, and what a best.yaml brings."""

import json
from functools import partial
from pathlib import Path

import pytest

from adept_ray.config.errors import UserError
from adept_ray.config.specs import ActivationsRun, PickRun, RunSpec, SearchRun, TrainRun
from adept_ray.run import settings
from adept_ray.run.flags import parse_flags
from adept_ray.run.resuming import resume_settings
from adept_ray.run.settings import list_run_overrides, load_best, resolve_settings

FOLLOWERS = partial(TrainRun, tokens=1000), ActivationsRun  # what takes a best.yaml


def test_a_cpu_is_asked_for_its_faster_type(monkeypatch):
    """Only where that was left open, and where the workers are on this machine."""
    monkeypatch.setattr(settings, "bfloat16_pays", lambda: True)
    assert resolve_settings(RunSpec()).machine.precision == "bfloat16"
    assert resolve_settings(RunSpec(precision="float32")).machine.precision == "float32"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert resolve_settings(RunSpec()).machine.precision == "float32"


def test_precision_is_definite_from_the_beginning():
    """A training on GPUs that continues from a search on CPUs keeps the search's precision."""
    assert resolve_settings(RunSpec()).machine.precision == "float32"
    assert resolve_settings(RunSpec(gpus_per_worker=1)).machine.precision == "bfloat16"
    assert resolve_settings(RunSpec(gpus_per_worker=1, precision="float32")).machine.precision == "float32"


def test_places_are_the_same_from_every_folder():
    """A cluster's workers are in others. A cache that isn't given stays as the run began with it."""
    home, here = str(Path("~").expanduser()), str(Path().absolute())
    for run in (RunSpec, partial(PickRun, results="x")):
        assert run(cache="not/there").machine.cache == f"{here}/not/there"
    assert RunSpec(cache="s3://b/c").machine.cache == "s3://b/c"
    resumed = resume_settings(resolve_settings(SearchRun(name="x", resume=True)), {"cache": "/elsewhere"})
    assert resumed.machine.cache == "/elsewhere"
    homely = RunSpec(storage="~/results/", cache="~/cache", general_tasks=["~/task.yaml"])
    assert (homely.storage, homely.machine.cache) == (f"{home}/results", f"{home}/cache")
    assert homely.general_tasks == (f"{home}/task.yaml",)
    for study, kept in (
        ("study.db", f"{here}/study.db"),
        ("sqlite:///study.db", f"sqlite:///{here}/study.db"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://me@host/name", "postgresql://me@host/name"),
    ):
        assert resolve_settings(SearchRun(study=study)).study == kept


def test_an_address_of_another_form_is_no_secret():
    """An @ in the path behind HOST:PORT isn't what follows a password."""
    place = "hdfs://namenode:8020/user/me@example.org/results"
    assert RunSpec(storage=place).storage == place


def test_trust_is_taken_from_the_command_line_alone():
    """A command that takes a best.yaml always says it, so that the file never does."""
    for trusted in (True, False):
        for args in FOLLOWERS:
            given = list_run_overrides(args(config="best.yaml", trust_remote_code=trusted))
            assert given["trust_remote_code"] is trusted


def test_what_is_given_anew_holds_and_the_rest_stays_as_the_search_had_it():
    """Compiling is one such setting; the cache is another, so that nothing is measured twice."""
    for args in FOLLOWERS:
        for asked in ("on", "off"):
            assert list_run_overrides(args(config="best.yaml", compile=asked))["compile"] == asked
        assert "compile" not in list_run_overrides(args(config="best.yaml"))
    trained = parse_flags(TrainRun, "", ["--config", "best.yaml", "--tokens", "9"])
    drawn = parse_flags(ActivationsRun, "", ["--config", "best.yaml"])
    assert "cache" not in list_run_overrides(trained) and "cache" not in list_run_overrides(drawn)


def test_what_was_found_is_read_from_a_bucket(s3, tmp_path):
    """As the summary names it; one that isn't there is a sentence."""
    s3.create_bucket(Bucket="found")
    parts = {"run": {}, "training": {}, "layers": [1], "score": {}, "k_max": 2}
    s3.put_object(Bucket="found", Key="mine/best.yaml", Body=json.dumps(parts).encode())
    (tmp_path / "best.yaml").write_text(json.dumps(parts))
    assert load_best("s3://found/mine/best.yaml") == load_best(tmp_path / "best.yaml") == parts
    with pytest.raises(UserError, match=r"s3://found/other/best.yaml: can't be read: "):
        load_best("s3://found/other/best.yaml")
