"""Stage 2 without Ray: what is frozen stays, what is stopped resumes, what is reported is true."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import write_files
from trainings import (
    BLOCKS,
    CPU,
    LAYERS,
    PER_STEP,
    SEQ_LEN,
    STEPS,
    Run,
    caught,
    changed,
    plain_bpb,
    same,
    taken,
)

from adept_ray.config.errors import UserError
from adept_ray.data.blocks import BlockOrder, make_micro_batches
from adept_ray.data.loading import load_model
from adept_ray.method.anatomy import layer_parameters, unit_of
from adept_ray.method.expansion import expand
from adept_ray.method.fit import Fit
from adept_ray.method.importance import unit_importance
from adept_ray.training import alarms
from adept_ray.training import learner as learner_module
from adept_ray.training import stage2 as stage2_module
from adept_ray.training.callbacks import Callbacks, ResumePoint
from adept_ray.training.stage2 import train
from adept_ray.training.state import OPTIMIZER, TrainState


def test_only_the_copies_move(work, tmp_path, monkeypatch):
    """After training all that came from the backbone is bit-identical to it; each copy has changed."""
    models = caught(monkeypatch)
    run = Run(tmp_path, changed(work, reports=1, weight_decay=0.1))
    (trained,) = models
    fresh = load_model(work.backbone)
    added = expand(fresh, work.layers)
    copies = layer_parameters(fresh, added)
    for (name, before), (_, after) in zip(fresh.named_parameters(), trained.named_parameters(), strict=True):
        if name not in copies:
            assert torch.equal(before, after), name
    moved = {name.split(".")[2] for name, p in run.weights().items() if not torch.equal(p, copies[name])}
    assert moved == {str(layer) for layer in added}
    assert same(run.weights(), {n: p.detach() for n, p in layer_parameters(trained, added).items()})


def test_training_learns(whole):
    """On text that can be learned the loss falls, in training and on the domain's held-out blocks."""
    assert max(metrics["loss"] for metrics in whole.metrics[1:]) < whole.metrics[0]["loss"] - 0.1
    assert whole.metrics[-1]["domain_delta"] > 2
    score = (whole.metrics[-1]["general_delta"] + whole.metrics[-1]["domain_delta"]) / 2
    assert whole.metrics[-1]["score"] == pytest.approx(score)


def test_the_loss_is_nats_per_token_of_the_global_batch(work, every_step):
    """The first loss reported is the untouched backbone's mean over the blocks of step 0."""
    ids = BlockOrder((len(BLOCKS["train"]),), work.seed).list_batch(0, PER_STEP)
    batch = taken(BLOCKS["train"], ids)
    per_token = plain_bpb(load_model(work.backbone), batch) * batch.bytes.mean() * math.log(2)
    assert every_step.metrics[0]["loss"] == pytest.approx(per_token, rel=1e-5)


def test_same_seed_same_loss(work, whole, tmp_path):
    """Run again, a training reports the same numbers, bit for bit; another seed gives others."""
    again = Run(tmp_path / "again", work)
    assert again.metrics == whole.metrics and same(again.weights(), whole.weights())
    assert Run(tmp_path / "other", changed(work, seed=1)).metrics[0]["loss"] != whole.metrics[0]["loss"]


@pytest.mark.parametrize("stop", [2, 3], ids=["between measurements", "where one is due"])
def test_resumed_equals_uninterrupted(work, whole, tmp_path, stop):
    """Stopped after a report and resumed from its checkpoint, a run ends as if it had never been stopped."""
    asked = []
    first = Run(
        tmp_path / "first", work, should_stop=lambda report: bool(asked.append(report)) or report == stop
    )
    assert asked == list(range(1, stop + 1)) and first.metrics == whole.metrics[:stop]
    assert (first.folders[-1] / OPTIMIZER).exists()
    asked.clear()
    second = Run(tmp_path / "second", work, resume=first.folders[-1], should_stop=asked.append)
    assert asked == list(range(stop, 4))  # nobody answers after the last
    assert second.metrics == whole.metrics[stop - 1 :]  # the last report may not have been heard
    assert same(second.weights(), whole.weights()) and second.state() == whole.state()


