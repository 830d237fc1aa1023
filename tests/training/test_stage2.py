"""Stages 1 and 2 without Ray: what is frozen stays, what is stopped resumes, what is reported is true."""

import json
import math
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import (
    local_backbone,
    of_one_document,
    one_document_each,
    random_ids,
    save_tiny_backbone,
    tiny_model,
)
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from adept_ray.config.errors import UserError
from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.data.benchmark_tasks import draw_items
from adept_ray.data.blocks import BlockOrder, Blocks, make_micro_batches
from adept_ray.data.loading import borrow, load_model
from adept_ray.method.anatomy import layer_parameters, layers_of, unit_of
from adept_ray.method.expansion import expand
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.importance import unit_importance
from adept_ray.method.loss import (
    MAX_COMPILED_CODES,
    ComputePolicy,
    compile_forward,
    next_token_nats,
    set_compute_policy,
)
from adept_ray.training import pace as pace_module
from adept_ray.training import stage2 as stage2_module
from adept_ray.training.callbacks import Callbacks, ResumePoint
from adept_ray.training.export import score_and_export
from adept_ray.training.pace import compiling_pays, time_compiling
from adept_ray.training.stage1 import run_probe
from adept_ray.training.stage2 import take_step, train
from adept_ray.training.state import OPTIMIZER, STATE, WEIGHTS, TrainState
from adept_ray.training.work import ProbeWork, TrainWork

CPU = torch.device("cpu")
SEQ_LEN, PER_STEP, STEPS = 16, 3, 8
LAYERS = (0, 2)


def stories(number, seed, stride):
    """Blocks that count upwards by `stride`: easy to learn; 3 bytes a token."""
    start = np.random.default_rng(seed).integers(0, 300, (number, 1))
    return of_one_document(3 + (start + stride * np.arange(SEQ_LEN)) % 300)


BLOCKS = {
    "probe": stories(5, 1, 2),
    "remeasure": stories(3, 1, 2),
    "general": stories(5, 2, 2),
    "domain": stories(4, 3, 1),
    "train": stories(10, 4, 1),
    "replay": stories(6, 5, 2),
}
BLOCKS |= {side: one_document_each(BLOCKS[side].tokens) for side in ("general", "domain")}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return local_backbone(save_tiny_backbone(tmp_path_factory.mktemp("backbone"), layers=3))


@pytest.fixture(scope="module")
def measured(backbone):
    """What stage 1 says, as it comes back from the cache, and the progress it told."""
    told = []
    work = ProbeWork(backbone, 2, held_out=("general", "domain"))
    result = run_probe(work, BLOCKS, CPU, lambda done, of: told.append((done, of)))
    return json.loads(json.dumps(result)), told


@pytest.fixture(scope="module")
def work(backbone, measured):
    """A training of eight steps that measures again at steps 3 and 6 and reports four times."""
    tokens = PER_STEP * SEQ_LEN
    return TrainWork(
        backbone=backbone,
        training=TrainingSpec(
            k=2, base_lr=1e-2, recompute_every=3, tokens=STEPS * tokens, tokens_per_step=tokens, reports=4
        ),
        layers=LAYERS,
        units=measured[0]["importance"]["units"],
        before=measured[0]["nats"],
        weights=ScoreWeights(),
        seq_len=SEQ_LEN,
        micro_batch=2,
        seed=0,
    )


def changed(work, **fields):
    """`work` with other fields, of itself, of its training or, `dtype`, of its backbone."""
    if dtype := fields.pop("dtype", None):
        work = replace(work, backbone=replace(work.backbone, dtype=dtype))
    own = {name: fields.pop(name) for name in list(fields) if hasattr(work, name)}
    return replace(work, training=work.training.model_copy(update=fields), **own)


def keeping(folder):
    """A report that keeps what comes with it in `folder`."""
    return lambda _, saved: shutil.copytree(saved, folder)


def split_options(report, options):
    """What train() takes: the callbacks, and where it begins (`resume` is the folder of a checkpoint)."""
    start = ResumePoint(options.pop("resume", None), options.pop("grown_from", None))
    return Callbacks(report, **options), start


