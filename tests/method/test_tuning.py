"""What each method trains, how LoRA merges, and TaSL's steps one by one."""

import copy
from typing import get_args

import pytest
import torch
from common import logits, random_ids, shake, tiny_model
from transformers import AutoModelForCausalLM

from adept_ray.config.choices import Tunes
from adept_ray.config.specs import TrainingSpec
from adept_ray.method import lora
from adept_ray.method.anatomy import layer_parameters, sublayer_of, trainable_parameters, unit_of
from adept_ray.method.expansion import export
from adept_ray.method.importance import layer_importance, measure_taylor_importance, unit_importance
from adept_ray.method.loss import get_compute_policy, next_token_nats
from adept_ray.method.tuning import build_tuning, list_trained_norms

LAYERS = (0, 2)
BATCH = {"input_ids": random_ids(3, 12)}


def ready(tunes, **settings):
    """A tiny model and its tuning."""
    model = tiny_model()
    units = unit_importance(model, [BATCH], range(4))
    spec = TrainingSpec(k=2, tunes=tunes, lora_rank=2, **settings)
    return model, build_tuning(model, spec, LAYERS, units, seed=3)


@pytest.mark.parametrize("tunes", get_args(Tunes))
def test_before_the_first_step_nothing_has_changed(tunes):
    """Copies are identities and LoRA's B is zero: every method starts out as the backbone, bit for bit."""
    model, _ = ready(tunes)
    ids = random_ids()
    assert torch.equal(logits(model, ids), logits(tiny_model(), ids))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "smollm3"])
@pytest.mark.parametrize("tunes", ["copies", "originals", "lora", "tasl"])
def test_a_model_of_fewer_bits_starts_out_the_same(family, tunes):
    """What is trained becomes float32, all else stays bfloat16, and every loss is that of the backbone.

    To the last bit: what float32 weights put out is rounded as that of bfloat16 weights is.
    """
    backbone, model = (tiny_model(family).to(torch.bfloat16) for _ in range(2))
    units = dict.fromkeys(layer_parameters(model, range(4)), 1.0)
    tuning = build_tuning(model, TrainingSpec(k=2, tunes=tunes, lora_rank=2), LAYERS, units, seed=3)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert {kinds.pop(name) for name in tuning.parameters} == {torch.float32}
    assert set(kinds.values()) == {torch.bfloat16}
    assert torch.equal(next_token_nats(model, BATCH)[0], next_token_nats(backbone, BATCH)[0])
    next_token_nats(model, BATCH)[0].sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in tuning.parameters.values())


def outputs_of_norms(model):
    """Types of what the norms of `model` put out in a pass by its policy, and the loss of that pass."""
    seen = []
    norms = [module for name, module in model.named_modules() if name.endswith("norm")]
    hooks = [norm.register_forward_hook(lambda *args: seen.append(args[-1].dtype)) for norm in norms]
    nats = next_token_nats(model, BATCH)[0]
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(norms)
    return set(seen), nats


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "olmo2"])
@pytest.mark.parametrize("tunes", ["copies", "originals"])
def test_trained_norms_hand_on_fewer_bits(family, tunes):
    """Their weights are float32; what they put out is cast once, to what each projection would make of it."""
    model = tiny_model(family).to(torch.bfloat16)
    units = dict.fromkeys(layer_parameters(model, range(4)), 1.0)
    tuning = build_tuning(model, TrainingSpec(k=2, tunes=tunes), LAYERS, units, seed=3)
    shake(tuning.parameters.values(), 0.1)
    kinds, nats = outputs_of_norms(model)
    assert kinds == {torch.bfloat16}
    with tuning._hold_values(1.0, torch.bfloat16):
        rounded = next_token_nats(model, BATCH)[0]
    with tuning.use_exported_weights():
        assert torch.equal(next_token_nats(model, BATCH)[0], rounded)  # as ranks with pieces measure it
    for norm in list_trained_norms(model):
        norm._forward_hooks.clear()
    if family != "qwen3":  # between its norms of queries and keys and what casts them is a rotation
        assert torch.equal(next_token_nats(model, BATCH)[0], nats)


def test_norms_of_float32_are_left_alone():
    """Without autocast nothing is cast, nor is anything called for it."""
    model, _ = ready("copies")
    assert list_trained_norms(model) and not any(norm._forward_hooks for norm in list_trained_norms(model))


