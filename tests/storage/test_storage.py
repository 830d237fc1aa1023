"""The results folder: never overwritten, refused in a sentence, the same on a disk and behind a URI."""

import json
import os
import resource

import numpy as np
import pytest
from pyarrow import fs

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.storage.checkpoints import NO_STEP, checkpoint_place, find_last_checkpoint, save_checkpoint
from adept_ray.storage.files import (
    delete_folder,
    describe_full_disk,
    fetch_temporarily,
    is_disk_full,
    measure_size,
    open_filesystem,
    read_json,
    store_json,
    write_json,
    write_text,
)
from adept_ray.storage.results import Results, make_run_name


@pytest.fixture(params=["path", "uri", "s3"])
def storage(request, tmp_path):
    """A storage given as a path, as a URI of this machine, or as one of an S3 server."""
    if request.param == "s3":
        bucket = f"bucket-{tmp_path.name.replace('_', '-').lower()}"
        request.getfixturevalue("s3").create_bucket(Bucket=bucket)
        return f"s3://{bucket}"
    return str(tmp_path) if request.param == "path" else f"file://{tmp_path}"


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
    saved = save_checkpoint(tmp_path / "made", f"{results.ray}/conclude", 0)
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


@pytest.fixture
def made(tmp_path):
    """A folder as a training saves it: files, one of them in a sub-folder."""
    (tmp_path / "made" / "model").mkdir(parents=True)
    (tmp_path / "made" / "state.json").write_text("{}")
    (tmp_path / "made" / "model" / "weights").write_bytes(bytes(1000))
    return tmp_path / "made"


def test_the_last_checkpoint_is_found_and_older_ones_go(storage, made):
    """A checkpoint gives back its files; the one before it is deleted; deleting twice is fine."""
    place = f"{storage}/ray/trial-001"
    assert find_last_checkpoint(place) == NO_STEP
    first = save_checkpoint(made, place, 1)
    assert find_last_checkpoint(place) == 1 and first == checkpoint_place(place, 1) == f"{place}/step-1"
    (made / "state.json").write_text("[2]")
    tenth = save_checkpoint(made, place, 10)
    assert find_last_checkpoint(place) == 10 and tenth == checkpoint_place(place, 10)
    with fetch_temporarily(tenth) as found:
        assert (found / "state.json").read_text() == "[2]"
        assert (found / "model" / "weights").stat().st_size == 1000
    filesystem, root = open_filesystem(place)
    assert [i.base_name for i in filesystem.get_file_info(fs.FileSelector(root))] == ["step-10"]
    delete_folder(tenth)
    delete_folder(tenth)
    assert find_last_checkpoint(place) == NO_STEP


def test_a_place_may_be_relative(made, monkeypatch):
    """As --storage is by default: relative to where the command runs."""
    monkeypatch.chdir(made.parent)
    with fetch_temporarily("made/model") as found:
        assert (found / "weights").stat().st_size == 1000


@pytest.mark.parametrize("harm", ["no manifest", "manifest cut off", "a file cut off", "a file missing"])
def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path, made, monkeypatch, harm):
    """What a kill left half-written is never resumed from: the one before it is."""
    place = str(tmp_path / "trial")
    save_checkpoint(made, place, 1)
    monkeypatch.setattr(
        "adept_ray.storage.checkpoints._list_steps", lambda *_: []
    )  # killed before the older one went
    save_checkpoint(made, place, 2)
    monkeypatch.undo()
    weights = tmp_path / "trial" / "step-2" / "model" / "weights"
    if harm == "no manifest":
        (tmp_path / "trial" / "step-2" / "manifest.json").unlink()
    elif harm == "manifest cut off":
        (tmp_path / "trial" / "step-2" / "manifest.json").write_text('{"state')
    elif harm == "a file missing":
        weights.unlink()
    else:
        weights.write_bytes(bytes(999))
    said = []
    assert find_last_checkpoint(place, said.append) == 1
    assert said == [f"{place}/step-2 was only half written and is passed over"]


def test_numbers_of_the_cache_are_read_where_they_were_written(storage):
    """What isn't there is None; half of a file as well, and that is said."""
    place, said = f"{storage}/probes/ab.json", []
    assert read_json(place, said.append) is None
    store_json(place, {"nats": [0.1, np.float64(1 / 3)]})
    assert read_json(place, said.append) == {"nats": [0.1, 1 / 3]} and said == []
    filesystem, path = open_filesystem(place)
    with filesystem.open_output_stream(path) as stream:
        stream.write(b'{"nats": [0.1, ')
    assert read_json(place, said.append) is None
    assert said == [f"{place} was only half written and is made again"]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, made):
    """What can't be written whole is taken away again, and the error is known for what it is."""
    place = str(tmp_path / "trial")
    save_checkpoint(made, place, 1)
    (made / "model" / "weights").write_bytes(bytes(10_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(OSError) as problem:
            save_checkpoint(made, place, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_disk_full(problem.value) and not is_disk_full(PermissionError(13, "Permission denied"))
    assert find_last_checkpoint(place) == 1 and os.listdir(place) == ["step-1"]


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
        name = make_run_name(RunSpec(backbone=backbone, domain="owner/data:part"), "train")
        assert name.startswith("train-") and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789._-")


def test_a_full_disk_leaves_what_was_there(small):
    """A file that has no room is named, nothing of it stays, and its older version is whole."""
    results = Results(str(small), "run")
    results.open(resume=False)
    results.write("trials.csv", "k\n1\n")
    with pytest.raises(OSError) as caught:
        results.write("trials.csv", "k\n" + 200_000 * "1\n")
    assert is_disk_full(caught.value) and describe_full_disk(caught.value).startswith(
        f"no space left for {small}/run/trials.csv: "
    )
    assert sorted(os.listdir(results.folder)) == ["ray", "trials.csv"]
    assert (results.folder / "trials.csv").read_text() == "k\n1\n"


def test_a_database_can_say_that_a_disk_is_full():
    """Optuna's study may be one; its error has no number."""
    assert is_disk_full(RuntimeError("(sqlite3.OperationalError) database or disk is full"))
    assert not is_disk_full(RuntimeError("(sqlite3.OperationalError) database is locked"))
