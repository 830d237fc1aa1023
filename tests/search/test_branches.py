"""A trial in branches: one plateau, readings of whole trainings, whatever kills it and whoever stops it."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from common import local_backbone, save_tiny_backbone
from ray import cloudpickle
from safetensors.torch import load_file
from trainings import BLOCKS, CPU, LAYERS, PER_STEP, SEQ_LEN, Run, changed, same

from adept_ray.config.errors import UserError
from adept_ray.config.schedules import count_trial_steps, fix_warmup, list_lengths
from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.data.loading import Backbone
from adept_ray.engine import job_kinds, voice
from adept_ray.engine.job import Branch
from adept_ray.engine.job_kinds import perform_training
from adept_ray.engine.voice import JobVoice
from adept_ray.method.importance import LayerImportance
from adept_ray.search import branches, trial_process
from adept_ray.search.branches import check_schedule, plan_branches
from adept_ray.search.setup import rebuild_work
from adept_ray.search.trial_process import TrialErrand, run_trial
from adept_ray.search.trials import Trial
from adept_ray.search.upkeep import delete_checkpoints
from adept_ray.training.stage1 import run_probe
from adept_ray.training.state import WEIGHTS
from adept_ray.training.work import ProbeWork, TrainWork

TOKENS = PER_STEP * SEQ_LEN
LENGTHS = (4, 8, 16)  # steps of the branches; they decay from steps 3, 6 and 12 on
SETTING = {"k": 2, "warmup": 0.5}
TIMED = ("seconds", "training_seconds", "tokens_per_second", "peak_gib", "saved")
OF_TRIAL = ("report", "complete", "curve")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What the trials of a search share: by wsd, in three branches."""
    backbone = local_backbone(save_tiny_backbone(tmp_path_factory.mktemp("backbone"), layers=3))
    found = run_probe(ProbeWork(backbone, 2, held_out=("general", "domain")), BLOCKS, CPU)
    sizes = {"tokens": LENGTHS[-1] * TOKENS, "tokens_per_step": TOKENS, "reports": len(LENGTHS)}
    how = {"schedule": "wsd", "decay": 0.25, "base_lr": 1e-2, "recompute_every": 3, "dial": "off"}
    return TrainWork(
        backbone=backbone,
        training=TrainingSpec(**sizes, **how),
        layers=LAYERS,
        units=found["importance"]["units"],
        before=found["nats"],
        weights=ScoreWeights(),
        seq_len=SEQ_LEN,
        micro_batch=2,
        seed=0,
    )


@pytest.fixture(scope="module")
def wholes(work, tmp_path_factory):
    """The trainings of each length, from the backbone on."""
    plain = changed(work, **SETTING, warmup_tokens=2 * TOKENS, reports=1)
    folder = tmp_path_factory.mktemp("wholes")
    return [Run(folder / str(steps), changed(plain, tokens=steps * TOKENS)) for steps in LENGTHS]


class Builder:
    """Builds the work of a trial, as a search's setup does."""

    def __init__(self, work):
        self.work = work

    def build_work(self, setting):
        return replace(self.work, training=apply_changes(self.work.training, setting))


class Killed(BaseException):
    """The process is gone."""


class SearchHere:
    """A board, its crew and Tune in this process; it is killed once at a step of the trial, or a verdict."""

    def __init__(self, work, folder, kill_at=None, stop_after=None):
        setup = cloudpickle.dumps(Builder(work))
        self.errand = TrialErrand("a run", str(folder), work.training, setup, SEQ_LEN)
        self.kill_at, self.stop_after = kill_at, stop_after
        self.heard, self.steps = [], []

    def run(self):
        """The trial in a process of its own, and in another one where that was killed."""
        try:
            run_trial(SETTING, self.errand, (BLOCKS,))
        except Killed:
            self.kill_at = None
            run_trial(SETTING, self.errand, (BLOCKS,))
        return self

    def follow_job(self, board, job):
        self.reports = []
        perform_training(job, job.work.build(), job.blocks, JobVoice(self, 0, True, CPU), CPU)
        return self.reports

    def add_report(self, number, metrics):
        self.reports.append(metrics)

    def record_progress(self, name, done, total):
        self.steps.append((done, total))
        if done == self.kill_at:
            raise Killed

    def wait_for_verdict(self, name, report):
        if self.kill_at == f"verdict {report}":
            raise Killed
        return report == self.stop_after

    def read_limit(self):
        return None

    def record_numbers(self, name, numbers):
        """Nobody watches."""


