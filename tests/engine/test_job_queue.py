"""The queue gives every job to one crew, keeps what is reported of it in order, and ends it once."""

import pytest

from adept_ray.engine.job import DONE, CrewLost, JobFailed, Outcome
from adept_ray.engine.job_queue import NO_MORE, JobQueue


@pytest.fixture
def queue():
    return JobQueue()


def submit(queue, *names):
    """Hand in jobs of these names; returns their numbers."""
    return [queue.submit_job(name, [name]) for name in names]


def begin(queue, crew, done=-1):
    """What a worker of a crew begins that has done so many of its jobs."""
    return queue.read_claim(crew, queue.claim_next(crew, done))


def test_every_worker_gets_every_job_once(queue):
    """All workers of a crew get the same job, however late they ask; nobody gets a finished one."""
    assert not queue.has_next(0, -1)
    assert submit(queue, "a") == [0] and queue.has_next(0, -1)
    assert queue.claim_next(0, -1) == 0 == queue.claim_next(0, -1)
    assert queue.read_claim(0, 0) == (0, ["a"])
    queue.end_job(0, DONE)
    assert not queue.has_next(0, 0) and not queue.has_next(0, -1)
    submit(queue, "b")
    assert [queue.claim_next(0, 0) for _ in range(2)] == [1, 1]


def test_reports_come_in_order_and_then_the_end(queue):
    """What is new since the last look, each once; the first word on the end holds."""
    submit(queue, "a")
    assert not queue.has_news(0, 0)
    queue.add_report(0, {"report": 1})
    assert queue.has_news(0, 0) and queue.read_news(0, 0) == ([{"report": 1}], None)
    assert not queue.has_news(0, 1)
    queue.add_report(0, {"report": 2})
    queue.end_job(0, Outcome("why"))
    queue.end_job(0, Outcome("another worker's later reason"))
    queue.end_job(0, DONE)
    assert queue.has_news(0, 2) and queue.read_news(0, 1) == ([{"report": 2}], Outcome("why"))


def test_a_report_comes_further_than_all_before_or_not(queue):
    """Whoever goes on from a checkpoint repeats reports, and those are no progress."""
    submit(queue, "a")
    assert [queue.add_report(0, {"report": number}) for number in (1, 2, 1, 2, 3)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert not queue.add_report(0, {"importance": "without a number"})


def test_crews_share_the_jobs_out(queue):
    """A job goes to the crew that asks first, to all its workers; what a crew has begun comes first."""
    submit(queue, "a", "b", "c")
    assert [queue.claim_next(crew, -1) for crew in (0, 1, 1, 0)] == [0, 0, 0, 0]  # each crew's first
    assert [queue.read_claim(crew, 0)[0] for crew in (0, 1)] == [0, 1]
    queue.end_job(1, DONE)
    assert begin(queue, 1, done=0) == (2, ["c"])
    assert not queue.has_next(1, 1)
    assert queue.claim_next(1, -1) == 1  # workers that were started anew go on with what was begun


def test_what_a_crew_gives_back_goes_to_whoever_asks_next(queue):
    """Else it would wait for workers that may never come; a crew without a job gives back nothing."""
    submit(queue, "a", "b")
    assert [begin(queue, crew)[0] for crew in (0, 1)] == [0, 1]
    queue.end_job(1, DONE)
    assert not queue.has_next(1, 0)
    queue.give_back_jobs(0)
    queue.give_back_jobs(2)
    assert begin(queue, 1, done=0) == (0, ["a"])
    assert not queue.has_next(0, -1)


def test_the_current_job_is_the_one_that_a_crew_has_begun_and_not_ended(queue):
    """A crew that has none, or none any more, is at no job."""
    submit(queue, "a", "b")
    assert queue.find_current(0) is None
    begin(queue, 0)
    assert (queue.find_current(0), queue.find_current(1)) == (0, None)
    queue.end_job(0, DONE)
    assert queue.find_current(0) is None
    begin(queue, 0, done=0)
    assert queue.find_current(0) == 1


def test_closing_ends_everything(queue):
    """No crew gets another job, nothing is handed in any more, and the first reason holds."""
    submit(queue, "over", "begun", "waiting")
    begin(queue, 0)
    queue.end_job(0, DONE)
    begin(queue, 0, done=0)
    queue.close("the cluster is gone")
    queue.close("the run is over")
    lost = Outcome("the cluster is gone", CrewLost)
    assert queue.closed == lost.error
    assert queue.has_next(0, 1) and queue.claim_next(0, 1) == NO_MORE == queue.claim_next(1, -1)
    (late,) = submit(queue, "late")
    assert [queue.read_news(number, 0)[1] for number in range(4)] == [DONE, lost, lost, lost]
    assert queue.has_news(late, 0)


def test_a_job_handed_in_again_is_the_same_one(queue):
    """Whoever takes the place of one that died hears all reports; the end too, if that was a failure."""
    assert submit(queue, "trial") == [0]
    begin(queue, 0)
    queue.add_report(0, {"report": 1})
    assert queue.submit_job("trial", ["again"]) == 0
    assert queue.read_news(0, 0) == ([{"report": 1}], None)
    assert queue.read_claim(0, 0) == (0, ["again"])  # what the lost one referred to is lost, too
    queue.end_job(0, Outcome("diverged", JobFailed))
    assert queue.submit_job("trial", ["third"]) == 0
    assert queue.read_news(0, 0) == ([{"report": 1}], Outcome("diverged"))
    assert queue.submit_job("probe", ["once"]) == 1
    queue.end_job(1, DONE)
    assert queue.submit_job("probe", ["twice"]) == 2  # one that went well can be done anew
    assert queue.submit_job("probe", ["twice"]) == 2
