"""Checkpoints: written whole, the newest whole one found, older ones gone."""

import os
import resource

import pytest
from pyarrow import fs

from adept_ray.storage.checkpoints import NO_STEP, checkpoint_place, find_last_checkpoint, save_checkpoint
from adept_ray.storage.files import (
    delete_folder,
    fetch_temporarily,
    is_disk_full,
    open_filesystem,
)


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
