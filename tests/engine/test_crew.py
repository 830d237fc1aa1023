"""The board gives every task to one crew; one that loses a worker ends as one that did not."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import ray
from common import one_document_each, save_backbone_with_code, save_tiny_backbone

from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec
from adept_ray.engine import cluster as launch
from adept_ray.engine.crew import (
    ATTEMPTS,
    KERNEL_KILL,
    NO_MORE,
    Board,
    Job,
    JobFailed,
    WorkerMemory,
    is_out_of_memory,
    run_job,
    start_crews,
)
from adept_ray.training.work import ProbeWork, TrainWork

SEQ_LEN, STEPS = 16, 150
KILLED_BY_RAY = """The actor died unexpectedly before finishing this task.
Memory on the node (IP: 10.0.0.1, ID: ab) was 30.10GB used / 31.00GB limit (0.970000)
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/"""


def play(scene):
    """Run a scene with a board and, for what has to wait, a function that starts it."""

    async def act():
        def start(coroutine):
            return asyncio.create_task(coroutine)

        await scene(Board(), start)

    asyncio.run(act())


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_worker_waits_until_its_report_is_judged():
    """A verdict asked for before it is given arrives when it is, and only for that report."""

    async def scene(board, start):
        early, other = start(board.verdict("trial-001", 1)), start(board.verdict("trial-001", 2))
        await settle()
        assert not early.done()
        await board.decide("trial-001", 1, True)
        await board.decide("trial-001", 1, False)  # the first decision stands
        await settle()
        assert await early is True and not other.done()
        await board.decide("trial-001", 2, False)
        assert await other is False
        assert await board.verdict("trial-001", 1) is True

    play(scene)


def test_every_worker_gets_every_task_once():
    """A worker that asks early waits; one that asks late gets the same task; nobody gets a finished one."""

    async def scene(board, start):
        early = start(board.task(0, -1))
        await settle()
        assert not early.done()
        assert await board.submit("a", ["a"]) == 0
        assert await early == 0 == await board.task(0, -1)
        assert await board.begin(0, 0) == (0, ["a"])
        await board.end(0)
        second = start(board.task(0, 0)), start(board.task(0, 0))
        await board.submit("b", ["b"])
        assert [await one for one in second] == [1, 1]

    play(scene)


def test_reports_come_in_order_and_then_the_end():
    """Whoever waits gets what is new since the last look, each once, and how it ended."""

    async def scene(board, start):
        await board.submit("a", ["a"])
        waiting = start(board.reports(0, 0))
        await settle()
        assert not waiting.done()
        await board.report(0, {"report": 1})
        assert await waiting == ([{"report": 1}], None)
        await board.report(0, {"report": 2})
        await board.end(0, "why")
        await board.end(0, "another worker's later reason")
        assert await board.reports(0, 1) == ([{"report": 2}], "why")

    play(scene)


def test_a_task_that_kills_its_workers_is_given_up():
    """It has failed then, saying what was heard first, and the next one begins."""

    async def scene(board, start):
        await board.submit("deadly", ["deadly"])
        await board.submit("harmless", ["harmless"])
        await board.task(0, -1)
        await board.fault(0, "a bad day")
        for _ in range(ATTEMPTS):
            assert (await board.begin(0, await board.task(0, -1)))[1] == ["deadly"]
            await board.died(0, "the actor died")
        _, end = await board.reports(0, 0)
        assert end == f"the workers died {ATTEMPTS} times at this task\na bad day"
        assert (await board.begin(0, await board.task(0, -1)))[1] == ["harmless"]

    play(scene)


def test_a_task_that_gets_on_is_not_given_up():
    """Every report that comes further than all before gives it its attempts back; a repeated one doesn't."""

    async def scene(board, start):
        await board.submit("long", ["long"])
        for number in range(2 * ATTEMPTS):
            assert await board.task(0, -1) == 0
            await board.report(0, {"report": number + 1})
            await board.died(0, "")
        for _ in range(ATTEMPTS - 1):
            assert await board.task(0, -1) == 0
            await board.report(0, {"report": 2 * ATTEMPTS})
            await board.died(0, "")
        assert (await board.reports(0, 99))[1] is not None

    play(scene)


def test_leaving_is_no_death():
    """Workers that leave their nodes, however often, or become more, aren't held against the task."""

    async def scene(board, start):
        await board.submit("wandering", ["wandering"])
        for _ in range(2 * ATTEMPTS):
            assert await board.begin(0, await board.task(0, -1)) == (0, ["wandering"])
            await board.give_back(0)
        assert await board.reports(0, -1) == ([], None)

    play(scene)


