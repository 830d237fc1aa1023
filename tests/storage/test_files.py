"""Files on a disk or behind a URI: whole or not at all."""

import json
import math
import os

import numpy as np
import pytest
from pyarrow import fs

from adept_ray.storage.files import (
    describe_full_disk,
    fetch_temporarily,
    is_disk_full,
    open_filesystem,
    read_json,
    store_json,
    write_json,
    write_text,
)
from adept_ray.storage.results import Results


def test_a_place_may_be_relative(made, monkeypatch):
    """As --storage is by default: relative to where the command runs."""
    monkeypatch.chdir(made.parent)
    with fetch_temporarily("made/model") as found:
        assert (found / "weights").stat().st_size == 1000


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
    results.release()
    assert sorted(os.listdir(results.folder)) == ["ray", "trials.csv"]
    assert (results.folder / "trials.csv").read_text() == "k\n1\n"


def test_a_database_can_say_that_a_disk_is_full():
    """Optuna's study may be one; its error has no number."""
    assert is_disk_full(RuntimeError("(sqlite3.OperationalError) database or disk is full"))
    assert not is_disk_full(RuntimeError("(sqlite3.OperationalError) database is locked"))


def test_no_json_of_ours_holds_what_is_not_finite(tmp_path):
    """A strict reader takes it: nan and both infinities are null, however deep and of whatever kind."""
    data = {
        "a": math.nan,
        "b": [1.5, (math.inf, {"c": -math.inf})],
        "d": np.float32("nan"),
    }

    def refuse(word):
        raise AssertionError(word)

    write_json(tmp_path / "a.json", data)
    store_json(str(tmp_path / "b.json"), data)
    for name in ("a.json", "b.json"):
        found = json.loads((tmp_path / name).read_text(), parse_constant=refuse)
        assert found == {"a": None, "b": [1.5, [None, {"c": None}]], "d": None}


def test_a_file_that_is_deleted_while_it_is_read_is_none(tmp_path, monkeypatch):
    """As by another command that is done with the same blocks, between a look and the opening."""
    (tmp_path / "a.json").write_text("{}")
    local = fs.LocalFileSystem()

    class Racing:
        """Its files go after they were seen."""

        def get_file_info(self, path):
            """The file as it was."""
            info = local.get_file_info(path)
            (tmp_path / "a.json").unlink()
            return info

        open_input_file = local.open_input_file

    assert read_json(str(tmp_path / "a.json"), filesystem=Racing()) is None