@pytest.fixture
def search(work, tmp_path, monkeypatch):
    """What runs a trial here; it takes where it is killed, or stopped."""

    def begin(**options):
        here = SearchHere(work, tmp_path, **options)
        monkeypatch.setattr(branches, "follow_job", here.follow_job)
        monkeypatch.setattr(trial_process, "find_board", lambda run: here)
        monkeypatch.setattr(trial_process.tune, "report", here.heard.append)
        return here.run()

    context = SimpleNamespace(get_trial_name=lambda: "trial-001 k=2")
    monkeypatch.setattr(trial_process.tune, "get_context", lambda: context)
    monkeypatch.setattr(job_kinds, "is_preempted", lambda: False)
    monkeypatch.setattr(voice, "PROGRESS_EVERY_S", -1)
    return begin


def strip(metrics, *names):
    """A report without what differs from process to process, and without some of `names`."""
    return {name: value for name, value in metrics.items() if name not in (*TIMED, "worth", *names)}


def test_a_trial_reads_what_whole_trainings_read(search, wholes, tmp_path):
    """Each report is one of a training twice as long as that before; together they take 19 steps, not 28.

    What is left is the plateau and the weights of the longest branch.
    """
    here = search()
    assert [strip(each, *OF_TRIAL) for each in here.heard] == [
        strip(whole.metrics[-1], *OF_TRIAL) for whole in wholes
    ]
    assert [(each["report"], each["complete"]) for each in here.heard] == [(1, False), (2, False), (3, True)]
    assert here.heard[-1]["curve"] == [whole.metrics[-1]["curve"][0] for whole in wholes]
    assert here.steps == [(done, 19) for done in range(1, 20)]
    seconds = [each["seconds"] for each in here.heard]
    assert seconds == sorted(seconds) and seconds[0] > 0
    folder = tmp_path / "trials" / "trial-001"
    assert sorted(os.listdir(folder)) == ["768", "plateau", "reading.json"]
    assert here.heard[-1]["saved"] == str(folder / "768" / "step-16")
    assert same(load_file(folder / "768" / "step-16" / WEIGHTS), wholes[-1].weights())


@pytest.mark.parametrize(
    ("kill_at", "heard", "again"),
    [
        (4, [1, 2, 3], 4),  # at the end of the first branch, before its report: its plateau was kept
        ("verdict 1", [1, 1, 2, 3], 5),  # between two branches
        (5, [1, 1, 2, 3], 5),  # at the beginning of a branch
        (13, [1, 2, 2, 3], 10),  # mid-way in the longest
    ],
)
def test_a_trial_that_is_killed_ends_as_if_it_had_not_been(search, wholes, tmp_path, kill_at, heard, again):
    """It begins `again` at a step of its own: the last plateau's. Nothing that was read is read again."""
    here = search(kill_at=kill_at)
    assert [each["report"] for each in here.heard] == heard
    assert strip(here.heard[-1], *OF_TRIAL) == strip(wholes[-1].metrics[-1], *OF_TRIAL)
    assert here.heard[-1]["curve"] == [whole.metrics[-1]["curve"][0] for whole in wholes]
    assert same(load_file(f"{here.heard[-1]['saved']}/{WEIGHTS}"), wholes[-1].weights())
    done = [step for step, _ in here.steps]
    cut = next((at for at, step in enumerate(done) if at and step <= done[at - 1]), done.index(again))
    assert done[cut:] == list(range(again, 20))


def test_a_trial_that_is_stopped_can_be_gone_on_with(search, wholes, tmp_path):
    """It leaves the plateau when its weights are deleted, and from there it goes on as it would have."""
    here = search(stop_after=2)
    assert [each["report"] for each in here.heard] == [1, 2] and not here.heard[-1]["complete"]
    saved = here.heard[-1]["saved"]
    trial = Trial("trial-001", 2, state="stopped", saved=saved, score=1.0)
    assert trial.folder == "trial-001/384" and delete_checkpoints([trial], ScoreWeights(), False) == [saved]
    folder = tmp_path / "trials" / "trial-001"
    assert sorted(os.listdir(folder)) == ["plateau", "reading.json"]
    assert os.listdir(folder / "plateau") == ["step-6"]
    on = search()
    assert [each["report"] for each in on.heard] == [2, 3]
    assert strip(on.heard[-1], *OF_TRIAL) == strip(wholes[-1].metrics[-1], *OF_TRIAL)