class Run:
    """A training and all that it reported: the metrics, and a checkpoint folder for each report."""

    def __init__(self, folder, work, **options):
        self.metrics, self.folders = [], []
        self._folder = folder
        train(work, BLOCKS, CPU, *split_options(self.report, options))

    def report(self, metrics, folder):
        self.metrics.append({name: value for name, value in metrics.items() if "second" not in name})
        self.folders.append(self._folder / str(len(self.folders)))
        shutil.copytree(folder, self.folders[-1])

    def weights(self, at=-1):
        return load_file(self.folders[at] / WEIGHTS)

    def state(self, at=-1):
        return json.loads((self.folders[at] / STATE).read_text())


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """The training, never stopped."""
    return Run(tmp_path_factory.mktemp("whole"), work)


@pytest.fixture(scope="module")
def every_step(work, tmp_path_factory):
    """The same with a report, and so a checkpoint, after every step."""
    return Run(tmp_path_factory.mktemp("every"), changed(work, reports=STEPS))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def caught(monkeypatch, spoil=lambda model: None):
    """Have train() borrow through here: returns the list in which its models are found."""
    models = []

    def lend(*args, **_):
        models.append(borrow(*args, alone=True))
        spoil(models[-1])
        return models[-1]

    monkeypatch.setattr(stage2_module, "borrow", lend)
    return models


def taken(blocks, ids):
    return Blocks(blocks.tokens[ids], blocks.bytes[ids], blocks.starts[ids])


def plain_bpb(model, blocks):
    """Bits per byte by a forward pass over all blocks at once."""
    ids = torch.from_numpy(blocks.tokens.astype(np.int64))
    with torch.no_grad():
        log_p = model(input_ids=ids).logits.double().log_softmax(-1)
    nats = -log_p[:, :-1].gather(2, ids[:, 1:, None]).sum().item()
    return nats / math.log(2) / blocks.bytes.sum()


# --- the loop -------------------------------------------------------------------------------------


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
    ids = BlockOrder(len(BLOCKS["train"]), work.seed).list_batch(0, PER_STEP)
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


