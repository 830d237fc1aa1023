"""An error of the operating system is told as what it is, whoever raised it and however it says so."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import TOLD, describe_os_fault, explain_os_faults
from adept_ray.config.validation import load_yaml
from adept_ray.data.assets import hash_file
from adept_ray.data.model_files import list_model_files
from adept_ray.data.opening import open_ranged

ARROW = "Failed to open local file '/a/b.parquet'. Detail: [errno {}] whatever"


@pytest.mark.parametrize("number", TOLD, ids=errno.errorcode.get)
def test_an_error_is_known_by_its_number(number):
    """As Python raises it, as pyarrow does, and as libraries in Rust do, which only write it."""
    raised = (
        OSError(number, os.strerror(number), "/a/b.parquet"),
        OSError(number, ARROW.format(number)),
        Exception(f"cannot read '/a/b.parquet': {os.strerror(number)} (os error {number})"),
    )
    assert {describe_os_fault(each) for each in raised} == {f"/a/b.parquet: {TOLD[number]}"}


def test_what_is_not_ready_is_not_taken_for_too_many_processes():
    """The same number comes of a lock or a read that has to wait."""
    said = describe_os_fault(BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), "/a/lock"))
    assert "just now" in said and "no more processes" not in said and "give the command again" in said


@pytest.mark.parametrize("problem", [ValueError("13"), OSError("no number"), OSError(10**6, "unknown")])
def test_what_is_no_error_of_the_system_is_left_to_others(problem):
    """Nothing is said of it."""
    assert describe_os_fault(problem) == ""


def test_what_safetensors_takes_for_missing_is_told_by_what_is_there(tmp_path):
    """It says of every file that it can't open that there is none."""
    (tmp_path / "locked").write_text("")
    for name, said in (("locked", "no permission"), ("none", "no such file")):
        sentence = describe_os_fault(FileNotFoundError(f"No such file or directory: {tmp_path / name}"))
        assert said in sentence and name in sentence


def make_faults(folder):
    """Kind → a path that can't be opened for that reason, and what is said."""
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "dangling").symlink_to(folder / "gone")
    (folder / "file").write_text("")
    return {
        folder / "circle": "leads in a circle",
        folder / "dangling": f"a link to {folder / 'gone'}, where nothing is",
        folder / "file" / "inside": "is a file where a folder is needed",
        folder / ("x" * 300): "too long",
        folder: "a folder where a file is needed",
    }


@pytest.mark.parametrize("read", [load_yaml, hash_file, lambda path: open_ranged(str(path))])
def test_whoever_opens_a_file_says_why_it_can_not(tmp_path, read):
    """Settings, what is hashed, and text: the same sentence, which stays readable with a long name."""
    for path, said in make_faults(tmp_path).items():
        with pytest.raises(UserError, match=said) as told:
            read(path)
        assert str(path)[:50] in str(told.value) and len(str(told.value)) < 500


def test_other_errors_pass_through_with_their_own_words(tmp_path):
    """A number that nobody knows is said as the system says it; what has none is raised as it is."""
    with pytest.raises(UserError, match="x: can't be read or written: odd"), explain_os_faults("x"):
        raise OSError(10**6, "odd")
    with pytest.raises(OSError, match="bare"), explain_os_faults("x"):
        raise OSError("bare")


@pytest.fixture
def open_folder():
    """A folder that anybody may enter, which those of pytest's aren't."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_that_may_not_be_read_is_not_called_damaged(open_folder, name):
    """Of weights of mode 600 that belong to somebody else it is said that there is no permission."""
    for each in ("config.json", "model.safetensors", "tokenizer.json"):
        (open_folder / each).write_text("{}")
    (open_folder / name).chmod(0o600)
    child = os.fork()
    if not child:  # it has all imports already, which somebody else may not read
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            list_model_files(open_folder)
        except UserError as told:
            os._exit(0 if f"{name}: there is no permission" in str(told) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
