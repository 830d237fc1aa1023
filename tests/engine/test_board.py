"""The board lets workers, trials and crews wait for each other; on an event loop, without Ray."""

import asyncio

import pytest

from adept_ray.engine.board import Board
from adept_ray.engine.health import ATTEMPTS, WorkerMemory
from adept_ray.engine.job import DONE, CrewLost, Outcome
from adept_ray.engine.job_queue import NO_MORE


def play(scene):
    """Run a scene with a board and, for what has to wait, a function that starts it."""

    async def act():
        await scene(Board(), asyncio.create_task)

    asyncio.run(act())


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_worker_waits_until_its_report_is_judged():
    """A verdict asked for before it is given arrives when it is, and only for that report."""

    async def scene(board, start):
        early, other = (start(board.wait_for_verdict("trial-001", report)) for report in (1, 2))
        await settle()
        assert not early.done()
        await board.give_verdict("trial-001", 1, True)
        await board.give_verdict("trial-001", 1, False)  # the first word holds
        await settle()
        assert await early is True and not other.done()
        await board.give_verdict("trial-001", 2, False)
        assert await other is False
        assert await board.wait_for_verdict("trial-001", 1) is True

    play(scene)


def test_a_memory_that_others_fill_ends_all_jobs():
    """What waits hears why, and no crew is at work any more."""

    async def scene(board, start):
        for name in ("a", "b"):
            await board.submit_job(name, [name])
        for _ in range(ATTEMPTS):
            turn = await board.claim_job(0, -1)
            await board.begin_job(0, turn)
            await board.record_death(0, "running low on memory, actual memory used=0.5GB")
        ends = [(await board.reports(number, 0))[1] for number in (0, 1)]
        assert {end.kind for end in ends} == {CrewLost} and "end what else uses" in ends[1].error
        assert await board.claim_job(0, -1) == NO_MORE

    async def act():
        await scene(Board(workers=WorkerMemory(memory=2**32)), asyncio.create_task)

    asyncio.run(act())


def test_a_worker_waits_for_its_next_job():
    """One that asks early gets the job when it comes; nobody gets a finished one."""

    async def scene(board, start):
        early = start(board.claim_job(0, -1))
        await settle()
        assert not early.done()
        assert await board.submit_job("a", ["a"]) == 0
        assert await early == 0 == await board.claim_job(0, -1)
        assert await board.begin_job(0, 0) == (0, ["a"])
        await board.end_job(0, DONE)
        second = [start(board.claim_job(0, 0)) for _ in range(2)]
        await board.submit_job("b", ["b"])
        assert [await worker for worker in second] == [1, 1]

    play(scene)


def test_a_trial_waits_for_reports_and_for_the_end():
    """Whoever waits gets what is new since the last look, and how it ended."""

    async def scene(board, start):
        await board.submit_job("a", ["a"])
        waiting = start(board.reports(0, 0))
        await settle()
        assert not waiting.done()
        await board.add_report(0, {"report": 1})
        assert await waiting == ([{"report": 1}], None)
        waiting = start(board.reports(0, 1))
        await settle()
        assert not waiting.done()
        await board.end_job(0, Outcome("why"))
        assert await waiting == ([], Outcome("why"))

    play(scene)


def test_a_job_that_kills_its_workers_makes_room_for_the_next():
    """It is begun again until it is given up."""

    async def scene(board, start):
        await board.submit_job("deadly", ["deadly"])
        await board.submit_job("harmless", ["harmless"])
        await board.record_fault(0, "a bad day")
        for _ in range(ATTEMPTS):
            assert (await board.begin_job(0, await board.claim_job(0, -1)))[1] == ["deadly"]
            await board.record_death(0, "the actor died")
        _, outcome = await board.reports(0, 0)
        assert outcome == Outcome(f"the workers died {ATTEMPTS} times at this job\na bad day")
        assert (await board.begin_job(0, await board.claim_job(0, -1)))[1] == ["harmless"]

    play(scene)


def test_a_job_that_gets_on_is_not_given_up():
    """Every report that comes further than all before gives it its attempts back; a repeated one doesn't."""

    async def scene(board, start):
        await board.submit_job("long", ["long"])
        for number in range(2 * ATTEMPTS):
            assert await board.claim_job(0, -1) == 0
            await board.add_report(0, {"report": number + 1})
            await board.record_death(0, "")
        for _ in range(ATTEMPTS - 1):
            assert await board.claim_job(0, -1) == 0
            await board.add_report(0, {"report": 2 * ATTEMPTS})
            await board.record_death(0, "")
        assert (await board.reports(0, 99))[1] is not None

    play(scene)


