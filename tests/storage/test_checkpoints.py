"""Checkpoints: written whole, the newest whole one found, older ones gone."""

import os
import resource
import threading
from types import SimpleNamespace

import pytest
from pyarrow import fs

from adept_ray.storage import checkpoints as checkpoints_module
from adept_ray.storage import files as files_module
from adept_ray.storage.checkpoints import (
    NO_STEP,
    Checkpoint,
    checkpoint_place,
    delete_older_checkpoints,
    find_last_checkpoint,
    save_checkpoint,
    write_checkpoints,
)
from adept_ray.storage.files import (
    delete_folder,
    fetch_temporarily,
    is_disk_full,
    list_files,
    open_filesystem,
)


def list_names(place):
    filesystem, root = open_filesystem(place)
    return sorted(info.base_name for info in filesystem.get_file_info(fs.FileSelector(root)))


def of_text(step, resumable=True, text=""):
    """A checkpoint with two files."""
    data = (text or f"at {step}").encode()
    files = {"state.json": lambda stream: stream.write(data), "weights": lambda stream: stream.write(data)}
    return Checkpoint(step, files, resumable)


def test_the_last_checkpoint_is_found_and_older_ones_go(storage, made):
    """A checkpoint gives back its files; the one before it is deleted; deleting twice is fine."""
    place = f"{storage}/ray/trial-001"
    assert find_last_checkpoint(place) == NO_STEP
    first = save_checkpoint(Checkpoint(1, list_files(made)), place)
    assert find_last_checkpoint(place) == 1 and first == checkpoint_place(place, 1) == f"{place}/step-1"
    (made / "state.json").write_text("[2]")
    tenth = save_checkpoint(Checkpoint(10, list_files(made)), place)
    assert find_last_checkpoint(place) == 10 and tenth == checkpoint_place(place, 10)
    with fetch_temporarily(tenth) as found:
        assert (found / "state.json").read_text() == "[2]"
        assert (found / "model" / "weights").stat().st_size == 1000
    assert list_names(place) == ["step-10"]
    delete_folder(tenth)
    delete_folder(tenth)
    assert find_last_checkpoint(place) == NO_STEP


def test_weights_alone_replace_none_that_a_training_can_go_on_from(tmp_path):
    """They replace those of an earlier report; the next whole checkpoint, or the end, makes room again."""
    place = str(tmp_path)
    for checkpoint in (of_text(2), of_text(4, False), of_text(6, False)):
        saved = save_checkpoint(checkpoint, place)
    assert list_names(place) == ["step-2", "weights-6"] and find_last_checkpoint(place) == 2
    delete_older_checkpoints(saved)
    assert list_names(place) == ["weights-6"] and find_last_checkpoint(place) == NO_STEP
    save_checkpoint(of_text(8), place)
    assert list_names(place) == ["step-8"]


@pytest.mark.parametrize("harm", ["no manifest", "manifest cut off", "a file cut off", "a file missing"])
def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path, made, monkeypatch, harm):
    """What a kill left half-written is never resumed from: the one before it is."""
    place = str(tmp_path / "trial")
    save_checkpoint(Checkpoint(1, list_files(made)), place)
    monkeypatch.setattr(
        "adept_ray.storage.checkpoints._list_names", lambda *_: []
    )  # killed before the older one went
    save_checkpoint(Checkpoint(2, list_files(made)), place)
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


class Killed(BaseException):
    """The process is gone."""


class Mortal:
    """A file system, or a stream of it, whose process dies at its n-th call: no later one does anything."""

    def __init__(self, real, left):
        self._real, self._left = real, left

    def __getattr__(self, name):
        def call(*given):
            self._left.calls -= 1
            if self._left.calls < 0:
                if name == "write":  # half of it may be there
                    self._real.write(given[0][: len(given[0]) // 2])
                raise Killed
            found = getattr(self._real, name)(*given)
            return Mortal(found, self._left) if name.startswith("open_") else found

        return call

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._real.close()


def die_at(monkeypatch, calls):
    """Let the process die at so many calls of the storage from now on."""
    left = SimpleNamespace(calls=calls)

    def open_mortal(place):
        filesystem, path = open_filesystem(place)
        return Mortal(filesystem, left), path

    for module in (checkpoints_module, files_module):
        monkeypatch.setattr(module, "open_filesystem", open_mortal)
    return left


SAVED = [of_text(2), of_text(4, False), of_text(5), of_text(6, False), of_text(8, False), of_text(9)]


def test_a_kill_at_any_call_leaves_the_last_whole_checkpoint(tmp_path, monkeypatch):
    """Whatever is under way: it has every byte, and no older one is found once a newer was saved."""
    for calls in range(1000):
        place, done = str(tmp_path / str(calls)), [NO_STEP]
        with monkeypatch.context() as patch:
            left = die_at(patch, calls)
            try:
                for checkpoint in SAVED:
                    save_checkpoint(checkpoint, place)
                    done += [checkpoint.step] * checkpoint.resumable
            except Killed:
                pass
        last = find_last_checkpoint(place)
        following = [c.step for c in SAVED if c.resumable and c.step > done[-1]]
        assert last in (done[-1], *following[:1])  # that which was under way may be whole already
        if last != NO_STEP:
            with fetch_temporarily(checkpoint_place(place, last)) as folder:
                assert {(folder / name).read_text() for name in ("state.json", "weights")} == {f"at {last}"}
        save_checkpoint(of_text(10), place)  # who goes on finds room
        assert list_names(place) == ["step-10"]
        if left.calls >= 0:
            break
    assert last == 9 and calls > 60


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, made):
    """What can't be written whole is taken away again, and the error is known for what it is."""
    place = str(tmp_path / "trial")
    save_checkpoint(Checkpoint(1, list_files(made)), place)
    (made / "model" / "weights").write_bytes(bytes(10_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(OSError) as problem, write_checkpoints(place) as writer:
            writer.begin(Checkpoint(2, list_files(made)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_disk_full(problem.value) and not is_disk_full(PermissionError(13, "Permission denied"))
    assert find_last_checkpoint(place) == 1 and os.listdir(place) == ["step-1"]


def test_a_checkpoint_is_written_while_the_training_goes_on_and_the_next_one_waits(tmp_path):
    """Its place is known at once; there is never more than one under way, and in the end none."""
    place, may_go_on, log = str(tmp_path), threading.Event(), []

    def write_slowly(stream):
        log.append("begins")
        assert may_go_on.wait(30)
        stream.write(b"x")
        log.append("ends")

    with write_checkpoints(place) as writer:
        assert writer.begin(Checkpoint(1, {"weights": write_slowly})) == checkpoint_place(place, 1)
        writer.check()
        assert find_last_checkpoint(place) == NO_STEP
        threading.Timer(0.05, may_go_on.set).start()
        writer.begin(Checkpoint(2, {"weights": write_slowly}))
        assert log[:2] == ["begins", "ends"]
    assert log == ["begins", "ends"] * 2 and list_names(place) == ["step-2"]


def test_what_could_not_be_written_is_said_at_the_next_look(tmp_path):
    """And hides no other error; the thread is gone in any case."""

    def fail(stream):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), write_checkpoints(str(tmp_path)) as writer:
        writer.begin(Checkpoint(1, {"weights": fail}))
        while True:
            writer.check()
    with pytest.raises(FloatingPointError), write_checkpoints(str(tmp_path)) as writer:
        writer.begin(Checkpoint(1, {"weights": fail}))
        raise FloatingPointError
    assert os.listdir(tmp_path) == []
