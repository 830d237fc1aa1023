"""What a training will take, said beforehand: checked against real passes and published architectures."""

import copy
from dataclasses import replace
from itertools import cycle, product
from typing import get_args

import pytest
import torch
from common import random_ids, tiny_model
from shapes import SHAPES, config_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from adept_ray.config.choices import Tunes
from adept_ray.config.errors import UserError
from adept_ray.config.machine import Machine
from adept_ray.config.specs import RunSpec, TrainingSpec
from adept_ray.data.backbones import PRESETS
from adept_ray.method import tracing
from adept_ray.method.anatomy import layer_parameters, layers_of, unit_of
from adept_ray.method.families import FAMILIES
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.loss import next_token_nats
from adept_ray.method.memory_plan import (
    GIB,
    SLACK,
    STREAM_DISK_BYTES,
    STREAM_SHARE,
    MemoryPlan,
    allow_streams,
    choose_fit,
    fits_memory,
    list_allowed_fits,
    measure_inference,
    plan_memory,
)
from adept_ray.method.rates import parameter_groups
from adept_ray.method.sharding import build_skeleton
from adept_ray.method.tracing import ATTENTION
from adept_ray.method.tuning import build_tuning

# Of the weights that are published, tied ones once.
PUBLISHED = {
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "llama3-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008,
}
LAYERS, LENGTH = (1, 2), 24


def spec_of(tunes):
    return TrainingSpec(k=2 if tunes in ("copies", "originals") else 0, tunes=tunes, lora_rank=2)


def made(family):
    """A tiny model in which each layer attends to all that came before, as those of the presets do."""
    full = {"layer_types": ["full_attention"] * 4, "use_sliding_window": False} if family == "qwen3" else {}
    return tiny_model(family, **full)


def real(family, spec, dtype=torch.float32, sequences=1, recompute=False):
    """A real pass: model, tuning, bytes kept, operations of it and its gradient."""
    model = made(family).to(dtype)
    units = dict.fromkeys(layer_parameters(model, range(4)), 1.0)
    tuning = build_tuning(model, spec, LAYERS if spec.k else (), units, seed=0)
    if recompute:
        tuning.recompute_activations()
    weights = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            nats = next_token_nats(model, {"input_ids": random_ids(sequences, LENGTH)})[0].sum()
        nats.backward()
    return model, tuning, sum(s.nbytes() for s in kept.values()), counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("tunes", get_args(Tunes))
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_a_plan_is_what_a_real_pass_takes(family, tunes):
    """Parameters and operations to the last one, what is kept for the gradient within a few percent."""
    spec = spec_of(tunes)
    model, tuning, kept, flops = real(family, spec)
    backbone = made(family)
    found = plan_memory(build_skeleton(backbone.config), spec, LAYERS if spec.k else (), LENGTH)
    size = sum(p.numel() for p in model.parameters())
    assert found.parameters == size
    assert found.added == size - sum(p.numel() for p in backbone.parameters())
    assert found.trained == sum(p.numel() for p in tuning.parameters.values())
    gradients = (8 if tuning.rated else 4) * found.trained  # measured again: sums of gradients beside them
    assert (found.weights, found.gradients, found.optimizer) == (4 * size, gradients, 8 * found.trained)
    assert found.flops == flops / LENGTH
    assert found.kept == pytest.approx(kept, rel=0.03) and found.casts == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tunes", ["copies", "all", "lora"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_a_sequence_keeps(family, tunes, dtype):
    """A second sequence keeps as much more as the plan says: weights cast to fewer bits are there once."""
    spec = spec_of(tunes)
    one, two = (real(family, spec, dtype, sequences)[2] for sequences in (1, 2))
    skeleton = build_skeleton(made(family).config, str(dtype).partition(".")[2])
    found = plan_memory(skeleton, spec, LAYERS if spec.k else (), LENGTH)
    assert found.kept == pytest.approx(two - one, rel=0.05)
    assert one - (two - one) <= found.casts + 0.05 * found.kept  # and positions