@pytest.mark.parametrize("tunes", get_args(Tunes))
def test_what_is_measured_has_the_type_that_is_exported(tunes):
    """So every method starts at the backbone's loss to the last bit, and goes on with its float32 weights."""
    backbone, model = (tiny_model("qwen3").to(torch.bfloat16) for _ in range(2))
    units = dict.fromkeys(layer_parameters(model, range(4)), 1.0)
    spec = TrainingSpec(k=2 if tunes in ("copies", "originals") else 0, tunes=tunes, lora_rank=2)
    tuning = build_tuning(model, spec, LAYERS if spec.k else (), units, seed=3)
    shake(tuning.parameters.values(), 1e-4)  # float32 that bfloat16 can't hold
    for name, parameter in tuning.parameters.items():
        if "lora_B" in name or (name.endswith(("o_proj.weight", "down_proj.weight")) and tunes == "copies"):
            parameter.data.zero_()
    masters = {name: p.detach().clone() for name, p in tuning.parameters.items()}
    if tunes in ("all", "originals"):  # rounded, they are no longer the backbone's
        with torch.no_grad():
            state = {name: p.to(torch.bfloat16) for name, p in model.named_parameters()}
        backbone.load_state_dict(state, strict=False)
    with tuning.use_exported_weights(), torch.no_grad():
        assert {p.dtype for p in tuning.parameters.values()} == {torch.bfloat16}
        assert torch.equal(next_token_nats(model, BATCH)[0], next_token_nats(backbone, BATCH)[0])
    assert all(torch.equal(p, masters[name]) for name, p in tuning.parameters.items())
    assert get_compute_policy(model).autocast == torch.bfloat16


def test_all_parameters_of_a_model_of_fewer_bits_are_trained_in_float32():
    """The passes are in bfloat16 all the same."""
    model = tiny_model().to(torch.bfloat16)
    tuning = build_tuning(model, TrainingSpec(k=0, tunes="all"), (), {}, seed=3)
    assert {p.dtype for p in tuning.parameters.values()} == {torch.float32}
    seen = []
    model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    next_token_nats(model, BATCH)[0].sum().backward()
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("tunes", get_args(Tunes))
def test_activations_can_be_computed_again(tunes):
    """Far less is kept for the gradient, which is the same to the last bit; a bypass still works."""
    found = []
    for again in (False, True):
        model, tuning = ready(tunes)
        if again:
            tuning.recompute_activations()
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            nats = next_token_nats(model, BATCH)[0].sum()
        nats.backward()
        gradients = [p.grad for p in tuning.parameters.values()]
        found.append((kept, gradients, layer_importance(model, [BATCH])))
    (much, plain, importance), (little, again, same) = found
    assert little < much / 3 and importance == same
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_layers_that_no_gradient_passes_are_not_computed_again():
    """Below the first copy nothing is kept anyway; what trains nothing computes nothing again."""
    model, tuning = ready("copies")
    tuning.recompute_activations()
    assert get_compute_policy(model).recomputed == tuple(model.model.layers[1:])
    empty = tiny_model()
    build_tuning(empty, TrainingSpec(k=0), (), {}, seed=3).recompute_activations()
    assert get_compute_policy(empty).recomputed == ()


def test_what_is_trained():
    """Copies, the chosen layers, every parameter, or two matrices a projection; and nothing else."""
    backbone = tiny_model()
    everything = dict(backbone.named_parameters())
    assert set(ready("all")[1].parameters) == set(everything)
    assert set(ready("originals")[1].parameters) == set(layer_parameters(backbone, LAYERS))
    model, tuning = ready("copies")
    assert set(tuning.parameters) == set(layer_parameters(model, (1, 4))) and tuning.added == (1, 4)
    for tunes in ("lora", "tasl"):
        names = set(ready(tunes)[1].parameters)
        projections = {unit_of(n) for n in everything if "_proj" in n}
        assert {lora.skill_of(name) for name in names} == projections and len(names) == 2 * len(projections)


@pytest.mark.parametrize("tunes", get_args(Tunes))
def test_scales_cover_what_is_trained(tunes):
    """Where importance isn't measured every scale is 1; where it is, rank scales average 1 over units."""
    _, tuning = ready(tunes)
    scales = tuning.compute_scales(tuning.importance, TrainingSpec())
    assert scales.keys() == tuning.parameters.keys()
    if tuning.rated:
        assert len(set(scales.values())) > 3
    else:
        assert set(scales.values()) == {1.0}


def test_a_block_is_the_mean_over_its_scalars():
    """Granularity ``block`` gives what a measurement of whole blocks gives, before the rates are made."""
    model, tuning = ready("originals")
    measured = measure_taylor_importance(model, [BATCH], tuning.parameters, sublayer_of)
    by_block = tuning.compute_scales(tuning.importance, TrainingSpec(granularity="block"))
    order = sorted(measured, key=lambda name: measured[name])
    found = [by_block[name] for name in order]
    assert found == sorted(found, reverse=True)
    groups = {sublayer_of(name): by_block[name] for name in order}
    assert len(groups) == 6 and all(by_block[name] == groups[sublayer_of(name)] for name in order)
    assert {name.rpartition(".")[2] for name in groups} == {"self_attn", "mlp", "norm"}