@pytest.mark.parametrize("step", [3, 5])
def test_resumed_between_two_reports_equals_uninterrupted(work, whole, tmp_path, step):
    """Asked to save, a run hands over its state after that very step; from there it ends as if never left."""
    asked = []

    class Left(Exception):
        pass

    def keep(at, folder):
        assert at == step
        shutil.copytree(folder, tmp_path / "kept")
        raise Left

    with pytest.raises(Left):
        # Steps 2 and 4 end with a report, which is a checkpoint already: nobody asks there.
        ask = lambda: bool(asked.append(0)) or len(asked) == (step + 1) // 2  # noqa: E731
        Run(tmp_path / "first", work, asked_to_save=ask, keep=keep)
    second = Run(tmp_path / "second", work, resume=tmp_path / "kept")
    assert second.metrics == whole.metrics[step // 2 :]
    assert same(second.weights(), whole.weights()) and second.state() == whole.state()


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


def test_without_layers_the_score_is_exactly_zero(work, tmp_path):
    """k = 0 trains nothing, reports and concludes like any other, and scores 0, not about 0."""
    nothing = changed(work, layers=(), k=0)
    run = Run(tmp_path / "run", nothing)
    assert [(m["score"], m["score_se"]) for m in run.metrics] == [(0, 0)] * 4
    assert run.metrics[-1]["complete"] and run.metrics[-1]["loss"] is None
    results = []
    score_and_export(
        nothing, BLOCKS, CPU, run.folders[-1], {}, Callbacks(lambda metrics, _: results.append(metrics))
    )
    assert results[0]["score"] == 0


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
        return 1.0

    monkeypatch.setattr(stage2_module, "compute_gradients", infinite)
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


# --- other methods --------------------------------------------------------------------------------

METHODS = {
    "all": {"tunes": "all"},
    "originals": {"tunes": "originals"},
    "lora": {"tunes": "lora", "lora_rank": 2},
    "tasl": {"tunes": "tasl", "lora_rank": 2},
    "replay": {"replay": 0.4},
    "general": {"text": "general"},
    "block": {"granularity": "block", "sign": "reverse"},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_resumes_and_concludes(work, method, tmp_path):
    """It lowers the loss, ends with the same weights when resumed, and exports what it was scored with."""
    work = changed(work, **METHODS[method], reports=2)
    straight = Run(tmp_path / "straight", work)
    side = "general" if method == "general" else "domain"
    assert straight.metrics[-1][f"{side}_delta"] > 0.2
    resumed = Run(tmp_path / "resumed", work, resume=straight.folders[0])
    assert same(resumed.weights(), straight.weights()) and resumed.metrics[-1] == straight.metrics[-1]
    results = []

    def keep(metrics, folder):
        results.append(metrics)
        shutil.copytree(folder / "model", tmp_path / "model")

    score_and_export(work, BLOCKS, CPU, straight.folders[-1], {}, Callbacks(keep))
    assert results[0]["domain_bpb"] == pytest.approx(straight.metrics[-1]["domain_bpb"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain_bpb(loaded, BLOCKS["domain"]) == pytest.approx(results[0]["domain_bpb"], rel=1e-4)


def test_one_rate_asks_the_probe_nothing(work, tmp_path, monkeypatch):
    """Without unit-wise rates the probe isn't measured again, so the method doesn't pay for it."""
    monkeypatch.setattr(stage2_module, "unit_importance", None)
    run = Run(tmp_path, changed(work, normalization="none", reports=1))
    assert {row["scale"] for row in run.state()["rates"]} == {1.0}


def test_replayed_text_is_trained_on(work, tmp_path):
    """Half of the blocks being general text, general text is learned better than from the domain alone."""
    runs = [Run(tmp_path / str(share), changed(work, replay=share, reports=1)) for share in (0.0, 0.5)]
    assert runs[1].metrics[-1]["general_delta"] > runs[0].metrics[-1]["general_delta"] + 0.1


# --- rates ----------------------------------------------------------------------------------------


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


# --- several processes ----------------------------------------------------------------------------


def comparable(metrics):
    """What doesn't depend on the clock, in a form that pytest.approx takes."""
    kept = {name: value for name, value in metrics.items() if "second" not in name}
    scales = {f"scale of {kind}": scale for kind, scale in kept.pop("scales").items()}
    return kept | scales | {"pulls": kept["pulls"]["domain"], "curve": len(kept["curve"])}


FITS = {
    "plain": PLAIN,
    "sharded": Fit(recompute=True, sharded=True),
    "compiled": Fit(recompute=True, sharded=True, compiled=True),
}


def fits_of(workers):
    """Names of the ways to run on so many; two are enough to see that compiled layers can be shared out."""
    return [name for name in FITS if name != "compiled" or workers == 2]


def train_as_rank(rank, store, folder, work, workers):
    """Once in each of the ways."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    torch.set_num_threads(1)
    found = []
    torch.compile = partial(torch.compile, backend="aot_eager")
    for name in fits_of(workers):
        fit, reports = FITS[name], []

        def report(metrics, checkpoint, name=name, reports=reports):
            reports.append(comparable(metrics))
            assert (checkpoint is None) == (rank > 0)
            if checkpoint and metrics["complete"]:
                shutil.copytree(checkpoint, f"{folder}/{name}")

        train(replace(work, fit=fit), BLOCKS, CPU, Callbacks(report))
        assert (counters["stats"]["unique_graphs"] > 0) == fit.compiled
        measured = run_probe(ProbeWork(work.backbone, 2, held_out=("general",), fit=fit), BLOCKS, CPU)
        measured["importance"].pop("seconds")
        found.append((reports, measured))
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [2, 4])  # a step has three blocks: shares are uneven, or even empty
def test_several_processes_equal_one(work, measured, tmp_path, workers):
    """Shares of every batch, of the probe and of the scoring on several processes give what one gives.

    So do, where the model itself is shared out, the pieces of it.
    """
    short = changed(work, tokens=4 * PER_STEP * SEQ_LEN, reports=2)
    mp.spawn(train_as_rank, (str(tmp_path / "store"), str(tmp_path), short, workers), nprocs=workers)
    first, *others = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(workers))
    assert all(other == first for other in others)
    one = Run(tmp_path / "one", short)
    moved = max((one.weights()[n] - one.weights(0)[n]).abs().max().item() for n in one.weights())
    importance = measured[0]["importance"]
    for (reports, probed), folder in zip(first, fits_of(workers), strict=True):
        for shared, alone in zip(reports, map(comparable, one.metrics), strict=True):
            assert shared.pop("pulls") == pytest.approx(alone.pop("pulls"), abs=1e-2)
            assert shared == pytest.approx(alone, rel=1e-3, abs=1e-3)
        weights = load_file(tmp_path / folder / WEIGHTS)
        assert max((one.weights()[n] - weights[n]).abs().max().item() for n in weights) < moved / 100
        assert probed["nats"]["general"] == pytest.approx(measured[0]["nats"]["general"], rel=1e-5)
        assert probed["importance"]["units"] == pytest.approx(importance["units"], rel=1e-3)
        assert probed["importance"]["order"] == importance["order"]


SHARDED = {
    "copies": {},
    "bfloat16": {"dtype": "bfloat16"},
    "originals": {"tunes": "originals"},
    "all": {"tunes": "all", "k": 0, "layers": ()},
    "lora": {"tunes": "lora", "k": 0, "layers": ()},
    "tasl": {"tunes": "tasl", "k": 0, "layers": ()},
}


def sharded_variant(work, name):
    """Four steps of two reports in which what is trained, or held, differs."""
    return changed(work, **{"tokens": 4 * PER_STEP * SEQ_LEN, "reports": 2}, **SHARDED[name])


def train_sharded(rank, store, folder, work):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    shared = replace(work, fit=Fit(sharded=True))
    fused = torch.device("cuda")  # only whether it is one is asked there
    optimizer_of = stage2_module.build_optimizer
    stage2_module.build_optimizer = lambda model, spec, device: optimizer_of(model, spec, fused)
    for name in SHARDED:
        own, seen = Path(folder) / name / "sharded", []

        def report(metrics, saved, own=own, seen=seen):
            seen.append(metrics["domain_bpb"])
            if saved:
                shutil.copytree(saved, own / str(len(seen)))

        variant = sharded_variant(shared, name)
        train(variant, BLOCKS, CPU, Callbacks(report))
        train(
            variant, BLOCKS, CPU, Callbacks(report), ResumePoint(own / "1")
        )  # reports once more, then goes on
        score_and_export(variant, BLOCKS, CPU, own / "2", {}, Callbacks(report))
        dist.barrier()
        if rank == 0:
            (own / "bpb").write_text(json.dumps(seen))
    dist.destroy_process_group()


@pytest.mark.timeout(300)
def test_whatever_is_trained_can_be_shared_out(work, tmp_path):
    """Shared out over two processes a training ends as on one, resumed or not, and so does its export.

    In bfloat16 the norms of what is trained are computed in other bits, so there only the losses agree.
    """
    mp.spawn(train_sharded, (str(tmp_path / "store"), str(tmp_path), work), nprocs=2)
    for name in SHARDED:
        sharded, plain = tmp_path / name / "sharded", sharded_variant(work, name)
        one = Run(tmp_path / name / "one", plain)
        close = 2e-2 if name == "bfloat16" else 1e-3
        first, end, again, resumed, concluded = json.loads((sharded / "bpb").read_text())
        assert [first, end] == pytest.approx([m["domain_bpb"] for m in one.metrics], rel=close)
        assert again == first and resumed == pytest.approx(end, rel=1e-6)
        assert concluded == pytest.approx(end, rel=1e-3)
        weights, resumed = (load_file(sharded / number / WEIGHTS) for number in ("2", "4"))
        assert all(torch.allclose(weights[n], resumed[n], atol=1e-6) for n in weights)
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        score_and_export(
            plain, BLOCKS, CPU, one.folders[-1], {}, Callbacks(keeping(tmp_path / name / "plain"))
        )
        ours, theirs = (
            load_file(f / "model" / "model.safetensors") for f in (sharded / "5", tmp_path / name / "plain")
        )
        apart = max((ours[n].float() - theirs[n].float()).abs().max().item() for n in theirs)
        moved = max((one.weights()[n] - one.weights(0)[n]).abs().max().item() for n in weights)
        assert ours.keys() == theirs.keys()
        assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in theirs.items()}
        assert apart < moved / 100 or name == "bfloat16"


# --- the end, and the beginning -------------------------------------------------------------------


def test_the_exported_model_is_the_one_scored(work, whole, tmp_path):
    """Reloaded by transformers it has the bits per byte reported; adept.json says what was added."""
    results = []

    def report(metrics, folder):
        results.append(metrics)
        shutil.copytree(folder / "model", tmp_path / "model")

    score_and_export(
        work, BLOCKS, CPU, whole.folders[-1], {"backbone": "tiny", "run": "a run"}, Callbacks(report)
    )
    (result,) = results
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    plain = load_model(work.backbone)
    for side in ("general", "domain"):
        assert result[f"{side}_bpb"] == pytest.approx(plain_bpb(exported, BLOCKS[side]), rel=1e-5)
        assert result[f"{side}_bpb_before"] == pytest.approx(plain_bpb(plain, BLOCKS[side]), rel=1e-5)
        assert result[f"{side}_delta"] == pytest.approx(whole.metrics[-1][f"{side}_delta"], rel=1e-6)
    assert result["score"] == pytest.approx(whole.metrics[-1]["score"], rel=1e-6)
    record = json.loads((tmp_path / "model" / "adept.json").read_text())
    assert record == {"added_layers": [1, 4], "source_layers": [0, 2], "backbone": "tiny", "run": "a run"}
    assert (tmp_path / "model" / "tokenizer.json").exists()


def test_a_backbone_of_fewer_bits_is_trained_and_exported_in_them(work, whole, tmp_path):
    """bfloat16 throughout but for what is trained: it learns, resumes, and is scored as it is exported."""
    low = replace(work, backbone=replace(work.backbone, dtype="bfloat16"))
    asked = ProbeWork(low.backbone, 2, held_out=("general", "domain"))
    found = run_probe(asked, BLOCKS, CPU)
    low = replace(low, before=found["nats"], units=found["importance"]["units"])
    run = Run(tmp_path / "run", low)
    assert run.metrics[-1]["domain_delta"] == pytest.approx(whole.metrics[-1]["domain_delta"], rel=0.1)
    assert {tensor.dtype for tensor in run.weights().values()} == {torch.float32}
    resumed = Run(tmp_path / "resumed", low, resume=run.folders[1])
    assert same(resumed.weights(), run.weights())
    results = []

    def report(metrics, folder):
        results.append(metrics)
        shutil.copytree(folder / "model", tmp_path / "model")

    score_and_export(low, BLOCKS, CPU, run.folders[-1], {}, Callbacks(report))
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    exported_low = replace(low.backbone, source=str(tmp_path / "model"))
    asked = replace(asked, backbone=exported_low, importance=False)
    nats = run_probe(asked, BLOCKS, CPU)["nats"]["domain"]
    bits = sum(nats) / math.log(2) / BLOCKS["domain"].bytes.sum()
    assert results[0]["domain_bpb"] == pytest.approx(bits, rel=1e-9)


def test_computing_activations_again_changes_no_bit(work, whole, tmp_path):
    assert same(Run(tmp_path, replace(work, fit=Fit(recompute=True))).weights(), whole.weights())


def compiling(monkeypatch, backend="aot_eager"):
    """Have torch.compile do all but make machine code, which takes minutes; returns the counts of it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compile_forward.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    return counters["stats"]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tunes", ["copies", "lora"])
def test_compiled_layers_train_alike(work, tmp_path, monkeypatch, tunes, recompute):
    """The same losses and weights, names and export; and what was compiled once serves every other training.

    The steps have micro-batches of two blocks and of one, and importance is measured again on others.
    """
    done = compiling(monkeypatch)
    own = {"tunes": tunes} | ({"k": 0, "layers": ()} if tunes == "lora" else {})
    plain = changed(work, **own, fit=Fit(recompute=recompute))
    compiled = replace(plain, fit=Fit(recompute=recompute, compiled=True))
    without = Run(tmp_path / "plain", plain)
    assert not done
    run = Run(tmp_path / "compiled", compiled)
    codes = done["unique_graphs"]
    assert 0 < codes <= 12
    for name in ("loss", "general_bpb", "domain_bpb"):
        assert run.metrics[-1][name] == pytest.approx(without.metrics[-1][name], rel=1e-5)
    assert run.weights().keys() == without.weights().keys()
    for name, weight in without.weights().items():
        torch.testing.assert_close(run.weights()[name], weight, atol=1e-5, rtol=1e-4)
    again = Run(tmp_path / "again", compiled, resume=run.folders[1])
    assert same(again.weights(), run.weights()) and done["unique_graphs"] == codes
    models = []
    for made, folder in ((plain, "plain"), (compiled, "compiled")):
        saved = run.folders[-1]
        score_and_export(made, BLOCKS, CPU, saved, {}, Callbacks(keeping(tmp_path / folder / "end")))
        models.append(load_file(tmp_path / folder / "end" / "model" / "model.safetensors"))
    assert same(*models) and done["unique_graphs"] == codes


def test_steps_are_timed_with_and_without_compiled_layers(work, whole, tmp_path, monkeypatch):
    """Those without compile nothing; of what was trained nothing is left, the text is that of a training."""
    done, told, texts = compiling(monkeypatch), [], []
    monkeypatch.setattr(pace_module, "find_compiler_fault", lambda device: "")
    monkeypatch.setattr(pace_module, "take_step", lambda *args: texts.append(args[3]) or take_step(*args))
    found = time_compiling(
        work, BLOCKS, CPU, lambda at, of: told.append((at, of, bool(done["unique_graphs"])))
    )
    assert told == [(1, 2, False), (2, 2, True)]
    assert not found.pop("fault") and min(found.values()) > 0
    order = BlockOrder(len(BLOCKS["train"]), work.seed)
    steps = pace_module.FIRST + pace_module.TIMED
    assert texts == 2 * [order.list_batch(step, work.blocks_per_step) for step in range(steps)]
    assert same(Run(tmp_path, work).weights(), whole.weights())


def test_nothing_is_timed_where_nothing_can_be_compiled(work, monkeypatch):
    monkeypatch.setattr(pace_module, "find_compiler_fault", lambda device: f"no compiler for a {device}")
    monkeypatch.setattr(pace_module, "time_steps", lambda *_: pytest.fail("steps were made"))
    assert time_compiling(work, BLOCKS, CPU) == {"fault": "no compiler for a cpu"}


@pytest.mark.parametrize(
    ("compiled", "compiling", "expected"),
    [
        (0.6, 0, False),
        (0.499, 0, False),
        (0.48, 0, False),
        (0.47, 0, True),
        (0.4, 99, True),
        (0.4, 101, False),
    ],
)
def test_compiling_pays_where_it_saves_more_than_chance_and_than_it_took(compiled, compiling, expected):
    """Over a thousand steps of half a second."""
    assert compiling_pays({"plain": 0.5, "compiled": compiled, "compiling": compiling}, 1000) == expected


def test_every_thread_may_compile_as_many_codes(monkeypatch):
    """How many torch takes for too many is set for one thread, and a process may train in several."""
    compiling(monkeypatch)
    model = tiny_model().requires_grad_(True)
    set_compute_policy(model, ComputePolicy(compiled=tuple(layers_of(model))))
    limits = []

    def passing():
        before = torch._dynamo.config.recompile_limit
        next_token_nats(model, {"input_ids": random_ids()})
        limits.append((before, torch._dynamo.config.recompile_limit))

    for _ in range(2):
        thread = threading.Thread(target=passing)
        thread.start()
        thread.join()
    assert len(limits) == 2 and all(before < after == MAX_COMPILED_CODES for before, after in limits)


def test_a_training_that_changes_the_backbone_leaves_it_to_others_as_it_was(work, whole, tmp_path):
    """All parameters trained, LoRA merged: the next training starts from the backbone none the less."""
    for tunes in ("all", "originals", "lora"):
        spec = work.training.model_copy(update={"tunes": tunes, "k": 2 if tunes == "originals" else 0})
        other = replace(work, training=spec, layers=LAYERS if tunes == "originals" else ())
        run = Run(tmp_path / tunes, other)
        score_and_export(other, BLOCKS, CPU, run.folders[-1], {}, Callbacks(lambda *_: None))
        assert same(Run(tmp_path / f"after {tunes}", work).weights(), whole.weights())


def test_tasks_are_scored_in_training_and_at_the_end(work, whole, tmp_path):
    """Their accuracy takes the place of bits per byte on its side; nothing else of the training changes."""
    choices = ["the nurse", "the baker"]
    rows = [{"question": "Who reports?", "choices": choices, "answer": i % 2} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(f"""
task: reports
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""")
    items = draw_items([str(tmp_path / "task.yaml")], 4, 0, tmp_path)
    asked = ProbeWork(work.backbone, 2, importance=False, items={"domain": items["validation"]})
    found = run_probe(asked, {}, CPU)
    before = {**work.before, "domain tasks": found["correct"]["domain"]}
    tested = replace(work, items={"domain": items["validation"]}, before=before)
    by_tasks = Run(tmp_path / "run", tested).metrics[-1]
    plain = whole.metrics[-1]
    assert by_tasks["domain_bpb"] == plain["domain_bpb"] and by_tasks["loss"] == plain["loss"]
    moved = by_tasks["domain_accuracy"] - by_tasks["domain_accuracy_before"]
    assert by_tasks["domain_delta"] == pytest.approx(100 * moved)
    assert by_tasks["score"] == pytest.approx(0.5 * plain["general_delta"] + 0.5 * 100 * moved)
    results = []
    ended = replace(tested, items={"domain": items["test"]}, by_tasks=False)
    score_and_export(
        ended, BLOCKS, CPU, whole.folders[-1], {}, Callbacks(lambda metrics, _: results.append(metrics))
    )
    assert results[0]["score"] == pytest.approx(plain["score"]) and "domain_accuracy" in results[0]


def test_stage_one_says_all_that_stage_two_needs(backbone, measured):
    """It survives JSON with a mean and an error per layer, their order, every unit, and each block's loss."""
    result, told = measured
    importance = result["importance"]
    means = [row["mean"] for row in importance["layers"]]
    assert [row["layer"] for row in importance["layers"]] == [0, 1, 2]
    assert all(row["standard_error"] > 0 for row in importance["layers"])
    assert importance["order"] == sorted(range(3), key=lambda layer: means[layer])
    model = load_model(backbone)
    assert importance["units"].keys() == layer_parameters(model, range(3)).keys()
    total = BLOCKS["probe"].tokens[:, 1:].size
    bits = plain_bpb(model, BLOCKS["probe"]) * BLOCKS["probe"].bytes.sum()
    assert importance["base_loss"] == pytest.approx(bits * math.log(2) / total, rel=1e-5)
    for side in ("general", "domain"):
        bpb = sum(result["nats"][side]) / math.log(2) / BLOCKS[side].bytes.sum()
        assert bpb == pytest.approx(plain_bpb(model, BLOCKS[side]), rel=1e-5)
    done = [at for at, _ in told]
    assert done == sorted(done) and told[-1][0] == told[-1][1] == max(of for _, of in told)


def test_stage_one_can_race(backbone, measured):
    """On as few sequences as one look takes, a race is the exhaustive probe; its settings are recorded."""
    work = ProbeWork(backbone, 2, raced=True, k_max=1, confidence=0.9)
    raced, whole = run_probe(work, BLOCKS, CPU)["importance"], measured[0]["importance"]
    assert (raced["probe"], raced["confidence"], whole["probe"]) == ("raced", 0.9, "exhaustive")
    means = [[row["mean"] for row in found["layers"]] for found in (raced, whole)]
    assert means[0] == pytest.approx(means[1]) and raced["order"] == whole["order"]
    assert set(raced["settled"]) <= {1}


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


def test_stage_one_measures_only_what_is_missing(backbone, measured):
    """Asked for one side's losses alone, it measures no importance and gets the same losses."""
    result = run_probe(ProbeWork(backbone, 2, importance=False, held_out=("domain",)), BLOCKS, CPU)
    assert result == {"nats": {"domain": measured[0]["nats"]["domain"]}, "correct": {}}


# --- growth ---------------------------------------------------------------------------------------


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
    ids = BlockOrder(len(BLOCKS["train"]), work.seed).list_batch(STEPS, PER_STEP)
    swapped = {**BLOCKS, "train": taken(BLOCKS["train"], ids)}
    seen = []
    callbacks = Callbacks(lambda metrics, _: seen.append(metrics))
    train(start, swapped, CPU, callbacks, ResumePoint(grown_from=whole.folders[-1]))
    assert ahead.metrics[0]["loss"] == pytest.approx(seen[0]["loss"], rel=1e-6)


def test_no_model_shrinks(work, whole, tmp_path):
    with pytest.raises(UserError, match=r"copied layers \[2\], and this training doesn't"):
        Run(tmp_path, changed(work, k=1, layers=(0,)), grown_from=whole.folders[-1])