@pytest.mark.parametrize("tunes", ["copies", "all"])
def test_what_a_sequence_keeps_when_activations_are_computed_again(tunes):
    """What lies outside of the layers, the input of each, and what one layer keeps by itself."""
    spec = spec_of(tunes)
    _, _, outside, _ = real("llama", spec, recompute=True)
    found = plan_memory(build_skeleton(made("llama").config), spec, LAYERS if spec.k else (), LENGTH)
    passed = {"copies": 5, "all": 4}[tunes]  # of 4 layers and 2 copies all but the first
    streams = passed * LENGTH * 32 * 4
    layer = (found.kept - outside) / passed
    assert found.recomputed == pytest.approx(outside + streams + layer, rel=0.15)


def plan_counting_runs(config, spec, dtype):
    """A plan, and how often a layer ran for it."""
    runs = []

    def note(layer, args, output):
        runs.append(layer)

    skeleton = build_skeleton(config, dtype)
    for layer in layers_of(skeleton):
        layer.mlp.register_forward_hook(note)  # a copy has it as well
    return plan_memory(skeleton, spec, LAYERS if spec.k else (), LENGTH), len(runs)


KINDS = product(get_args(Tunes), ("bfloat16", "float32"))


@pytest.mark.parametrize(
    "family, kind",
    [
        pytest.param(family, kind, marks=() if family == "llama" else pytest.mark.slow)
        for family, kind in zip(sorted(FAMILIES), cycle(KINDS))
    ],
)
def test_layers_that_are_alike_count_as_if_each_had_run(monkeypatch, family, kind):
    """Every family can be planned, and to the last byte and operation as by a pass through all its layers."""
    config, (tunes, dtype) = tiny_model(family, layers=6).config, kind
    found, runs = plan_counting_runs(config, spec_of(tunes), dtype)
    monkeypatch.setattr(tracing, "describe_layer", lambda layer: object())
    every, all_runs = plan_counting_runs(config, spec_of(tunes), dtype)
    assert found == every and runs < all_runs == 2 * (8 if tunes == "copies" else 6)
    assert found.trained > 0 and found.kept > found.recomputed > 0 and found.flops > 0


class OwnLinear(nn.Linear):
    """Code that came with a model."""


def test_layers_are_alike_only_where_nothing_tells_them_apart():
    """Neither a shape, a type, a setting, a hook nor what is trained; code of others may do anything."""
    layer = nn.Sequential(nn.Linear(2, 3), nn.Softmax(-1))
    others = [copy.deepcopy(layer) for _ in range(6)]
    others[1].half()
    others[2][0].requires_grad_(False)
    others[3][1].dim = 1
    others[4][1].register_forward_hook(print)
    others[5][0] = nn.Linear(2, 4)
    described = [tracing.describe_layer(each) for each in others]
    assert tracing.describe_layer(layer) == described[0] and len({*described}) == 6
    own = nn.Sequential(OwnLinear(2, 3))
    assert tracing.describe_layer(own) != tracing.describe_layer(own)


def test_what_added_layers_cost_is_what_there_is_more():
    """An expanded model's operations and parameters, less those of its copies, are the backbone's."""
    expanded = measure_inference(build_skeleton(tiny_model(layers=4).config), (1, 3), LENGTH)
    backbone = measure_inference(build_skeleton(tiny_model(layers=2).config), (), LENGTH)
    assert expanded.flops_before == backbone.flops == backbone.flops_before < expanded.flops
    assert expanded.parameters - expanded.added == backbone.parameters and backbone.added == 0


def test_a_plan_changes_neither_config_nor_random_numbers():
    """It can be asked for at any moment."""
    config = tiny_model().config
    before, state = config.to_dict(), torch.random.get_rng_state()
    plan_memory(build_skeleton(config), TrainingSpec(k=2), LAYERS, LENGTH)
    assert config.to_dict() == before and torch.equal(torch.random.get_rng_state(), state)


