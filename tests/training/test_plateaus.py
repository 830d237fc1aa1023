"""Trainings by wsd without Ray: a branch of a plateau is a whole training of its length, bit for bit."""

from dataclasses import replace

import pytest
from common import write_files
from trainings import PER_STEP, SEQ_LEN, Run, changed, same

from adept_ray.training import alarms
from adept_ray.training.learner import compute_rate_factor

TOKENS = PER_STEP * SEQ_LEN
LENGTHS = (4, 8, 16)  # steps; they decay from steps 3, 6 and 12 on


@pytest.fixture(scope="module")
def lengths(work):
    """Steps → the training of that length, which measures again where the second one's decay begins."""
    plain = changed(work, schedule="wsd", decay=0.25, warmup_tokens=2 * TOKENS, reports=1)
    return {steps: changed(plain, tokens=steps * TOKENS) for steps in LENGTHS}


@pytest.fixture(scope="module")
def wholes(lengths, tmp_path_factory):
    """Steps → that training from the backbone on."""
    return {n: Run(tmp_path_factory.mktemp(str(n)), work) for n, work in lengths.items()}


def branch(folder, work, **options):
    """A training, and the folder in which it kept the end of its plateau."""
    kept = []
    run = Run(folder / "run", work, keep_plateau=kept.append, **options)
    (plateau,) = kept
    assert plateau.resumable and plateau.step == work.decay_start
    return run, write_files(plateau, folder / "plateau")


def is_whole(run, whole):
    """Whether a training ended as another one did, the history of its rates included."""
    return (
        run.metrics == whole.metrics[-len(run.metrics) :]
        and same(run.weights(), whole.weights())
        and run.state() == whole.state()
    )


def test_the_rate_rises_stays_and_falls(lengths):
    """The steps of a training go by its schedule: the plateaus of all lengths are one."""
    factors = {n: [compute_rate_factor(work, step) for step in range(n)] for n, work in lengths.items()}
    assert factors[16][:3] == [1 / 3, 2 / 3, 1] and set(factors[16][2:12]) == {1}
    assert factors[16][12:] == sorted(factors[16][12:], reverse=True) and factors[16][12] < 1
    assert factors[4][:3] == factors[8][:3] == factors[16][:3] and factors[4][3] < 1


def test_a_branch_is_a_whole_training_of_its_length(lengths, wholes, tmp_path):
    """So a chain of them, each from the plateau of the one before, reads what whole trainings read."""
    run, plateau = branch(tmp_path / "4", lengths[4])
    assert is_whole(run, wholes[4])
    for steps in (8, 16):
        run, plateau = branch(tmp_path / str(steps), lengths[steps], resume=plateau)
        assert is_whole(run, wholes[steps])
    assert [row["step"] for row in run.state()["rates"][::14]][-1] == 15  # measured all along
    assert len({whole.metrics[-1]["score"] for whole in wholes.values()}) == 3


class Killed(Exception):
    """The process is gone."""


def kill_at(step):
    """A progress that ends the process after that step."""

    def progress(done, of):
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize(
    ("step", "goes_on_from"),
    [
        (4, "the plateau before"),  # after its first step
        (5, "the clock"),  # mid-way
        (6, "the clock"),  # before its own plateau ends
        (7, "its own plateau"),  # in the decay
    ],
)
def test_a_branch_that_is_killed_anywhere_is_a_whole_training(
    lengths, wholes, tmp_path, monkeypatch, step, goes_on_from
):
    """It goes on from the newest that was kept: its beginning, what the clock saved, or its own plateau."""
    plateau = branch(tmp_path / "4", lengths[4])[1]
    clock, own = [], []
    monkeypatch.setattr(alarms, "SAVE_EVERY_S", 0 if goes_on_from == "the clock" else 1000)
    options = {"keep": clock.append, "keep_plateau": own.append, "progress": kill_at(step)}
    with pytest.raises(Killed):
        Run(tmp_path / "killed", lengths[8], resume=plateau, **options)
    kept = {"the plateau before": [], "the clock": clock, "its own plateau": own}[goes_on_from]
    start = write_files(kept[-1], tmp_path / "kept") if kept else plateau
    again = Run(tmp_path / "again", lengths[8], resume=start)
    assert is_whole(again, wholes[8])
    assert [checkpoint.step for checkpoint in own] == ([6] if step == 7 else [])


def test_a_branch_goes_on_where_it_ended(lengths, wholes, tmp_path):
    """Killed between two branches: the first one's last report comes again, the second begins as it would."""
    again = Run(tmp_path / "again", lengths[4], resume=wholes[4].folders[-1], keep_plateau=pytest.fail)
    assert is_whole(again, wholes[4])


def test_readings_on_the_plateau_leave_no_trace(lengths, wholes, tmp_path):
    """A training that reports as it goes, as one at full length does, ends as one that doesn't."""
    often, plateau = branch(tmp_path / "often", changed(lengths[8], reports=4))
    assert same(often.weights(), wholes[8].weights())
    assert often.metrics[-1]["score"] == wholes[8].metrics[-1]["score"]
    assert is_whole(Run(tmp_path / "rest", changed(lengths[8], reports=4), resume=plateau), often)


def test_a_decay_from_the_first_step_on_leaves_no_plateau(work, tmp_path):
    """A longer training has nothing to branch off, and begins at the backbone, too; cosine has no plateau."""
    short = changed(work, schedule="wsd", decay=0.9, warmup=0.0, tokens=4 * TOKENS, reports=1)
    assert short.decay_start == 0
    for each in (short, replace(work, training=work.training.model_copy(update={"reports": 1}))):
        Run(tmp_path / str(each.steps), each, keep_plateau=pytest.fail)