def test_what_a_dead_crew_was_at_goes_to_one_that_has_workers():
    """Else it would wait for workers that may never come."""

    async def scene(board, start):
        for name in "ab":
            await board.submit(name, [name])
        assert [await board.task(crew, -1) for crew in (0, 1)] == [0, 0]
        await board.end(1)
        idle = start(board.task(1, 0))
        await settle()
        assert not idle.done()
        await board.died(0, "its node is gone")
        assert await board.begin(1, await idle) == (0, ["a"])

    play(scene)


def test_closing_sends_everyone_home():
    """Workers get no more tasks, and who waits for reports hears why there will be none."""

    async def scene(board, start):
        await board.submit("a", ["a"])
        await board.task(0, -1)
        worker, trial = start(board.task(0, 0)), start(board.reports(0, 0))
        await settle()
        await board.close("the cluster is gone")
        assert await worker == NO_MORE
        assert await trial == ([], "the cluster is gone")
        late = await board.submit("b", ["b"])
        assert await board.reports(late, 0) == ([], "the cluster is gone")

    play(scene)


def test_crews_share_the_tasks_out():
    """A task goes to the crew that asks first, to all its workers; what a crew has begun comes first."""

    async def scene(board, start):
        for name in "abc":
            await board.submit(name, [name])
        places = [await board.task(crew, -1) for crew in (0, 1, 1, 0)]
        assert places == [0, 0, 0, 0]  # each crew's first; its second worker gets the same
        assert [(await board.begin(crew, 0))[0] for crew in (0, 1)] == [0, 1]
        await board.end(1)
        assert await board.task(1, 0) == 1 and (await board.begin(1, 1))[1] == ["c"]
        late = start(board.task(1, 1))
        await settle()
        assert not late.done()
        assert await board.task(1, -1) == 1  # workers that were started anew go on with what was begun
        await board.give_back(0)
        await board.end(2)
        assert await late == 2 and await board.begin(1, 2) == (0, ["a"])

    play(scene)


def test_a_task_handed_in_again_is_the_same_one():
    """Whoever takes the place of one that died hears all reports; the end too, if that was a failure."""

    async def scene(board, start):
        assert await board.submit("trial", ["lost"]) == 0
        await board.task(0, -1)
        await board.report(0, {"report": 1})
        assert await board.submit("trial", ["again"]) == 0
        assert await board.reports(0, 0) == ([{"report": 1}], None)
        assert await board.begin(0, 0) == (0, ["again"])  # what the lost one referred to is lost, too
        await board.end(0, "diverged")
        assert await board.submit("trial", ["third"]) == 0
        assert await board.reports(0, 0) == ([{"report": 1}], "diverged")
        assert await board.submit("probe", ["once"]) == 1
        await board.end(1)
        assert await board.submit("probe", ["twice"]) == 2  # one that went well can be done anew

    play(scene)


def test_what_ran_out_of_memory_is_not_begun_again(tmp_path):
    """Ray's word that it killed a worker for its memory ends the task; a resumed run remembers the k."""

    async def scene(board, start):
        board = Board(str(tmp_path))
        await board.submit("large", ["large"])
        await board.task(0, -1)
        await board.died(1, KILLED_BY_RAY)  # another crew, which had no task
        await board.died(0, "The actor died unexpectedly.")
        assert await board.task(0, -1) == 0
        await board.died(0, KILLED_BY_RAY)
        (_, end), _ = await board.reports(0, 0), await board.exceeded(6)
        assert is_out_of_memory(end)
        await board.exceeded(8)
        assert await board.limit() == await Board(str(tmp_path)).limit() == 6

    play(scene)


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

    def room(memory, **settings):
        run = RunSpec(**{"compile": "on", **settings})
        return WorkerMemory(
            {name: run.read_field(name) for name in list_fields(RunSpec, Mark.FITTING)}, memory
        )

    async def scene(board, start):
        await Board(str(tmp_path), room(100)).exceeded(6)
        again = Board(str(tmp_path), room(memory, **settings))
        assert await again.limit() == limit
        await again.exceeded(8)  # another k, in that room
        assert await Board(str(tmp_path), room(memory, **settings)).limit() == (limit or 8)

    play(scene)