def test_fewer_bits_are_for_what_is_frozen():
    """Frozen weights and logits take half, trained ones what they took; more is kept than half, but less."""
    config = tiny_model().config
    single, half = (
        plan_memory(build_skeleton(config, dtype), TrainingSpec(k=2), LAYERS, LENGTH)
        for dtype in ("float32", "bfloat16")
    )
    assert single.weights - half.weights == 2 * (single.parameters - single.trained)
    assert half.logits * 2 == single.logits and half.optimizer == single.optimizer
    assert half.kept < single.kept and half.flops == single.flops
    assert half.casts == 2 * half.trained and single.casts == 0


def build_on_meta(name):
    """The model of a preset without its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(name), dtype=torch.bfloat16)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_preset_has_the_published_shape(name):
    """Its parameters, tied ones once, are those of the published weights."""
    assert name in PRESETS and set(SHAPES) == set(PUBLISHED)
    assert sum(p.numel() for p in build_on_meta(name).parameters()) == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-1.7b", "llama3-8b"])  # tied embeddings or not, q/k norms or not
def test_a_preset_is_expanded_as_published(name):
    """Parameter counts, layers, units and their groups of the real architecture, without its weights."""
    config, layers = config_of(name), (14, 16, 17, 20)
    found = plan_memory(build_skeleton(config, "bfloat16"), TrainingSpec(k=4), layers, 64)
    model = build_on_meta(name)
    a_layer = sum(p.numel() for p in model.model.layers[0].parameters())
    units = dict.fromkeys(layer_parameters(model, layers), 1.0)
    tuning = build_tuning(model, TrainingSpec(k=4), layers, units, seed=0)
    assert found.parameters - found.added == PUBLISHED[name]
    assert found.added == found.trained == 4 * a_layer
    assert tuning.added == (15, 18, 20, 24) and len(model.model.layers) == config.num_hidden_layers + 4
    kinds = 11 if name.startswith("qwen3") else 9  # Qwen3 normalises queries and keys, too
    groups = parameter_groups(model)
    assert len(groups) == len({unit_of(name) for name in tuning.parameters}) == 4 * kinds
    assert found.weights == 2 * PUBLISHED[name] + 4 * found.trained
    # Six operations a parameter and token where all is trained; here a gradient passes the upper part alone.
    embedding = config.vocab_size * config.hidden_size * (not config.tie_word_embeddings)
    dense = PUBLISHED[name] + found.added - embedding
    forward = measure_inference(build_skeleton(config, "bfloat16"), (), 64).flops + 2 * found.trained
    assert 2 * dense < forward < 2.1 * dense
    assert 2 * forward > found.flops > forward + 2 * found.trained


NEEDS = MemoryPlan(
    parameters=100,
    added=10,
    trained=10,
    weights=6 * GIB,
    gradients=GIB,
    optimizer=2 * GIB,
    casts=0,
    kept=4 * GIB,
    recomputed=GIB,
    logits=0,
    pieces=False,
    gathered=20 * GIB,
    flops=3,
)


AGAIN = Fit(recompute=True)


@pytest.mark.parametrize("fit", [PLAIN, Fit(sharded=True)])
def test_a_checkpoint_that_is_being_written_is_in_the_machines_memory(fit):
    """Weights and moments of what is trained: of a worker's own memory only where that is the machine's."""
    large = replace(NEEDS, trained=GIB)
    gpu, cpu = (large.count_memory(1, fit, 2, on_gpus) for on_gpus in (True, False))
    assert cpu - gpu == 12 * GIB + fit.sharded * large.weights


def asked(memory, switch, needs=NEEDS, **run):
    """How eight sequences are made to fit, in a memory, of a GPU by default, that just holds so many GiB."""
    spec = RunSpec(micro_batch=8, activation_checkpointing=switch, **{"gpus_per_worker": 1, **run})
    return choose_fit(needs, spec.machine, int(memory * GIB / SLACK) + 1, "k = 4")


@pytest.mark.parametrize(
    "memory, switch, expected",
    [(41, "auto", PLAIN), (40, "auto", AGAIN), (17, "auto", AGAIN), (90, "on", AGAIN)],
)
def test_activations_are_computed_again_only_for_want_of_memory(memory, switch, expected):
    """Eight sequences take 9 + 32 GiB, or 9 + 8."""
    assert asked(memory, switch) == expected


@pytest.mark.parametrize(
    "memory, switch, words",
    [
        (16, "auto", "k = 4 with --micro-batch 8 takes 18.9 GiB a worker, .* 17.8 GiB: use --micro-batch 7$"),
        (10, "on", "use --micro-batch 1$"),
        (40, "off", "takes 45.6 GiB .*: drop --activation-checkpointing off$"),
        (9, "auto", r"use fewer layers, shorter blocks \(--seq-len\) or workers of at least 11.1 GiB$"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_would(memory, switch, words):
    with pytest.raises(UserError, match=words):
        asked(memory, switch)


@pytest.mark.parametrize(
    "memory, workers, run, expected",
    [
        (41, 2, {}, PLAIN),
        (37.5, 2, {}, AGAIN),
        (16.5, 2, {}, Fit(recompute=True, sharded=True)),
        (40.5, 2, {"sharding": "on"}, Fit(sharded=True)),
        (15, 4, {}, Fit(recompute=True, sharded=True)),
        (17.5, 4, {"min_workers": 2, "sharding": "on"}, Fit(recompute=True, sharded=True)),
        (17.5, 4, {"min_workers": 1}, AGAIN),
    ],
)
def test_a_model_is_shared_out_only_where_nothing_else_helps(memory, workers, run, expected):
    """9 GiB of weights, gradients and moments become 4.5 or 2.25, and 4 of layers put together."""
    assert asked(memory, "auto", replace(NEEDS, gathered=4 * GIB), workers=workers, **run) == expected


@pytest.mark.parametrize(
    "memory, run, words",
    [
        (9, {}, "use --workers 2, over which the model is shared out, with --micro-batch 1$"),
        (6, {"workers": 2}, "use --workers 8, over which"),
        (9, {"sharding": "off"}, "workers of at least 11.1 GiB$"),
        (9, {"workers": 2, "gpus_per_worker": 0}, "workers of at least 11.1 GiB$"),
        (90, {"sharding": "on"}, "--sharding on .*at least --workers 2$"),
        (90, {"sharding": "on", "workers": 4, "min_workers": 1}, "--workers 2 and --min-workers 2$"),
        (6, {"workers": 4, "min_workers": 2}, "use --workers 8 --min-workers 8, over which"),
    ],
)
def test_more_workers_are_advised_where_they_help(memory, run, words):
    with pytest.raises(UserError, match=words):
        asked(memory, "auto", replace(NEEDS, gathered=3 * GIB), **run)


@pytest.mark.parametrize("asked", ["on", "off"])
def test_every_fit_is_compiled_if_that_was_asked_for(asked):
    fits = list_allowed_fits(Machine(compile=asked, workers=2))
    assert len(fits) == 4 and {fit.compiled for fit in fits} == {asked == "on"}


def test_on_cpus_the_first_worker_needs_the_whole_model_too():
    """It deals the parts out of the memory in which it trains: only gradients and moments are saved there."""
    large = replace(NEEDS, trained=0, optimizer=10 * GIB, gathered=GIB)  # with no checkpoint beside
    shared = Fit(recompute=True, sharded=True)
    assert asked(17.5, "auto", large, workers=2) == shared
    assert asked(23.5, "auto", large, workers=2, gpus_per_worker=0) == shared
    with pytest.raises(UserError, match=r"takes 26\.1 GiB a worker, .*: use --micro-batch 7$"):
        asked(23.4, "auto", large, workers=2, gpus_per_worker=0)


def test_what_counts_for_a_memory():
    """Each sequence, and between workers the gradients once more, when activations are gone."""
    assert NEEDS.count_memory(2, PLAIN) - NEEDS.count_memory(1, PLAIN) == NEEDS.kept
    assert replace(NEEDS, logits=GIB).count_memory(3, AGAIN) == NEEDS.count_memory(3, AGAIN) + 3 * GIB
    large = replace(NEEDS, trained=2 * GIB)
    assert large.count_memory(1, AGAIN, workers=2) - large.count_memory(1, AGAIN) == 7 * GIB
    run = {"sharding": "off"}
    assert asked(17, "auto", large, **run) == asked(18, "auto", large, workers=2, **run) == AGAIN
    with pytest.raises(UserError, match=r"at least 18\.9 GiB"):
        asked(16.9, "auto", large, workers=2, **run)


def test_what_enters_the_lowest_copy_may_take_a_share_of_what_is_left():
    """Of 20 GiB that can be planned with, 17 are needed; on GPUs a disk has it, and pieces keep none."""
    cpu, gpu = (RunSpec(micro_batch=8, gpus_per_worker=gpus).machine for gpus in (0, 1))
    memory = int((20 * GIB + 12 * NEEDS.trained) / SLACK) + 1  # with a checkpoint that is being written
    fit = allow_streams(NEEDS, cpu, memory, AGAIN)
    assert fit == replace(AGAIN, stream_bytes=int(STREAM_SHARE * 3 * GIB))
    assert allow_streams(NEEDS, cpu, memory, PLAIN) == PLAIN
    assert allow_streams(NEEDS, gpu, memory, AGAIN) == replace(AGAIN, stream_bytes=STREAM_DISK_BYTES)
    for machine in (cpu, gpu):
        pieces = Fit(sharded=True)
        assert allow_streams(NEEDS, machine, 10 * memory, pieces) == pieces


def test_what_is_kept_in_memory_counts_for_it():
    """A training that keeps its activations leaves the room that was promised; a disk is no memory."""
    machines = [RunSpec(micro_batch=8, gpus_per_worker=gpus).machine for gpus in (0, 1)]
    kept = Fit(stream_bytes=GIB)
    for size, on_cpu, on_gpu in ((43, True, True), (41.5, False, True), (40.5, False, False)):
        memory = int(size * GIB / SLACK) + 1
        assert [fits_memory(NEEDS, each, memory, kept) for each in machines] == [on_cpu, on_gpu]


@pytest.mark.parametrize(
    ("tunes", "dial"), [("copies", "auto"), ("originals", "auto"), ("all", 0.7), ("all", "off")]
)
def test_what_a_dial_turns_back_to_is_counted(tunes, dial):
    """Trained weights as they were, where they are the backbone's own and a dial may be other than 1."""
    spec = spec_of(tunes).model_copy(update={"dial": dial})
    model, layers = made("llama").to(torch.bfloat16), LAYERS if spec.k else ()
    plan = plan_memory(build_skeleton(model.config, "bfloat16"), spec, layers, LENGTH)
    tuning = build_tuning(model, spec, layers, dict.fromkeys(layer_parameters(model, range(4)), 1.0), 0)
    assert plan.origin == sum(value.nbytes for value in getattr(tuning, "origin", {}).values())
    assert (plan.origin > 0) == (tunes != "copies" and dial != "off")
    plain = replace(plan, origin=0)
    assert plan.count_memory(1, PLAIN) - plain.count_memory(1, PLAIN) == plan.origin
    shared = [each.count_memory(1, Fit(sharded=True), 2) for each in (plan, plain)]
    assert shared[0] - shared[1] == bool(plan.origin) * 4 * plan.trained // 2  # pieces are float32
