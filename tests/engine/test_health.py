"""A job that kills its workers is given up; a k that was too large is remembered as long as it is."""

import pytest

from adept_ray.config.specs import RunSpec
from adept_ray.engine.health import ATTEMPTS, CrewHealth, MemoryLimit, describe_worker_memory
from adept_ray.engine.job import KERNEL_KILL, CrewLost, Outcome, is_out_of_memory

KILLED_BY_RAY = """The actor died unexpectedly before finishing this task.
Memory on the node (IP: 10.0.0.1, ID: ab) was 30.10GB used / 31.00GB limit (0.970000)
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/"""


@pytest.fixture
def health():
    return CrewHealth()


@pytest.mark.parametrize("fault", ["a bad day", ""])
def test_a_job_that_kills_its_workers_is_given_up(health, fault):
    """It has failed then, saying what was heard first: a worker's own word, or else what it died of."""
    if fault:
        health.record_fault(0, fault)
    ends = [health.record_death(0, f"death {number}") for number in range(ATTEMPTS)]
    reason = fault or "death 0"
    assert ends == [None] * (ATTEMPTS - 1) + [
        Outcome(f"the workers died {ATTEMPTS} times at this job\n{reason}")
    ]


def test_a_job_that_gets_on_is_not_given_up(health):
    """Its deaths are forgiven, and no other job's."""
    for _ in range(2 * ATTEMPTS):
        assert health.record_death(0, "") is None
        health.forgive_deaths(0)
    others = [health.record_death(1, "") for _ in range(ATTEMPTS - 1)]
    health.forgive_deaths(0)
    assert others == [None] * (ATTEMPTS - 1) and health.record_death(1, "") is not None


@pytest.mark.parametrize("error", [KILLED_BY_RAY, f"The actor died unexpectedly.\n{KERNEL_KILL}"])
def test_what_ran_out_of_memory_is_given_up_at_once(health, error):
    """Ray's word, or the kernel's, that a worker was killed for its memory: it would be again."""
    assert health.record_death(0, "The actor died unexpectedly.") is None
    outcome = health.record_death(0, error)
    assert outcome == Outcome(error) and is_out_of_memory(outcome.error)


def test_a_worker_that_took_its_share_at_most_is_killed_for_others():
    """It is begun again; where that goes on, nothing of ours was too large, so no job is at fault."""
    killed = f"{KILLED_BY_RAY}\nSelected to kill: (pid=7, actual memory used={{}}GB, worker ID=d5)"
    health = CrewHealth(memory=10 * 2**30)
    *ends, last = [health.record_death(0, killed.format(2.5)) for _ in range(ATTEMPTS)]
    assert ends == [None] * (ATTEMPTS - 1)
    assert last.kind is CrewLost and "2.5 of the 10.0 GiB" in last.error and "\n" not in last.error
    assert not is_out_of_memory(last.error)  # no k was too large
    too_large = killed.format(9.5)
    assert health.record_death(1, too_large) == Outcome(too_large)


def test_a_kill_by_the_kernel_is_counted_from_the_last_job(health):
    """Each node of a crew says how many there were when the job began; another crew's don't count."""
    for crew, node, kills in ((0, "first", 1), (0, "first", 2), (0, "second", 0), (1, "first", 3)):
        health.record_kills(crew, node, kills)
    assert health.take_kills(0) == {"first": 2, "second": 0}
    assert health.take_kills(0) == {}  # of a group that died before it began anything
    assert health.take_kills(1) == {"first": 3}


def test_a_change_of_size_is_seen_once(health):
    """A crew is taken for whole at first; each crew has its own size."""
    sizes = [(0, 2), (0, 1), (0, 1), (1, 2), (0, 2), (1, 1)]
    changed = [health.change_size(crew, size, 2) for crew, size in sizes]
    assert changed == [False, True, False, False, True, True]


def test_the_smallest_k_that_was_too_large_is_remembered(tmp_path):
    """By a resumed run, too, but by none without a folder."""
    for folder in (str(tmp_path), ""):
        limit = MemoryLimit(folder)
        assert limit.k is None
        for k in (6, 8):
            limit.lower_limit(k)
            limit.store_limit()
        assert limit.k == 6 and MemoryLimit(folder).k == (6 if folder else None)


@pytest.mark.parametrize("content", ["6", "[]", "null"])
def test_a_file_that_does_not_say_of_which_workers_it_is_says_nothing(tmp_path, content):
    (tmp_path / "limit.json").write_text(content)
    assert MemoryLimit(str(tmp_path)).k is None


@pytest.mark.parametrize(
    ("settings", "memory", "limit"),
    [
        ({}, 100, 6),
        ({}, 90, 6),
        ({}, 105, 6),  # what a machine has free is never quite the same
        ({}, 120, None),
        ({"micro_batch": 1}, 100, None),
        ({"activation_checkpointing": "on"}, 100, None),
        ({"sharding": "on", "workers": 2}, 100, None),
        ({"compile": "off"}, 100, None),
    ],
)
def test_a_k_that_was_too_large_is_tried_again_with_what_may_cure_it(tmp_path, settings, memory, limit):
    """Other settings, or more memory; what it was too large for then says nothing of now."""

    def read_limit(memory, **settings):
        run = RunSpec(**{"compile": "on", **settings})
        return MemoryLimit(str(tmp_path), describe_worker_memory(run, memory))

    first, again = read_limit(100), None
    first.lower_limit(6)
    first.store_limit()
    again = read_limit(memory, **settings)
    assert again.k == limit
    again.lower_limit(8)  # another k, in that room
    again.store_limit()
    assert read_limit(memory, **settings).k == (limit or 8)


def test_workers_of_other_crews_are_counted_where_they_are(health):
    """Node by node, as they are now; a crew that lost its workers is nowhere."""
    assert health.record_place(0, "first", 2) == 0
    assert health.record_place(1, "second", 1) == 0 and health.record_place(1, "first", 3) == 2
    assert health.record_place(2, "first", 1) == 2 + 3 and health.record_place(0, "first", 2) == 3 + 1
    health.forget_places(1)
    assert health.record_place(0, "first", 2) == 1
