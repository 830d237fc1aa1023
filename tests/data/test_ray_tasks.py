"""What goes wrong in a task of Ray Data's arrives as what it is: Ray Data itself passes on a text alone."""

import errno

import pytest
from ray.exceptions import GetTimeoutError

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import describe_os_fault, name_fault_place
from adept_ray.data.ray_tasks import answer_row, read_answer


def carried(fault):
    """The answer of a task whose work raises `fault`."""

    def work(row, job):
        raise fault

    return answer_row({}, work, None)


def test_a_row_comes_back_as_it_was_made():
    """With numbers, texts and what is in them."""
    made = {"bucket": 3, "packed": {"shards": [{"split": "ä"}]}}
    assert read_answer(answer_row({"bucket": 3}, lambda row, job: made, None)) == made


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EIO])
def test_an_error_of_the_system_keeps_number_and_file(number):
    """So that a command can say which file it is, and tell a full disk from no permission."""
    fault = OSError(number, "words", "/cache/blocks/a")
    with pytest.raises(OSError, match="words") as told, name_fault_place("/cache/blocks"):
        read_answer(carried(fault))
    assert (told.value.errno, told.value.filename) == (number, "/cache/blocks/a")


def test_one_that_names_no_file_gets_its_folder():
    """pyarrow's of a bucket has neither number nor file, but words."""
    with pytest.raises(OSError, match="ACCESS_DENIED") as told, name_fault_place("s3://b/cache/blocks"):
        read_answer(carried(OSError("AWS Error ACCESS_DENIED during x")))
    said = describe_os_fault(told.value)
    assert said.startswith("s3://b/cache/blocks: it can't be read or written (AWS Error ACCESS_DENIED")


def test_a_sentence_stays_one_and_ray_keeps_its_own():
    """A timeout of Ray's is an error of the system by its class alone."""
    with pytest.raises(UserError, match=r"^a\.jsonl: no column 'text'$"):
        read_answer(carried(UserError("a.jsonl: no column 'text'")))
    with pytest.raises(GetTimeoutError):
        carried(GetTimeoutError("no answer"))
