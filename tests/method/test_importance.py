"""Importance of layers and units: equal to plain recomputations, and the model is left as it was."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from common import padded, random_ids, run_ranks, shake, tiny_model
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method import importance
from adept_ray.method.anatomy import layer_parameters, layers_of
from adept_ray.method.copies import added_layers
from adept_ray.method.expansion import expand, select_layers, source_importance
from adept_ray.method.families import FAMILIES
from adept_ray.method.head import GPU_LOGITS
from adept_ray.method.importance import (
    LayerImportance,
    layer_importance,
    limit_layers,
    limit_sequences,
    unit_importance,
)
from adept_ray.method.race import RaceRules, rank_layers

every_family = pytest.mark.parametrize("family", FAMILIES)
UNEQUAL = [random_ids(1, n, seed=n)[0] for n in (20, 9, 14, 3, 17)]


class Skipped(nn.Module):
    def forward(self, hidden_states, *_, **__):
        return hidden_states


def without(model, layer):
    model = copy.deepcopy(model)
    layers_of(model)[layer] = Skipped()
    return model


def plain_losses(model, sequences):
    """Nats per predicted token, one sequence at a time without padding: an array per sequence."""
    losses = []
    for ids in sequences:
        with torch.no_grad():
            log_p = model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
        losses.append(-log_p[:-1].gather(1, ids[1:, None])[:, 0].numpy())
    return losses


def mean_loss(model, sequences):
    return np.concatenate(plain_losses(model, sequences)).mean()


def plain_units(model, sequences, layers):
    """Mean |θ·∂L/∂θ| of each module that owns parameters, by loss.backward() in double precision."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    tokens = sum(len(ids) - 1 for ids in sequences)
    for ids in sequences:
        log_p = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        (-log_p[:-1].gather(1, ids[1:, None]).sum() / tokens).backward()
    result = {}
    for layer in layers:
        for path, module in layers_of(model)[layer].named_modules():
            own = dict(module.named_parameters(recurse=False))
            if own:
                products = torch.cat([(p * p.grad).abs().flatten() for p in own.values()])
                result |= {f"model.layers.{layer}.{path}.{name}": products.mean().item() for name in own}
    return result


@every_family
def test_bypass_equals_a_plain_recomputation(family):
    """The importance of a layer is the loss of a model without that layer, minus the whole model's."""
    model = tiny_model(family)
    ids = random_ids(3, 20)
    measured = layer_importance(model, [{"input_ids": ids}])
    base = mean_loss(model, ids)
    assert measured.base_loss == pytest.approx(base, abs=1e-5)
    expected = [mean_loss(without(model, layer), ids) - base for layer in range(4)]
    assert measured.mean == pytest.approx(expected, abs=1e-5)
    assert min(abs(a - b) for a in expected for b in expected if a is not b) > 1e-4  # layers are told apart


def test_standard_error_is_that_of_a_mean_over_sequences():
    """With sequences of one length it is the textbook s/√n of the per-sequence loss increases."""
    model, ids = tiny_model(), random_ids(6, 12)
    base = np.array([losses.mean() for losses in plain_losses(model, ids)])
    measured = layer_importance(model, [{"input_ids": ids[:4]}, {"input_ids": ids[4:]}])
    for layer in range(4):
        increases = np.array([losses.mean() for losses in plain_losses(without(model, layer), ids)]) - base
        expected = increases.std(ddof=1) / np.sqrt(len(increases))
        assert measured.standard_error[layer] == pytest.approx(expected, rel=1e-3)


def test_one_sequence_has_no_standard_error():
    """A single sequence says nothing about the spread: nan, never 0 or infinite."""
    for seed in range(4):
        measured = layer_importance(tiny_model(), [{"input_ids": random_ids(1, 12, seed)}])
        assert np.isnan(measured.standard_error).all() and np.isfinite(measured.mean).all()


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_counted(family, side):
    """A padded batch gives what its sequences give one by one; the importance is per predicted token."""
    model, batch = tiny_model(family), padded(UNEQUAL, side)
    alone = [{"input_ids": ids[None]} for ids in UNEQUAL]
    measured, expected = layer_importance(model, [batch]), layer_importance(model, alone)
    assert measured.base_loss == pytest.approx(mean_loss(model, UNEQUAL), abs=1e-5)
    assert measured.mean == pytest.approx(expected.mean, abs=1e-5)
    assert measured.standard_error == pytest.approx(expected.standard_error, rel=1e-3)
    units, expected_units = unit_importance(model, [batch], (1, 2)), unit_importance(model, alone, (1, 2))
    assert units == pytest.approx(expected_units, rel=1e-3, abs=1e-9)


