"""The speed of a search's workers: what they are given to measure, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from adept_ray.config.specs import DoctorRun, ScoreWeights, SearchRun, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.data.blocks import Blocks
from adept_ray.method.anatomy import layer_parameters
from adept_ray.method.compiling import describe_compiler_fault
from adept_ray.method.fit import Fit
from adept_ray.method.scores import SIDES, Metrics
from adept_ray.report.html import format_duration
from adept_ray.run.check_list import Check
from adept_ray.run.checks import format_size
from adept_ray.run.forecast import (
    Amounts,
    compile_steps,
    count_passes,
    forecast_search,
    forecast_training,
    read_speed,
    share_streams,
)
from adept_ray.run.question import Question
from adept_ray.run.sources import Sources
from adept_ray.training.streams import TEXT_SHARE
from adept_ray.training.work import SpeedWork, TrainWork

SEARCHED = ("recompute_every", "tokens_per_step")  # that change how much a trial computes, apart from k
TEXT_BLOCKS = 8  # of random text to train on, at least
TRAIN_REPORTS = 10  # readings of train.py, unless somebody gives another number


@dataclass(frozen=True)
class SpeedQuestion:
    """The training whose speed is measured, and the blocks that it is measured on."""

    training: TrainingSpec
    work: SpeedWork
    blocks: dict[str, Blocks]
    block_bytes: int
    """Of the stream of one block."""


def pose_speed_question(run: SearchRun, sources: Sources, question: Question, fit: Fit) -> SpeedQuestion:
    """The deepest training of a search, its layers in the middle of a model of random weights."""
    parameters = question.space.parameters
    middles = {name: parameters[name].middle for name in SEARCHED if name in parameters}
    training = apply_changes(question.deepest, middles)
    skeleton = sources.build_skeleton()
    first = (sources.layers - training.k) // 2
    layers = tuple(range(first, first + training.k))
    work = TrainWork(
        backbone=replace(sources.backbone, random=True),
        training=training,
        layers=layers,
        units=dict.fromkeys(layer_parameters(skeleton, layers), 1.0),
        before={},
        weights=ScoreWeights(),
        seq_len=run.seq_len,
        micro_batch=run.machine.micro_batch,
        seed=run.seed,
        fit=fit,
        text_returns="tokens_per_step" not in parameters,  # else batches of another size are other ones
    )
    numbers = {
        "train": max(TEXT_BLOCKS, work.blocks_per_step),
        "remeasure": count_blocks(run.remeasure_tokens, run),
        "general": run.machine.micro_batch * run.machine.most_workers,
        "probe": run.machine.micro_batch,
    }
    blocks = {name: draw_blocks(n, run.seq_len, sources.config.vocab_size) for name, n in numbers.items()}
    stream = run.seq_len * sources.config.hidden_size * skeleton.dtype.itemsize
    return SpeedQuestion(training, SpeedWork(work, run.machine.compile != "off"), blocks, stream)


def count_blocks(tokens: int, run: SearchRun) -> int:
    """Blocks that hold at least so many tokens."""
    return -(-tokens // run.seq_len)


def draw_blocks(number: int, seq_len: int, vocabulary: int) -> Blocks:
    """Blocks of random tokens, each block a document."""
    tokens = np.random.default_rng(number).integers(0, vocabulary, (number, seq_len)).astype(np.int32)
    starts = np.zeros(tokens.shape, bool)
    starts[:, 0] = True
    return Blocks(tokens, np.ones_like(tokens[:, 1:]), starts)


def count_amounts(run: SearchRun, work: TrainWork, block_bytes: int, crews: int = 1) -> Amounts:
    """How much a search computes whose trials are all like `work`, so many `crews` of them at once.

    The stream of a block takes `block_bytes` of what a worker may keep.
    """
    workers, validation = run.machine.most_workers, count_blocks(run.validation_tokens, run)
    text = work.steps * work.blocks_per_step if work.text_returns else 0
    held_out = len(SIDES) * validation
    text_bytes, held_bytes = (-(-blocks // workers) * block_bytes for blocks in (text, held_out))
    kept_text, kept_validation = share_streams(text_bytes, held_bytes, work.fit.stream_bytes, TEXT_SHARE)
    return Amounts(
        steps=work.steps,
        recompute_every=work.training.recompute_every,
        reports=len(work.report_steps),
        trials=run.trials,
        crews=crews,
        workers=workers,
        probe=count_blocks(run.probe_tokens, run),
        validation=validation,
        test=count_blocks(run.test_tokens, run),
        kept_text=kept_text,
        kept_validation=kept_validation,
        **count_passes(work.training.dial),
    )


def count_branches(amounts: Amounts, work: TrainWork) -> Amounts:
    """The amounts with a trial's branches, by wsd: each of its readings is the last one of a training."""
    if work.training.schedule != "wsd":
        return amounts
    return replace(amounts, steps=work.trial_steps, reports=work.training.reports, passes=amounts.last_passes)