def test_a_kill_by_the_kernel_is_counted_from_the_last_task():
    """Each node of a crew says how many there were when the task began; another crew's don't count."""

    async def scene(board, start):
        for name in "ab":
            await board.submit(name, [name])
        for number, node, kills in ((0, "first", 2), (0, "second", 0), (1, "first", 3)):
            await board.begin(number, await board.task(number, -1), node, kills)
        assert await board.kills(0) == {"first": 2, "second": 0}
        assert await board.kills(0) == {}  # of a group that died before it began anything
        await board.died(0, f"The actor died unexpectedly.\n{KERNEL_KILL}")
        assert is_out_of_memory((await board.reports(0, 0))[1])
        assert await board.kills(1) == {"first": 3}

    play(scene)


# --- with Ray -------------------------------------------------------------------------------------


def blocks(number, seed):
    return one_document_each(3 + np.random.default_rng(seed).integers(0, 300, (number, SEQ_LEN)))


BLOCKS = {
    name: blocks(4, seed) for seed, name in enumerate(("probe", "remeasure", "general", "domain", "train"))
}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A crew of two, where torch.compile does nothing, for what it makes would take minutes here."""
    run = RunSpec(name="a run", workers=2, dashboard=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        with launch.connect_cluster(run), start_crews(run, str(tmp_path_factory.mktemp("ray"))) as board:
            yield board


def test_workers_share_the_memory_of_their_machine(board):
    """Half of it for each of two, whatever Ray keeps for its objects left out."""
    (node,) = ray.nodes()
    alone, two = (launch.measure_worker_memory(RunSpec(workers=n)) for n in (1, 2))
    assert alone == int(node["Resources"]["memory"]) and two == alone // 2


@pytest.fixture(scope="module")
def work(board, tmp_path_factory):
    """A training of many short steps on what the crew measured."""
    backbone = str(save_tiny_backbone(tmp_path_factory.mktemp("backbone"), layers=3))
    asked = ProbeWork(backbone, None, 4, held_out=("general", "domain"))
    measured = run_job(board, Job("probe", "probe", asked, ray.put(BLOCKS)))
    return TrainWork(
        source=backbone,
        revision=None,
        training=TrainingSpec(
            k=1, base_lr=1e-3, tokens=STEPS * SEQ_LEN, tokens_per_step=SEQ_LEN, reports=5, recompute_every=40
        ),
        layers=(1,),
        units=measured["importance"]["units"],
        before=measured["nats"],
        weights=ScoreWeights(),
        seq_len=SEQ_LEN,
        micro_batch=4,
        seed=0,
    )


def workers():
    """Process ids of the workers that are alive."""
    actors = ray._private.state.actors().values()
    return [a["Pid"] for a in actors if a["ActorClassName"] == "RayTrainWorker" and a["State"] == "ALIVE"]


@pytest.mark.slow
def test_a_diverged_training_says_why_and_the_workers_stay(board, work, tmp_path):
    """It fails on all workers alike, so none of them has to start anew for the next task."""
    before = workers()
    hot = replace(work, training=work.training.model_copy(update={"base_lr": 1e38}))
    with pytest.raises(JobFailed, match=r"FloatingPointError: the loss is .* at step \d+ of 150"):
        run_job(board, Job("hot", "train", hot, ray.put(BLOCKS), str(tmp_path)))
    measured = run_job(board, Job("after", "probe", ProbeWork(work.source, None, 4), ray.put(BLOCKS)))
    assert measured["importance"]["units"] == pytest.approx(work.units)
    assert workers() == before and len(before) == 2


@pytest.mark.slow
def test_workers_time_their_steps_together(board, work, tmp_path):
    """Each of two makes its share of every step, else one would wait for ever; the next task goes well."""
    found = run_job(board, Job("pace", "pace", work, ray.put(BLOCKS)))
    assert not found["fault"] and found["plain"] > 0 and found["compiled"] > 0
    assert ray.get(board.read.remote())[0]["pace"] == (2, 2)
    short = replace(work, training=work.training.model_copy(update={"tokens": 10 * SEQ_LEN}))
    assert run_job(board, Job("short", "train", short, ray.put(BLOCKS), str(tmp_path)))["complete"]


@pytest.mark.slow
def test_trust_reaches_the_workers(board, tmp_path):
    """Each of them runs the code that came with a backbone."""
    marker = tmp_path / "marker"
    own = str(save_backbone_with_code(tmp_path / "own", marker))
    run_job(board, Job("trusted", "probe", ProbeWork(own, None, 4, trusted=True), ray.put(BLOCKS)))
    assert set(map(int, marker.read_text().split())) == set(workers())
