"""The results folder: never overwritten, refused in a sentence, the same on a disk and behind a URI."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from pyarrow import fs

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.storage.checkpoints import Checkpoint, save_checkpoint
from adept_ray.storage.files import (
    list_files,
    measure_size,
    open_filesystem,
    store_json,
    write_json,
    write_text,
)
from adept_ray.storage.results import Results, make_run_name


def content(storage, path):
    """What a file in a storage holds; None if there is none."""
    filesystem, root = open_filesystem(storage)
    if filesystem.get_file_info(f"{root}/{path}").type != fs.FileType.File:
        return None
    with filesystem.open_input_file(f"{root}/{path}") as stream:
        return stream.read().decode()


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
    (tmp_path / "made" / "model").mkdir(parents=True)
    (tmp_path / "made" / "model" / "config.json").write_text("{}")
    saved = save_checkpoint(Checkpoint(0, list_files(tmp_path / "made")), f"{results.ray}/conclude")
    assert measure_size(f"{saved}/model") == 2
    filesystem, root = open_filesystem(storage)
    filesystem.create_dir(f"{root}/run/model")
    with filesystem.open_output_stream(f"{root}/run/model/config.json") as stream:
        stream.write(b"of an attempt that was cut off")
    results.adopt_folder(f"{saved}/model", "model")
    write_text(results.folder / "report.html", "")  # not in its place yet
    assert all(map(results.has, ("trials.csv", "model", "report.html"))) and not results.has("best.yaml")
    place = results.publish()
    assert place == f"{storage}/run" and results.ray == f"{storage}/run/ray"
    assert content(storage, "run/trials.csv") == "a,ä\n"
    assert content(storage, "run/model/config.json") == "{}"
    assert json.loads(content(storage, "run/run.json")) == {"seed": 3}


def test_an_existing_run_is_never_overwritten(storage):
    """A name that is taken is refused, naming the way out; with resume its settings are at hand."""
    begun(storage).publish()
    with pytest.raises(UserError, match=r"run exists: .*--name.*--resume"):
        Results(storage, "run").open(resume=False)
    again = Results(storage, "run")
    again.open(resume=True)
    assert json.loads((again.folder / "run.json").read_text()) == {"seed": 3}
    Results(storage, "other").open(resume=False)


def test_resuming_nothing_is_refused(storage):
    """Resuming a run that never began says so and leaves no folder behind."""
    with pytest.raises(UserError, match="holds no run to resume"):
        Results(storage, "run").open(resume=True)
    filesystem, root = open_filesystem(storage)
    assert filesystem.get_file_info(f"{root}/run").type == fs.FileType.NotFound


@pytest.mark.parametrize("storage", ["path", "uri"], indirect=True)  # S3 has no folders to stand in the way
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


def test_a_folder_without_settings_is_not_a_run(storage):
    """What was cut off before it wrote its settings can be begun again under its name."""
    filesystem, root = open_filesystem(storage)
    filesystem.create_dir(f"{root}/run/ray")
    begun(storage).publish()
    assert content(storage, "run/run.json")


def test_default_names_are_plain_and_say_what():
    """Hub ids, paths and presets become one folder name of letters, digits, dots, dashes."""
    for backbone in ("Qwen/Qwen3-1.7B-Base", "/models/my model", "smollm2-135m"):
        name = make_run_name(RunSpec(backbone=backbone, domain="owner/data:part"), "train")
        assert name.startswith("train-") and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789._-")


@pytest.mark.parametrize("storage", ["path", "uri", "s3"], indirect=True)
def test_a_refused_run_leaves_no_empty_folder(storage):
    """Abandoned before anything was written it is gone; with a record in it, it stays."""
    empty, begun = Results(storage, "empty"), Results(storage, "begun")
    for results in (empty, begun):
        results.open(resume=False)
    begun.write_json("run.json", {})
    if "://" in storage:
        (empty.folder / "ray.log").touch()  # not in its place, so none of the run
    for results in (empty, begun):
        results.abandon()
    assert Results(storage, "begun").exists()
    assert not empty.folder.exists() and begun.folder.exists() == ("://" not in storage)
    if "s3:" not in storage:
        assert [path.name for path in Path(storage.removeprefix("file://")).iterdir()] == ["begun"]


@pytest.mark.parametrize("kept", ["", "importance.json", "ray/trials/trial-001/a.json"])
def test_only_a_run_with_nothing_to_go_on_with_is_taken_back(storage, kept):
    """Its place is as it was, so that the same name can be given again; what others put there stays."""
    store_json(f"{storage}/run/own.json", {})
    results = begun(storage)
    results.write("run.json", "{}")
    results.write("ray.log", "")
    store_json(f"{results.ray}/crew/a.json", {})
    if kept.startswith("ray"):
        store_json(f"{results.place}/{kept}", {})
    elif kept:
        results.write(kept, "{}")
    assert results.withdraw() is not bool(kept)
    assert bool(kept) or not results.read_record()  # nothing that would be written there again
    results.release()
    assert (content(storage, "run/run.json") is None) is not bool(kept)
    assert (content(storage, "run/ray/crew/a.json") is None) is not bool(kept)
    assert content(storage, "run/own.json") is not None
    if not kept:
        begun(storage).release()


def test_a_run_that_was_taken_back_leaves_no_folder(storage):
    """Nor does one that was refused before it wrote anything."""
    for writes in (True, False):
        results = Results(storage, "run")
        results.open(resume=False)
        if writes:
            results.write("run.json", "{}")
            assert results.withdraw()
        results.abandon()
        filesystem, root = open_filesystem(storage)
        assert filesystem.get_file_info(f"{root}/run").type == fs.FileType.NotFound


def test_a_run_that_another_command_has_taken_stays(tmp_path, monkeypatch):
    """What it finds in the folder then is none of its own."""
    results = begun(str(tmp_path))
    monkeypatch.setattr(results, "check_claim", Mock(side_effect=UserError("it is another one's")))
    assert not results.withdraw() and results.exists()
    monkeypatch.undo()
    results.release()
    assert not results.withdraw() and results.exists()


def test_a_run_that_goes_on_is_never_taken_back(storage):
    """However little it has: an earlier command began it."""
    first = begun(storage)
    first.write("run.json", "{}")
    first.release()
    again = Results(storage, "run")
    again.open(resume=True)
    assert not again.withdraw() and again.exists()