def describe_speed(run: SearchRun, asked: SpeedQuestion, found: Metrics) -> list[Check]:
    """What the workers measured, a line each."""
    work = asked.work.training
    dtype, tokens = work.backbone.dtype, work.count_tokens(1)
    workers = run.machine.most_workers
    checks = [Check("product", f"{found['product_flops'] / 1e9:,.0f} GFLOP a second in {dtype} on a worker")]
    if workers > 1:
        size, seconds = found["reduced"], found["reducing"]
        share = f"{seconds / found['step']:.0%} of a step"
        rate = f"{size / seconds / 1e9:.2f} GB a second, {share}"
        line = (
            f"the gradients of a step, {format_size(size)}, over {workers} workers: {seconds:.3g} s, {rate}"
        )
        checks.append(Check("all-reduce", line))
    speed = f"{found['step']:.3g} s ({tokens / found['step']:,.0f} tokens a second)"
    step = f"{tokens:,} tokens at k = {asked.training.k}: {speed}"
    if "kept_step" in found:
        step += f", from what is kept of frozen layers {found['kept_step']:.3g} s"
    faults: tuple[str, ...] = ()
    if found.get("compiled"):
        step += f", by torch.compile {found['compiled']:.3g} s, which took {found['compiling']:.0f} s"
    elif found["fault"] and run.machine.compile == "on":
        faults = (describe_compiler_fault(found["fault"]),)
    elif found["fault"]:
        step += f"; torch.compile doesn't work there ({found['fault']})"
    checks.append(Check("step", step, faults))
    held_out = f"{found['validated']} blocks of {run.seq_len}: {found['validation']:.3g} s"
    if "kept_validation" in found:
        held_out += f", from what is kept {found['kept_validation']:.3g} s"
    checks.append(Check("validation", held_out))
    probed = f"{found['probed']} blocks: {found['forward']:.3g} s, and {found['bypass']:.3g} s a layer"
    checks.append(Check("probe", probed))
    return checks


def describe_forecast(
    run: DoctorRun, asked: SpeedQuestion, found: Metrics, layers: int, crews: int
) -> tuple[Check, dict[str, float]]:
    """The expected durations in a line, and in seconds; `layers` are those of the backbone."""
    speed = read_speed(found, layers, run.machine.most_workers)
    trial = asked.work.training
    amounts = count_branches(count_amounts(run, trial, asked.block_bytes, crews), trial)
    longer = asked.training.model_copy(update={"tokens": run.train_tokens, "reports": TRAIN_REPORTS})
    work = replace(trial, training=longer, text_returns=False)
    after = count_amounts(run, work, asked.block_bytes) if run.train_tokens else None
    seconds: dict[str, float] = {}
    lines = []
    for how, pace in (("", speed), ("compiled", compile_steps(speed))):
        if pace is None:
            continue
        search = forecast_search(pace, amounts)
        seconds |= {f"search {how}".strip(): search.search}
        line = f"search {format_duration(search.search)}"
        if not how:
            later = f", a later one {format_duration(search.later)}" if search.later < search.trial else ""
            line += f" (stage 1 {format_duration(search.stage1)}, a trial {format_duration(search.trial)}"
            line += f"{later})"
        if after:
            seconds |= {f"training {how}".strip(): (trained := forecast_training(pace, after))}
            line += f", train.py --tokens {run.train_tokens} {format_duration(trained)}"
        lines.append(f"by torch.compile {line}" if how else line)
    return Check("expected", "; ".join(lines) + "; no trial stopped early"), seconds