def test_a_sequence_of_padding_changes_nothing():
    """A row that is padding from end to end is no sequence: means and standard errors stay."""
    model, batch = tiny_model(), padded(UNEQUAL)
    fuller = {name: torch.cat([value, torch.zeros_like(value[:2])]) for name, value in batch.items()}
    measured, expected = layer_importance(model, [fuller]), layer_importance(model, [batch])
    assert measured.mean == pytest.approx(expected.mean, abs=1e-6)
    assert measured.standard_error == pytest.approx(expected.standard_error, rel=1e-4)


def test_batch_composition_does_not_matter():
    """However the probe is cut into batches, layers and units get the same numbers."""
    model = tiny_model("qwen3")
    cuts = [[UNEQUAL], [UNEQUAL[:1], UNEQUAL[1:]], [[ids] for ids in UNEQUAL[::-1]]]
    results = [[padded(batch) for batch in batches] for batches in cuts]
    layers = [layer_importance(model, batches) for batches in results]
    units = [unit_importance(model, batches, (0, 3)) for batches in results]
    for other in (1, 2):
        assert layers[other].mean == pytest.approx(layers[0].mean, abs=1e-5)
        assert layers[other].standard_error == pytest.approx(layers[0].standard_error, rel=1e-3)
        assert units[other] == pytest.approx(units[0], rel=1e-4, abs=1e-10)


def state_of(model):
    """Everything that measuring could leave behind in a model."""
    modules = list(model.modules())
    return {
        "training": [m.training for m in modules],
        "attributes": [sorted(vars(m)) for m in modules],
        "hooks": sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules),
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "values": [p.detach().clone() for p in model.parameters()],
    }


