"""Several processes, whole models or pieces of one: the same training as in one process."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from common import run_ranks, write_files
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from trainings import BLOCKS, CPU, PER_STEP, SEQ_LEN, Run, changed, keeping

from adept_ray.method import gradients
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.gradients import sum_gradients
from adept_ray.training.alarms import Alarm
from adept_ray.training.callbacks import Callbacks, ResumePoint
from adept_ray.training.export import score_and_export
from adept_ray.training.stage1 import run_probe
from adept_ray.training.stage2 import train
from adept_ray.training.state import WEIGHTS
from adept_ray.training.work import ProbeWork


def comparable(metrics):
    """What doesn't depend on the clock, in a form that pytest.approx takes."""
    kept = {n: value for n, value in metrics.items() if "second" not in n and value is not None}
    scales = {f"scale of {kind}": scale for kind, scale in kept.pop("scales").items()}
    turned = kept.pop("turned", {"turns": [], "shares": {}})
    shares = {f"share {n}": share for n, share in enumerate(chain(*turned["shares"].values()))}
    documents = [*kept["pulls"]["domain"]]
    for turn in turned["turns"]:
        documents += [turn["dial"], *chain(*turn["gains"].values())]
    return kept | scales | shares | {"pulls": documents, "curve": len(kept["curve"])}


FITS = {
    "plain": PLAIN,
    "sharded": Fit(recompute=True, sharded=True),
    "compiled": Fit(recompute=True, sharded=True, compiled=True),
}


def fits_of(workers):
    """Names of the ways to run on so many; two are enough to see that compiled layers can be shared out."""
    return [name for name in FITS if name != "compiled" or workers == 2]


def check_sums(rank):
    """Gradients of one rank alone, of none, of two passes: their sums are those of an all-reduce of each."""
    torch.manual_seed(rank)
    parameters = [torch.nn.Parameter(torch.ones(size)) for size in (3, 50, 7, 20, 1, 5)]
    uses = [[0, 1, 2, 3], [0, 2, 3 if rank else 4]]  # the last is used nowhere, in neither pass
    mine = [torch.zeros_like(parameter) for parameter in parameters]
    for number, used in enumerate(uses):
        factors = {each: torch.randn(parameters[each].shape) for each in used}
        with sum_gradients(parameters) if number else nullcontext():
            sum((parameters[each] * factor).sum() for each, factor in factors.items()).backward()
        for each, factor in factors.items():
            mine[each] += factor
    for parameter, expected in zip(parameters, mine, strict=True):
        dist.all_reduce(expected)
        assert torch.allclose(parameter.grad, expected, atol=1e-6)
        assert not parameter._post_accumulate_grad_hooks


def train_as_rank(rank, store, folder, work, workers):
    """Once in each of the ways."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    torch.set_num_threads(1)
    gradients.BUCKET_BYTES = 200  # so that there are many
    check_sums(rank)
    found, asked = [], []
    Alarm.is_due = lambda alarm: dist.get_rank() == 0  # by the other ranks' clocks it never is time
    torch.compile = partial(torch.compile, backend="aot_eager")
    for name in fits_of(workers):
        fit, reports = FITS[name], []

        def report(metrics, checkpoint, name=name, reports=reports):
            reports.append(comparable(metrics))
            assert (checkpoint is None) == (rank > 0)
            if checkpoint and metrics["complete"]:
                write_files(checkpoint, Path(folder) / name)

        def ask(name=name, reports=reports):
            asked.append((name, len(reports)))
            return False

        train(replace(work, fit=fit), BLOCKS, CPU, Callbacks(report, asked_to_leave=ask))
        assert (counters["stats"]["unique_graphs"] > 0) == fit.compiled
        measured = run_probe(ProbeWork(work.backbone, 2, held_out=("general",), fit=fit), BLOCKS, CPU)
        measured["importance"].pop("seconds")
        found.append((reports, measured))
    torch.save((found, asked), f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [2, 4])  # a step has three blocks: shares are uneven, or even empty
def test_several_processes_equal_one(work, measured, tmp_path, workers):
    """Shares of every batch, of the probe and of the scoring on several processes give what one gives.

    So do, where the model itself is shared out, the pieces of it.
    """
    short = changed(work, tokens=4 * PER_STEP * SEQ_LEN, reports=2)
    run_ranks(train_as_rank, (str(tmp_path / "store"), str(tmp_path), short, workers), workers)
    first, *others = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(workers))
    assert all(other == first for other in others)
    first, asked = first
    assert len(asked) == 2 * len(first)  # whether to leave: all ranks did, between two reports
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
    """Two steps, each with a report, in which what is trained, or held, differs."""
    sizes = {"tokens": 2 * PER_STEP * SEQ_LEN, "reports": 2, "recompute_every": 1}
    return changed(work, **sizes, **SHARDED[name])


def train_sharded(rank, store, folder, work):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    shared = replace(work, fit=Fit(sharded=True))
    for name in SHARDED:
        own, seen = Path(folder) / name / "sharded", []

        def report(metrics, saved, own=own, seen=seen):
            seen.append(metrics["domain_bpb"])
            if saved:
                write_files(saved, own / str(len(seen)))

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


def measure_distance(first, second):
    """Euclidean distance of two sets of weights."""
    return sum((first[n].double() - second[n].double()).square().sum().item() for n in second) ** 0.5


@pytest.mark.timeout(300)
def test_whatever_is_trained_can_be_shared_out(work, tmp_path):
    """Shared out over two processes a training ends as on one, resumed or not, and so does its export.

    In bfloat16 the norms of what is trained are computed in other bits, so there only the losses agree.
    """
    run_ranks(train_sharded, (str(tmp_path / "store"), str(tmp_path), work), 2)
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
        # Over all scalars: of a single one with next to no gradient AdamW takes the sign, which is chance.
        apart = measure_distance(ours, theirs)
        moved = measure_distance(one.weights(), one.weights(0))
        assert ours.keys() == theirs.keys()
        assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in theirs.items()}
        assert apart < moved / 100 or name == "bfloat16"