def test_leaving_is_no_death():
    """Workers that leave their nodes, however often, or become more, aren't held against the job."""

    async def scene(board, start):
        await board.submit_job("wandering", ["wandering"])
        for _ in range(2 * ATTEMPTS):
            assert await board.begin_job(0, await board.claim_job(0, -1)) == (0, ["wandering"])
            await board.give_back_jobs(0)
        assert await board.reports(0, -1) == ([], None)

    play(scene)


def test_what_a_dead_crew_was_at_goes_to_one_that_has_workers():
    """Else it would wait for workers that may never come; a death of a crew without a job changes nothing."""

    async def scene(board, start):
        for name in "ab":
            await board.submit_job(name, [name])
        assert [await board.claim_job(crew, -1) for crew in (0, 1)] == [0, 0]
        await board.end_job(1, DONE)
        idle = start(board.claim_job(1, 0))
        await board.record_death(1, "it had nothing to do")
        await settle()
        assert not idle.done()
        await board.record_death(0, "its node is gone")
        assert await board.begin_job(1, await idle) == (0, ["a"])

    play(scene)


def test_what_a_leaving_crew_was_at_goes_to_one_that_waits():
    async def scene(board, start):
        await board.submit_job("a", ["a"])
        await board.claim_job(0, -1)
        idle = start(board.claim_job(1, -1))
        await settle()
        assert not idle.done()
        await board.give_back_jobs(0)
        assert await board.begin_job(1, await idle) == (0, ["a"])

    play(scene)


def test_closing_sends_everyone_home():
    """Workers get no more jobs, and who waits for reports hears why there will be none."""

    async def scene(board, start):
        await board.submit_job("a", ["a"])
        await board.claim_job(0, -1)
        worker, trial = start(board.claim_job(0, 0)), start(board.reports(0, 0))
        await settle()
        assert await board.explain_closing() == ""
        await board.close("the cluster is gone")
        lost = [], Outcome("the cluster is gone", CrewLost)
        assert await worker == NO_MORE and await trial == lost
        assert await board.reports(await board.submit_job("b", ["b"]), 0) == lost
        assert await board.explain_closing() == "the cluster is gone"

    play(scene)


def test_a_k_that_was_too_large_is_remembered(tmp_path):
    """By this run and by one that resumes it."""

    async def scene(_, start):
        board = Board(str(tmp_path))
        for k in (6, 8):
            await board.lower_limit(k)
        assert await board.read_limit() == await Board(str(tmp_path)).read_limit() == 6

    play(scene)


def test_the_kernels_kills_are_known_of_the_job_that_a_crew_began():
    async def scene(board, start):
        await board.submit_job("a", ["a"])
        await board.begin_job(0, await board.claim_job(0, -1), "a node", 2)
        assert await board.take_kills(0) == {"a node": 2}

    play(scene)


def test_another_number_of_workers_is_remarked():
    async def scene(board, start):
        for size in (2, 1, 1):
            await board.record_size(0, "trial-001", size, 2)
        assert await board.read_remarks(0) == ["trial-001 goes on with 1 of 2 workers"]

    play(scene)


@pytest.mark.parametrize(("broken", "why"), [(2, "the workers can't be kept running: no room"), (1, "home")])
def test_a_crew_that_cannot_be_kept_leaves_its_job_to_the_others(monkeypatch, broken, why):
    """Its end is remarked, in a line. When all crews are gone the board closes, and says why."""

    async def serve_nothing(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr("adept_ray.engine.board.serve_metrics", serve_nothing)

    async def scene(_, start):
        board = Board(crews=2)
        await board.submit_job("a", ["a"])
        assert await board.claim_job(0, -1) == 0
        loop = asyncio.get_running_loop()

        def keep(crew):
            if crew < broken:
                raise RuntimeError("no room\n\tactor_id: 68")
            # The other crew is kept until the job comes to it.
            asyncio.run_coroutine_threadsafe(board.claim_job(crew, -1), loop).result(10)
            asyncio.run_coroutine_threadsafe(board.close("home"), loop).result(10)

        await board.lead("a run", keep)
        assert await board.count_crews() == 2 and await board.explain_closing() == why
        remarks = [f"crew {number} of 2 is gone for good: no room" for number in range(1, broken + 1)]
        assert sorted(await board.read_remarks(0)) == remarks

    play(scene)