def equals_from(work, whole, kept, step, tmp_path):
    """Whether a run that goes on from what was kept between two reports ends as if never interrupted."""
    assert kept.step == step and kept.resumable
    second = Run(tmp_path / "second", work, resume=write_files(kept, tmp_path / "kept"))
    assert second.metrics == whole.metrics[step // 2 :]
    return same(second.weights(), whole.weights()) and second.state() == whole.state()


@pytest.mark.parametrize("step", [3, 5])
def test_resumed_where_it_left_equals_uninterrupted(work, whole, tmp_path, step, monkeypatch):
    """Asked to leave, a run hands over its state after that step; from there it ends as if never left."""
    monkeypatch.setattr(alarms, "ASK_EVERY_S", 0)
    asked, kept = [], []

    class Left(Exception):
        pass

    def leave(checkpoint):
        kept.append(checkpoint)
        raise Left

    with pytest.raises(Left):
        # Steps 2 and 4 end with a report: nobody asks there.
        ask = lambda: bool(asked.append(0)) or len(asked) == (step + 1) // 2  # noqa: E731
        Run(tmp_path / "first", work, asked_to_leave=ask, leave=leave)
    assert equals_from(work, whole, *kept, step, tmp_path)


def test_resumed_from_what_was_saved_by_the_clock_equals_uninterrupted(work, whole, tmp_path, monkeypatch):
    """What is copied after a step between two reports is the state of that step, though the run goes on."""
    monkeypatch.setattr(alarms, "SAVE_EVERY_S", 0)
    kept = []
    first = Run(tmp_path / "first", work, keep=kept.append)
    assert first.metrics == whole.metrics and [checkpoint.step for checkpoint in kept] == [1, 3, 5, 7]
    assert equals_from(work, whole, kept[2], 5, tmp_path)


def test_many_moments_are_saved_by_the_clock_and_weights_with_every_report(
    work, whole, tmp_path, monkeypatch
):
    """A report may be the last one, so weights go with each; the last of all needs no moments to go on."""
    monkeypatch.setattr(stage2_module, "FEW_BYTES", 0)
    run = Run(tmp_path / "run", work)
    assert run.resumable == [False, False, False, True]
    assert not any((folder / OPTIMIZER).exists() for folder in run.folders)
    assert all(same(run.weights(at), whole.weights(at)) for at in range(4))
    monkeypatch.setattr(alarms, "SAVE_EVERY_S", 0)
    assert Run(tmp_path / "due", work).resumable == [True] * 4


def test_a_stop_that_was_not_heard_holds_after_resuming(work, whole, tmp_path):
    """Cut off before the verdict on its report, a run asks again and obeys."""
    again = Run(tmp_path, work, resume=whole.folders[1], should_stop=lambda report: report == 2)
    assert again.metrics == [whole.metrics[1]]


def test_resumed_at_its_end_reports_once_more(work, whole, tmp_path):
    """Cut off after the last checkpoint, a run says again what it reached: that report may be lost."""
    again = Run(tmp_path, work, resume=whole.folders[-1])
    (metrics,) = again.metrics
    assert metrics == whole.metrics[-1]
    assert same(again.weights(), whole.weights()) and again.state() == whole.state()


def test_reports_come_evenly_and_at_the_end(work, whole, every_step):
    """There are as many reports as asked for; the last, and only it, is complete; none is asked after it."""
    assert [metrics["step"] for metrics in whole.metrics] == [2, 4, 6, 8]
    assert [metrics["report"] for metrics in whole.metrics] == [1, 2, 3, 4]
    assert [metrics["complete"] for metrics in whole.metrics] == [False, False, False, True]
    assert [metrics["tokens"] for metrics in whole.metrics] == [n * PER_STEP * SEQ_LEN for n in (2, 4, 6, 8)]
    for steps in range(1, 40):
        for reports in range(1, 12):
            asked = changed(work, tokens=steps * PER_STEP * SEQ_LEN, reports=reports).report_steps
            gaps = np.diff([0, *asked])
            assert asked[-1] == steps and len(asked) == min(reports, steps) and gaps.max() - gaps.min() <= 1
    assert len(every_step.metrics) == STEPS


def test_the_number_of_reports_changes_no_weight(whole, every_step):
    """Scoring and saving leave no trace in the training."""
    assert same(whole.weights(), every_step.weights())
    second = every_step.metrics[1]
    assert whole.metrics[0] == {**second, "report": 1, "curve": second["curve"][1:]}


def test_micro_batch_changes_no_result(work, whole, tmp_path):
    """Accumulating gradients over smaller or larger pieces gives the same loss."""
    for size in (1, 3):
        run = Run(tmp_path / str(size), changed(work, micro_batch=size))
        losses = [[metrics["loss"] for metrics in r.metrics] for r in (run, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_loss_that_is_not_finite_names_the_step(work, tmp_path, monkeypatch):
    """The error says at which step: the first if a weight is NaN from the start, else where it became so."""

    def spoil(model):
        with torch.no_grad():
            model.lm_head.weight[5] = math.nan

    with monkeypatch.context() as patch:
        caught(patch, spoil)
        with pytest.raises(FloatingPointError, match=r"loss is nan .* at step 1 of 8"):
            Run(tmp_path, work)
    models = caught(monkeypatch)
    with pytest.raises(FloatingPointError, match=r"loss is nan .* at step 5 of 8"):
        Run(tmp_path, work, progress=lambda done, _: spoil(models[0]) if done == 4 else None)


def test_an_infinite_gradient_is_an_error_too(work, tmp_path, monkeypatch):
    """A finite loss with an infinite gradient stops the training before it spoils the weights."""

    def infinite(model, parameters, *args):
        parameters[0].grad = torch.full_like(parameters[0], math.inf)
        return torch.ones(1, dtype=torch.float64)

    monkeypatch.setattr(learner_module, "compute_gradients", infinite)
    with pytest.raises(FloatingPointError, match=r"norm inf at step 1 of 8"):
        Run(tmp_path, work)


def test_a_training_that_diverged_before_it_is_measured_again_says_so(work, tmp_path, monkeypatch):
    """By its step, as one whose loss isn't finite does: it is the rate that is at fault, and no probe."""
    models, every = caught(monkeypatch), work.training.recompute_every

    def spoil(done, _):
        if done == every:
            with torch.no_grad():
                models[0].lm_head.weight[5] = math.nan

    what = rf"importance of model\.layers\S+ is nan at step {every + 1} of 8"
    with pytest.raises(FloatingPointError, match=what):
        Run(tmp_path, work, progress=spoil)


def test_one_rate_asks_the_probe_nothing(work, tmp_path, monkeypatch):
    """Without unit-wise rates the probe isn't measured again, so the method doesn't pay for it."""
    monkeypatch.setattr(stage2_module, "unit_importance", None)
    run = Run(tmp_path, changed(work, normalization="none", reports=1))
    assert {row["scale"] for row in run.state()["rates"]} == {1.0}


def test_replayed_text_is_trained_on(work, tmp_path):
    """Half of the blocks being general text, general text is learned better than from the domain alone."""
    runs = [Run(tmp_path / str(share), changed(work, replay=share, reports=1)) for share in (0.0, 0.5)]
    assert runs[1].metrics[-1]["general_delta"] > runs[0].metrics[-1]["general_delta"] + 0.1


def rates_at(run, step):
    """Unit → its recorded row at that step."""
    return {row["unit"]: row for row in run.state()["rates"] if row["step"] == step}


def test_rates_are_recorded_at_every_measurement(work, whole):
    """There is one row per unit of the copies at step 0 and at each multiple of recompute_every."""
    rows = whole.state()["rates"]
    assert sorted({row["step"] for row in rows}) == [0, 3, 6]
    units = {unit_of(name) for name in whole.weights()}
    for step in (0, 3, 6):
        assert rates_at(whole, step).keys() == units
        assert np.mean([row["scale"] for row in rates_at(whole, step).values()]) == pytest.approx(1)
    assert len(rows) == 3 * len(units)


def test_first_rates_come_from_the_source_layers(work, whole):
    """At step 0, where a copy measures 0 throughout, each of its units has its source's importance."""
    first = rates_at(whole, 0)
    for name, value in work.units.items():
        for source, copy in zip(LAYERS, (1, 4), strict=True):
            if f".layers.{source}." in name:
                assert first[unit_of(name.replace(f".{source}.", f".{copy}."))]["importance"] == value
    assert all(row["importance"] > 0 for row in first.values())


def test_later_rates_come_from_the_copies(work, every_step):
    """At a later measurement a row is the importance of that unit, as it then is, on the general text."""
    for step in (3, 6):
        model = load_model(work.backbone)
        added = expand(model, work.layers)
        TrainState.load(every_step.folders[step - 1], model)
        batches = list(make_micro_batches(BLOCKS["remeasure"], range(3), 2, CPU))
        expected = unit_importance(model, batches, added)
        rows = rates_at(every_step, step)
        assert {name: rows[unit_of(name)]["importance"] for name in expected} == expected


def test_units_move_at_the_rates_last_recorded(every_step):
    """The most important unit, of scale 0, stands still until others are measured to matter more."""
    still = {}
    for step in range(1, STEPS):
        before, after = every_step.weights(step - 1), every_step.weights(step)
        rows = rates_at(every_step, step // 3 * 3)
        assert {unit_of(n) for n in before if torch.equal(before[n], after[n])} == {
            unit for unit, row in rows.items() if row["scale"] == 0
        }
        still[step // 3] = max(rows, key=lambda unit: rows[unit]["importance"])
    assert len(set(still.values())) > 1  # else this says nothing about measuring again


def test_computing_activations_again_changes_no_bit(work, whole, tmp_path):
    assert same(Run(tmp_path, replace(work, fit=Fit(recompute=True))).weights(), whole.weights())


def test_nothing_frozen_gets_a_gradient_or_a_state(work, tmp_path, monkeypatch):
    """After training, gradients and AdamW's moments exist for the copies at most."""
    optimizers = []
    make = torch.optim.AdamW

    def made(*args, **options):
        optimizers.append(make(*args, **options))
        return optimizers[-1]

    models = caught(monkeypatch)
    monkeypatch.setattr(torch.optim, "AdamW", made)
    Run(tmp_path, work)
    trained = {id(p) for p in layer_parameters(models[0], (1, 4)).values()}
    assert {id(p) for p in optimizers[0].state} == trained
    for parameter in models[0].parameters():
        assert parameter.requires_grad == (id(parameter) in trained)
        assert parameter.requires_grad or parameter.grad is None


def test_a_grown_model_goes_on_as_the_smaller_one_ended(work, whole, measured, tmp_path):
    """With one more copy, between those that were there, it starts with the very losses of the end."""
    grown = changed(work, k=3, layers=(0, 1, 2), tokens=PER_STEP * SEQ_LEN, base_lr=1e-30, reports=1)
    run = Run(tmp_path, grown, grown_from=whole.folders[-1])
    for name in ("general_bpb", "domain_bpb"):
        assert run.metrics[0][name] == whole.metrics[-1][name]
    moved_up = {1: 1, 4: 5}  # ids of the copies of 0 and 2 with that of 1 between them
    for name, value in whole.weights().items():
        layer = int(name.split(".")[2])
        assert torch.allclose(run.weights()[name.replace(f".{layer}.", f".{moved_up[layer]}.", 1)], value)
    first = {row["unit"]: row["importance"] for row in run.state()["rates"]}
    ended = {name: value for name, value in whole.state()["importance"].items() if ".4." in name}
    for name, value in ended.items():
        assert first[unit_of(name.replace(".4.", ".5."))] == value
    source = measured[0]["importance"]["units"]["model.layers.1.self_attn.q_proj.weight"]
    assert first["model.layers.3.self_attn.q_proj"] == source


def test_a_grown_model_goes_on_in_the_text(work, whole, tmp_path):
    """Its first step takes the blocks that would have come next."""
    start = changed(work, tokens=PER_STEP * SEQ_LEN, reports=1)
    ahead = Run(tmp_path / "ahead", replace(start, steps_before=STEPS), grown_from=whole.folders[-1])
    ids = BlockOrder((len(BLOCKS["train"]),), work.seed).list_batch(STEPS, PER_STEP)
    swapped = {**BLOCKS, "train": taken(BLOCKS["train"], ids)}
    seen = []
    callbacks = Callbacks(lambda metrics, _: seen.append(metrics))
    train(start, swapped, CPU, callbacks, ResumePoint(grown_from=whole.folders[-1]))
    assert ahead.metrics[0]["loss"] == pytest.approx(seen[0]["loss"], rel=1e-6)


def test_no_model_shrinks(work, whole, tmp_path):
    with pytest.raises(UserError, match=r"copied layers \[2\], and this training doesn't"):
        Run(tmp_path, changed(work, k=1, layers=(0,)), grown_from=whole.folders[-1])