def test_a_merged_lora_computes_the_same(tmp_path):
    """Merged, exported and loaded without peft it gives the logits it had with its adapters."""
    model, tuning = ready("lora")
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.normal_(std=0.1)
    ids = random_ids()
    before = logits(model, ids)
    assert not torch.allclose(before, logits(tiny_model(), ids), atol=1e-2)
    loaded = AutoModelForCausalLM.from_pretrained(export(tuning.merge(), tmp_path))
    torch.testing.assert_close(logits(loaded, ids), before, atol=1e-4, rtol=1e-4)


def test_lora_goes_by_the_seed_and_leaves_the_generator_alone():
    """The same seed draws the same A, another seed another one; the random state outside is untouched."""
    torch.manual_seed(0)
    drawn = [trainable_parameters(lora.add_lora(tiny_model(), 2, seed)) for seed in (1, 1, 2)]
    after = torch.rand(1)
    torch.manual_seed(0)
    tiny_model(), tiny_model(), tiny_model()
    assert torch.equal(after, torch.rand(1))
    first, again, other = (next(p for n, p in d.items() if "lora_A" in n) for d in drawn)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_lora_adds_twice_the_product_of_its_matrices():
    """Alpha is twice the rank, whatever the rank; of few skill units one still counts as important."""
    for rank in (2, 3):
        added = lora.add_lora(tiny_model(), rank, 0)
        scales = {module.scaling["default"] for module in added.modules() if hasattr(module, "lora_A")}
        assert scales == {2.0}
    assert lora.pick_most_important({"a": 1.0, "b": 2.0}) == {"b"}


def test_sensitivity_is_smoothed_over_steps():
    """Mean sensitivity, its distance from what is seen, and their product, against the definition."""
    model, tuning = ready("tasl")
    optimizer = torch.optim.AdamW(tuning.parameters.values(), lr=1e-2)
    means = {name: 0.0 for name in tuning.parameters}
    spreads = dict(means)
    for _ in range(3):
        next_token_nats(model, BATCH)[0].sum().backward()
        optimizer.step()
        tuning.observe_step(optimizer)
        for name, p in tuning.parameters.items():
            now = (p * p.grad).abs().detach()
            means[name] = 0.85 * means[name] + 0.15 * now
            spreads[name] = 0.85 * spreads[name] + 0.15 * (now - means[name]).abs()
        optimizer.zero_grad()
    found = lora.measure_domain_importance(tuning.parameters, optimizer)
    skill = "model.layers.1.mlp.up_proj"
    own = [name for name in means if name.startswith(f"{skill}.")]
    values = torch.cat([(means[name] * spreads[name]).flatten() for name in own])
    assert found[skill] == pytest.approx(values.mean().item(), rel=1e-4) and found[skill] > 0


def test_consolidation_keeps_mixes_and_gives_back():
    """Of ten units two count as important to each side: one to both, one to each, the rest to neither."""
    names = [f"u{i}.lora_{m}.weight" for i in range(10) for m in "AB"]
    trained = {name: torch.nn.Parameter(torch.full((2,), 4.0)) for name in names}
    before = {name: torch.zeros(2) for name in names}
    domain = {f"u{i}": float(i in (0, 1)) for i in range(10)}
    general = {f"u{i}": float(i in (1, 2)) for i in range(10)}
    weights = lora.consolidate_skills(trained, before, domain, general)
    assert [weights[f"u{i}"] for i in range(4)] == [1.0, 1 - lora.KEPT, 0.0, 0.5]
    for name, parameter in trained.items():
        assert parameter.tolist() == [4 * weights[lora.skill_of(name)]] * 2


def test_tasl_ends_with_a_consolidation():
    """After the last step every unit lies between what it was and what was trained, at one of the weights."""
    model, tuning = ready("tasl")
    before = {name: p.detach().clone() for name, p in tuning.parameters.items()}
    optimizer = torch.optim.AdamW(tuning.parameters.values(), lr=1e-2)
    next_token_nats(model, BATCH)[0].sum().backward()
    optimizer.step()
    tuning.observe_step(optimizer)
    after = copy.deepcopy({name: p.detach() for name, p in tuning.parameters.items()})
    tuning.finish(optimizer, [BATCH])
    shares = set()
    for name, p in tuning.parameters.items():
        moved = (after[name] - before[name]).norm()
        if moved > 0:
            shares.add(round(((p.detach() - before[name]).norm() / moved).item(), 3))
    assert {0.0, 0.5, 1.0} <= shares | {0.0} and shares <= {0.0, 0.5, 1.0}