def same(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


class Broken(Exception):
    pass


def breaking(batches):
    """Batches that end in an error, as a lost worker or a full disk would make them."""
    yield from batches
    raise Broken


@pytest.mark.parametrize("breaks", [False, True], ids=["finishes", "raises"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_model_is_left_as_it_was(training, breaks):
    """No hook, replaced forward, gradient or flag stays behind, also when the measuring fails half-way."""
    model = tiny_model().train(training)
    expand(model, (1,))
    parameter = next(layers_of(model)[2].parameters())
    parameter.grad = torch.full_like(parameter, 3.0)
    before = state_of(model)
    batches = [{"input_ids": random_ids()}]
    for measure in (lambda b: layer_importance(model, b), lambda b: unit_importance(model, b, (0, 2))):
        if breaks:
            with pytest.raises(Broken):
                measure(breaking(batches))
        else:
            measure(batches)
        after = state_of(model)
        assert all(same(before[part], after[part]) for part in before)


def test_a_failing_pass_leaves_no_bypass():
    """When a forward pass itself fails under a bypass, the layers get their own forward back."""
    model, ids = tiny_model(), random_ids()
    calls = []
    hook = model.lm_head.register_forward_pre_hook(lambda *_: calls.append(1 // (3 - len(calls))))
    with pytest.raises(ZeroDivisionError):
        layer_importance(model, [{"input_ids": ids}])
    hook.remove()
    assert not any("forward" in vars(layer) or layer._forward_pre_hooks for layer in layers_of(model))


def test_dropout_is_off_while_measuring():
    """A model in training mode is measured without its dropout: the same numbers as in eval mode."""
    model, batches = tiny_model("llama", attention_dropout=0.5), [{"input_ids": random_ids()}]
    expected = layer_importance(model, batches), unit_importance(model, batches, (1,))
    model.train()
    assert (layer_importance(model, batches), unit_importance(model, batches, (1,))) == expected


def test_training_works_after_measuring():
    """Measuring leaves no inference-mode tensor behind in rotary caches that grow with the sequence."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=16)
    batches = [{"input_ids": random_ids(1, 40)}]
    layer_importance(model, batches)
    assert all(value > 0 for value in unit_importance(model, batches, (1,)).values())


@every_family
def test_units_equal_a_backward_pass_in_double_precision(family):
    """Unit importance is the mean of |θ·∂L/∂θ| over the unit, L being the mean loss over the probe."""
    model, sequences = tiny_model(family), random_ids(3, 16)
    expected = plain_units(model, sequences, (0, 2))
    # One batch per sequence: the sum of gradients comes before the absolute value, not after.
    measured = unit_importance(model, [{"input_ids": ids[None]} for ids in sequences], (0, 2))
    assert measured.keys() == expected.keys() == layer_parameters(model, (0, 2)).keys()
    assert measured == pytest.approx(expected, rel=1e-3, abs=1e-8)


def test_a_weight_and_its_bias_share_one_number():
    """A unit is the module that owns tensors: one number for all of them."""
    units = unit_importance(tiny_model(), [{"input_ids": random_ids()}], (1,))
    for part in ("q_proj", "o_proj"):
        name = f"model.layers.1.self_attn.{part}"
        assert units[f"{name}.weight"] == units[f"{name}.bias"] > 0


def test_probe_gradients_never_reach_the_optimizer():
    """Steps with a measurement between backward and step equal steps without one, bit for bit."""

    def trained(measure):
        model = tiny_model(seed=3)
        added = expand(model, (1,))
        shake(layer_parameters(model, added).values(), 0.05)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(2):
            batch = {"input_ids": random_ids(seed=step)}
            model(labels=batch["input_ids"], **batch).loss.backward()
            if measure:
                unit_importance(model, [{"input_ids": random_ids(seed=9)}], (*added, 0))
                assert all(p.grad is None for p in layer_parameters(model, (0,)).values())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if measure:
            unit_importance(model, [{"input_ids": random_ids(seed=9)}], added)
            assert all(p.grad is None for p in model.parameters())
        return model.state_dict()

    plain, measured = trained(False), trained(True)
    assert all(torch.equal(plain[name], measured[name]) for name in plain)


@every_family
def test_fresh_copies_have_none_and_take_their_source_s(family):
    """In a fresh copy every unit measures exactly 0, so each copy starts with its own source's numbers."""
    model, batches, chosen = tiny_model(family), [{"input_ids": random_ids()}], (0, 2, 3)
    on_sources = unit_importance(model, batches, range(4))
    added = expand(model, chosen)
    fresh = unit_importance(model, batches, added)
    assert set(fresh.values()) == {0.0}
    taken = source_importance(on_sources, chosen)
    assert taken.keys() == fresh.keys()
    for source, copied in zip(chosen, added_layers(chosen), strict=True):
        own = (name for name in on_sources if f".{source}." in name)
        expected = {name.replace(f".{source}.", f".{copied}."): on_sources[name] for name in own}
        assert expected and expected.items() <= taken.items()
    trained = layer_parameters(model, added)
    shake(trained.values(), 0.1)
    assert min(unit_importance(model, batches, added).values()) > 0


def test_a_source_without_a_measurement_is_refused():
    """A missing importance is an error that names the layer, never read as 0."""
    units = unit_importance(tiny_model(), [{"input_ids": random_ids()}], (0, 1))
    with pytest.raises(UserError, match="layer 3"):
        source_importance(units, (1, 3))


def test_a_probe_without_predictions_is_refused():
    """Sequences too short to predict anything are an error in words, and so is no batch at all."""
    for batches in ([{"input_ids": random_ids(2, 1)}], []):
        with pytest.raises(UserError, match="predicts no token"):
            layer_importance(tiny_model(), batches)
        with pytest.raises(UserError, match="predicts no token"):
            unit_importance(tiny_model(), batches, (0,))


def measure_as_rank(rank, store, results):
    """One process of two; the first sees one batch, the second two."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    batches = [[padded(UNEQUAL[:2])], [padded(UNEQUAL[2:4]), padded(UNEQUAL[4:])]][rank]
    model = tiny_model()
    ranked = rank_layers(model, padded(UNEQUAL), 2, RaceRules(micro_batch=2))  # every rank is given all of it
    measured = layer_importance(model, batches), unit_importance(model, batches, (1,)), ranked
    torch.save(measured, f"{results}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Shares of the probe on two processes give every process the numbers of the whole probe on one."""
    run_ranks(measure_as_rank, (str(tmp_path / "store"), str(tmp_path)), 2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(2))
    assert first == second
    model, whole = tiny_model(), [padded(UNEQUAL)]
    layers, units = layer_importance(model, whole), unit_importance(model, whole, (1,))
    assert first[0].mean == pytest.approx(layers.mean, abs=1e-5)
    assert first[0].standard_error == pytest.approx(layers.standard_error, rel=1e-3)
    assert first[0].base_loss == pytest.approx(layers.base_loss, abs=1e-5)
    assert first[1] == pytest.approx(units, rel=1e-4)
    ranked = rank_layers(model, padded(UNEQUAL), 2).importance
    assert first[2].importance.mean == pytest.approx(ranked.mean, abs=1e-6)
    assert first[2].importance.standard_error == pytest.approx(ranked.standard_error, abs=1e-6)


@pytest.mark.parametrize("at_once", [1, 2, 3, 9])
def test_units_are_the_same_a_few_layers_at_a_time(at_once):
    """Whatever share of the layers has its gradients in memory; the batches may come from a generator."""
    model = tiny_model()
    batches = [{"input_ids": random_ids(2, 12, seed=seed)} for seed in range(2)]
    whole = unit_importance(model, batches, range(4))
    assert unit_importance(model, iter(batches), range(4), at_once) == whole


def test_a_large_layer_is_measured_alone():
    """Four bytes for its gradient and four for the sum of it."""
    model = tiny_model()
    size = 8 * sum(p.numel() for p in model.model.layers[0].parameters())
    budgets = (10 * size, 10 * size - 1, size, 8)
    assert [limit_layers(model, budget) for budget in budgets] == [10, 9, 1, 1]


def test_a_probe_takes_as_many_sequences_as_its_memory_holds():
    """A token takes the inputs of all layers; where logits are scaled behind the head, three rows of them."""
    streams, rows = 4 * 32 * 4, 3 * 128 * 4
    assert limit_sequences(tiny_model(), 20, GPU_LOGITS + 20 * streams * 4 - 1) == 3
    assert limit_sequences(tiny_model("granite"), 20, 20 * (streams + rows) * 4 - 1) == 3
    assert limit_sequences(tiny_model("granite"), 20, 20 * (streams + rows) * 4) == 4
    assert limit_sequences(tiny_model("granite"), 20, 1) == limit_sequences(tiny_model(), 20, 1) == 1


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("layers.1.mlp.down_proj", r"mlp\.down_proj\.weight of layer 1 holds numbers that aren't; copy or"),
        ("layers.3.mlp.down_proj", r"mlp\.down_proj\.weight of layer 3 holds numbers that aren't; copy or"),
        ("embed_tokens", "what its embedding gives isn't, so look at the embedding's weights"),
        ("norm", "the last layer's output, the final norm's or the head's isn't"),
    ],
)
def test_what_is_not_finite_is_named(broken, named):
    """Weights that hold nan end stage 1 at the first loss, with the layer in which they are."""
    model = tiny_model("llama")
    model.get_submodule(f"model.{broken}").weight.data.view(-1)[:5] = torch.nan
    with pytest.raises(UserError, match=f"^the backbone's loss on the probe isn't finite: {named}"):
        layer_importance(model, [{"input_ids": torch.arange(20)[None] % 5}])


def test_an_overflow_is_named():
    """The weights are finite, and what a layer makes of them isn't."""
    model = tiny_model("llama")
    layers_of(model)[1].mlp.down_proj.weight.data.fill_(3e38)
    with pytest.raises(
        UserError, match="what layer 1 gives isn't, though its weights are; a wider --precision"
    ):
        layer_importance(model, [{"input_ids": random_ids(1, 20)}])


def test_a_bypass_that_is_not_finite_is_named(monkeypatch):
    """No importance can be told of a layer without which the loss is no number."""
    plain, calls = importance.next_token_nats, []

    def lose(model, batch):
        calls.append(None)
        nats, tokens = plain(model, batch)
        return nats + (torch.inf if len(calls) == 3 else 0), tokens

    monkeypatch.setattr(importance, "next_token_nats", lose)
    with pytest.raises(UserError, match=r"^without layer 1 the backbone's loss on the probe isn't finite"):
        layer_importance(tiny_model("llama"), [{"input_ids": random_ids(1, 20)}])


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_no_layer_is_chosen_by_what_is_no_number(strange):
    """A layer whose importance isn't finite is neither the least important nor the most."""
    measured = LayerImportance((0.1, strange, 0.3), (0.0,) * 3, 1.0)
    with pytest.raises(UserError, match=f"^layer 1: its importance is {strange}, not a number$"):
        select_layers(measured, 1)
