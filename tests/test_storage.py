"""The results folder: never overwritten, refused in a sentence, the same on a disk and behind a URI."""

import json
import os
from pathlib import Path

import pytest

from adept_ray.config import RunSpec, UserError
from adept_ray.storage import Results, default_name, write_json, write_text


@pytest.fixture(params=["path", "uri"])
def storage(request, tmp_path):
    """A storage on this machine, given as a path or as a URI."""
    return str(tmp_path) if request.param == "path" else f"file://{tmp_path}"


def begun(storage, name="run"):
    """A run that wrote its settings."""
    results = Results(storage, name)
    results.open(resume=False)
    write_json(results.folder / "run.json", {"seed": 3})
    return results


def test_what_was_written_lies_in_its_place(storage, tmp_path):
    """After publishing, text and folders are under STORAGE/NAME, and that is what is answered."""
    results = begun(storage)
    results.write("trials.csv", "a,ä\n")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text("{}")
    results.take(tmp_path / "made", "model")
    place = results.publish()
    assert place == f"{storage}/run" and results.ray == f"{storage}/run/ray"
    assert (tmp_path / "run" / "trials.csv").read_text(encoding="utf-8") == "a,ä\n"
    assert (tmp_path / "run" / "model" / "config.json").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"seed": 3}


def test_an_existing_run_is_never_overwritten(storage):
    """A name that is taken is refused, naming the way out; with resume its settings are at hand."""
    begun(storage).publish()
    with pytest.raises(UserError, match=r"run exists: .*--name.*--resume"):
        Results(storage, "run").open(resume=False)
    again = Results(storage, "run")
    again.open(resume=True)
    assert json.loads((again.folder / "run.json").read_text()) == {"seed": 3}
    Results(storage, "other").open(resume=False)


def test_resuming_nothing_is_refused(storage, tmp_path):
    """Resuming a run that never began says so and leaves no folder behind."""
    with pytest.raises(UserError, match="holds no run to resume"):
        Results(storage, "run").open(resume=True)
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(storage, tmp_path):
    """A storage under a regular file is refused before anything runs, by its name and without a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run can't be written: ") as problem:
        Results(f"{storage}/file", "run").open(resume=False)
    assert "\n" not in str(problem.value) and problem.value.__cause__ is None


def test_a_uri_of_no_known_kind_is_refused():
    """A misspelt scheme is an error in words."""
    with pytest.raises(UserError, match="nonsense://bucket/run"):
        Results("nonsense://bucket", "run").open(resume=False)


def test_a_folder_without_settings_is_not_a_run(storage, tmp_path):
    """What was cut off before it wrote its settings can be begun again under its name."""
    (tmp_path / "run" / "ray").mkdir(parents=True)
    begun(storage).publish()
    assert (tmp_path / "run" / "run.json").exists()


def test_a_checkpoint_is_found_where_ray_left_it(storage, tmp_path):
    """A path as Ray reports it gives back the checkpoint's files, and can be deleted, also twice."""
    results = begun(storage)
    folder = tmp_path / "run" / "ray" / "trial-001" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    with results.checkpoint(str(folder)).as_directory() as found:
        assert (Path(found) / "state.json").read_text() == "{}"
    results.delete(str(folder))
    assert not folder.exists() and folder.parent.exists()
    results.delete(str(folder))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """When the writing fails the old file stays, and no scratch file is taken for a result."""
    path = write_text(tmp_path / "a" / "table.csv", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] == ["table.csv"]


def test_default_names_are_plain_and_say_what():
    """Hub ids, paths and presets become one folder name of letters, digits, dots, dashes."""
    for backbone in ("Qwen/Qwen3-1.7B-Base", "/models/my model", "smollm2-135m"):
        name = default_name(RunSpec(backbone=backbone, domain="owner/data:part"), "train")
        assert name.startswith("train-") and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789._-")
