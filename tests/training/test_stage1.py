"""Stage 1 without Ray: all that stage 2 needs, only what was asked for, raced or not."""

import math

import pytest
from trainings import BLOCKS, CPU, plain_bpb

from adept_ray.data.loading import load_model
from adept_ray.method.anatomy import layer_parameters
from adept_ray.training.stage1 import run_probe
from adept_ray.training.work import ProbeWork


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


def test_stage_one_measures_only_what_is_missing(backbone, measured):
    """Asked for one side's losses alone, it measures no importance and gets the same losses."""
    result = run_probe(ProbeWork(backbone, 2, importance=False, held_out=("domain",)), BLOCKS, CPU)
    assert result == {"nats": {"domain": measured[0]["nats"]["domain"]}, "correct": {}}