def test_a_plateau_goes_with_what_can_not_be_gone_on_with(search, tmp_path):
    """At the end of a trial, and if it failed; the weights of what may be chosen stay."""
    folder = tmp_path / "trials" / "trial-001"
    finished = Trial("trial-001", 2, state="finished", saved=search().heard[-1]["saved"], score=1.0)
    assert delete_checkpoints([finished], ScoreWeights(), False) == []
    assert sorted(os.listdir(folder)) == ["768", "reading.json"]
    failed = replace(finished, state="failed")
    assert delete_checkpoints([failed], ScoreWeights(), False) == [failed.saved] and not folder.exists()


# --- the plan -------------------------------------------------------------------------------------


def wsd(steps=16, reports=3, **changes):
    """What a trial trains with, in steps of 16 tokens."""
    return TrainingSpec(tokens=steps * 16, tokens_per_step=16, reports=reports, schedule="wsd", **changes)


def test_branches_double_and_share_their_plateau():
    """Each is further in its trial by the decays before it; a cosine trial is its own steps."""
    assert list_lengths(wsd()) == [64, 128, 256]
    assert plan_branches(wsd(decay=0.25), 16) == [Branch(64, 0, 19), Branch(128, 1, 19), Branch(256, 3, 19)]
    assert plan_branches(wsd(4, decay=0.9), 16) == [Branch(16, 0, 7), Branch(32, 1, 7), Branch(64, 3, 7)]
    assert count_trial_steps(wsd(24), 16) == 6 + (12 - 5) + (24 - 10)
    assert count_trial_steps(wsd(24, reports=1), 16) == count_trial_steps(TrainingSpec(), 128) == 24
    share = count_trial_steps(wsd(16 * 600, reports=5), 16) / (16 * 600)
    assert 1.1 < share < 1.3


def test_the_warm_up_is_a_share_of_the_first_branch():
    """In tokens, so that best.yaml has it for a training of any length; other schedules have none such."""
    assert fix_warmup(wsd(warmup=0.3)).warmup_tokens == 20
    assert fix_warmup(wsd(warmup=0.0)).warmup_tokens == 0
    assert fix_warmup(TrainingSpec()) == TrainingSpec()
    weights, importance = ScoreWeights(), LayerImportance((0.3, 0.1), (0.01,) * 2, 3.0)
    work = TrainWork(Backbone("", ""), wsd(), (), {}, {}, weights, 8, 1, 0)
    trial = Trial("trial-001", 1, setting={"warmup": 0.3}, tokens=128, dial=0.5)
    training = rebuild_work(work, importance, trial).training
    assert (training.schedule, training.tokens, training.warmup_tokens) == ("wsd", 128, 20)
    longer = apply_changes(training, {"tokens": 10**6, "reports": 10})
    assert fix_warmup(longer) == longer


@pytest.mark.parametrize(
    ("ranges", "training", "words"),
    [
        ({}, wsd(), None),
        ({"decay": {"fixed": 0.2}}, wsd(), None),
        ({"decay": {"fixed": 0.2}}, TrainingSpec(), "'decay': only --schedule wsd has one"),
        ({}, wsd(16, reports=6), "--reports 6 .* would train on 8 of 256 tokens, and a step takes 16: lower"),
        ({"tokens_per_step": {"choice": [16, 80]}}, wsd(), "64 of 256 tokens, and a step takes 80"),
        (
            {"warmup": {"float": [0.1, 0.5]}, "decay": {"float": [0.1, 0.6]}},
            wsd(),
            "the first branch: a warm-up of 32 tokens doesn't end before the decay, the last 60% of 64",
        ),
    ],
)
def test_what_can_not_be_read_by_its_schedule_is_refused(ranges, training, words):
    """Before anything is measured, whichever of the settings it is of which that holds."""
    space = SearchSpace(parameters={"k": {"int": [1, 2]}, **ranges})
    if words is None:
        check_schedule(space, training, 16)
        return
    with pytest.raises(UserError, match=words):
        check_schedule(space, training, 16)
