"""A trial by wsd: one plateau, and branches of it that are read at lengths that double.

A branch is a training of a length of its own that goes on from where a shorter one left the plateau. It ends,
bit for bit, as a whole training of that length does (see :func:`~adept_ray.method.rates.wsd_factor`), and is
read at its end. All branches of a trial take as many steps as the longest, and those of the decays before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from adept_ray.config.errors import UserError
from adept_ray.config.schedules import (
    count_step_tokens,
    count_trial_steps,
    fix_warmup,
    list_decay_steps,
    list_lengths,
)
from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.engine.client import BoardClient, follow_job
from adept_ray.engine.job import Branch, DeferredWork, Job, Metrics
from adept_ray.storage.files import delete_folder, read_json, store_json

READING = "reading.json"  # in a trial's folder: its last reading, of a branch that is over
SPENT = ("seconds", "training_seconds")  # numbers of a reading that add up over a trial's branches


def plan_branches(training: TrainingSpec, seq_len: int) -> list[Branch]:
    """Where each of a trial's branches lies in it: further by the decays of those before."""
    total, decays = count_trial_steps(training, seq_len), list_decay_steps(training, seq_len)
    offsets = itertools.accumulate(decays[:-1], initial=0)
    return [
        Branch(tokens, offset, total) for tokens, offset in zip(list_lengths(training), offsets, strict=True)
    ]


def check_schedule(space: SearchSpace, base: TrainingSpec, seq_len: int) -> None:
    """Refuse a space whose trials can't all be read by their schedule. Raises :class:`UserError`.

    `base` has what isn't searched.
    """
    if base.schedule != "wsd":
        if "decay" in space.parameters:
            raise UserError(
                "parameter 'decay': only --schedule wsd has one, so give that flag or leave the parameter out"
            )
        return
    names = ("tokens_per_step", "warmup", "decay")
    largest = {name: max(space.parameters[name].values) for name in names if name in space.parameters}
    shortest = list_lengths(base)[0]
    step = count_step_tokens(base.model_copy(update=largest), seq_len)
    if shortest < step:
        raise UserError(
            f"--reports {base.reports} by --schedule wsd: of so many branches, each half as long as the "
            f"next, the first would train on {shortest} of {base.tokens} tokens, and a step takes {step}: "
            "lower --reports or raise --tokens-per-trial"
        )
    apply_changes(base, {**largest, "tokens": shortest}, where="--schedule wsd, the first branch")


def follow_branches(board: BoardClient, job: Job, training: TrainingSpec, seq_len: int) -> Iterator[Metrics]:
    """Hand in the branches of a trial one after the other, and yield a report for each.

    `job` is the trial's, with work that is built of its setting, `training` what that comes to. After each
    branch but the last the verdict on the trial is waited for. A trial that is gone on with repeats its last
    report, which may not have been heard. Raises as :func:`~adept_ray.engine.client.follow_job`.
    """
    place, plan = job.place, plan_branches(training, seq_len)
    last: Metrics | None = read_json(f"{place}/{READING}")
    for number, branch in enumerate(plan, 1):
        if last and number < last["report"]:
            continue
        if last is None or number > last["report"]:
            *_, metrics = follow_job(board, prepare_branch(job, branch, training))
            last = join_readings(last, metrics, len(plan))
            store_json(f"{place}/{READING}", last)
        yield last
        if number > 1:  # nothing goes on from the weights at the end of a decay
            delete_folder(f"{place}/{plan[number - 2].tokens}")
        if number < len(plan) and board.wait_for_verdict(job.name, number):
            return


def prepare_branch(job: Job, branch: Branch, training: TrainingSpec) -> Job:
    """The job of one of a trial's branches; what it trains is built of the trial's setting and its length."""
    assert isinstance(job.work, DeferredWork)
    sizes = {"tokens": branch.tokens, "reports": 1, "warmup_tokens": fix_warmup(training).warmup_tokens}
    work = replace(job.work, setting={**job.work.setting, **sizes})
    return replace(job, work=work, branch=branch, judged=False)  # it has one report, at its end


def join_readings(before: Metrics | None, metrics: Metrics, count: int) -> Metrics:
    """The report of a branch as one of its trial, of `count` in all, whose last one was `before`."""
    before = before or {"report": 0, "curve": []}
    number = before["report"] + 1
    spent = {name: round(before.get(name, 0.0) + metrics[name], 2) for name in SPENT}
    curve = [*before["curve"], *metrics["curve"]]
    return {**metrics, **spent, "curve": curve, "report": number, "complete": number == count}
