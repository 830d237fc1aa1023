"""Rates: what matters more moves less, the mean stays, and every trainable parameter has exactly one rate."""

import math
from itertools import pairwise

import pytest
import torch
from common import random_ids, tiny_model
from hypothesis import example, given
from hypothesis import strategies as st

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import is_norm, unit_of
from adept_ray.method.expansion import expand, source_importance
from adept_ray.method.families import FAMILIES
from adept_ray.method.importance import unit_importance
from adept_ray.method.rates import (
    average_by_sublayer,
    average_scales,
    cosine_factor,
    parameter_groups,
    set_rates,
    unit_rates,
    unit_scales,
    wsd_factor,
)

RULES = ("rank", "minmax", "minmax_by_kind", "none")
every_rule = pytest.mark.parametrize("rule", RULES)
values = st.sampled_from([0.0, 1.0, 2.0]) | st.floats(0, 1e6)
KINDS = ("self_attn.q_proj", "input_layernorm", "mlp.up_proj", "self_attn.q_norm")


def named(numbers):
    """Importances under full parameter names, of matrices and norms in turn."""
    return {f"model.layers.{i}.{KINDS[i % 4]}.weight": value for i, value in enumerate(numbers)}


importances = st.lists(values, min_size=1, max_size=30).map(named)


@given(importances)
def test_rank_keeps_the_mean_rate(importance):
    """The mean scale over units is 1 whatever the importances and their ties: no rate is created or lost."""
    scales = unit_scales(importance, "rank")
    assert math.fsum(scales.values()) / len(scales) == pytest.approx(1, abs=1e-12)


@every_rule
@given(importances)
def test_scales_lie_between_zero_and_two(rule, importance):
    """No unit moves backwards or more than twice as fast as the base rate."""
    scales = unit_scales(importance, rule)
    assert scales.keys() == importance.keys() and all(0 <= scale <= 2 for scale in scales.values())


@every_rule
@given(st.floats(0, 10), st.integers(1, 10))
def test_equal_importances_give_the_base_rate(rule, value, units):
    """When importance tells no unit from another, all of them get the base rate."""
    rates = unit_rates(named([value] * units), 3e-4, rule)
    assert list(rates.values()) == pytest.approx([3e-4] * units)


@pytest.mark.parametrize("rule", ["rank", "minmax"])
@given(importance=importances)
@example(named([2.0, 1.0, 3.0]))
def test_the_more_important_unit_moves_less(rule, importance):
    """Scales fall as importance rises, equal ones are equal; extremes without a tie get 0 and 2."""
    scales = unit_scales(importance, rule)
    ordered = sorted(importance, key=importance.__getitem__)
    for low, high in pairwise(ordered):
        if importance[low] == importance[high]:
            assert scales[low] == scales[high]
        else:
            assert scales[low] >= scales[high]
            assert rule == "minmax" or scales[low] > scales[high]
    if len(set(importance.values())) == len(importance) > 1:
        assert (scales[ordered[0]], scales[ordered[-1]]) == (2, 0)


def test_minmax_is_linear():
    """A unit half-way between the least and the most important one gets the base rate."""
    assert list(unit_scales(named([1.0, 5.0, 3.0, 2.0]), "minmax").values()) == [2, 0, 1, 1.5]


def test_a_rate_goes_by_the_rule_and_the_control_turns_it_round():
    """Base rate times scale, by rank unless another rule is given; "reverse" is 2·Ĩ in place of 2·(1 − Ĩ)."""
    importance = named([1.0, 5.0, 3.0, 2.0])
    assert list(unit_rates(importance, 0.1).values()) == pytest.approx([0.2, 0, 0.2 / 3, 0.4 / 3])
    assert list(unit_rates(importance, 0.1, "minmax").values()) == pytest.approx([0.2, 0, 0.1, 0.15])
    assert list(unit_scales(importance, "minmax", "reverse").values()) == [0, 2, 1, 0.5]


def test_scales_are_averaged_by_kind():
    """Over units, not parameters: a bias doesn't count beside its matrix, and all norms are one kind."""
    q, k = "model.layers.1.self_attn.q_proj", "model.layers.4.self_attn.q_proj"
    scales = {
        f"{q}.weight": 0.5,
        f"{q}.bias": 0.5,
        f"{k}.weight": 2.0,
        "model.layers.1.mlp.up_proj.weight": 1.5,
    }
    norms = {"model.layers.1.input_layernorm.weight": 0.0, "model.layers.1.self_attn.q_norm.weight": 0.5}
    assert average_scales(scales | norms) == {"q_proj": 1.25, "up_proj": 1.5, "norm": 0.25}


def test_a_part_of_a_layer_has_the_mean_of_its_scalars():
    """A unit of many scalars counts for more than one of few; parts of other layers don't count."""
    q, o, up = (
        f"model.layers.1.{unit}.weight" for unit in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
    )
    importance = {q: 1.0, o: 4.0, up: 7.0, q.replace("1", "2"): 9.0}
    sizes = {q: 30, o: 10, up: 5, q.replace("1", "2"): 2}
    found = average_by_sublayer(importance, sizes)
    assert found == {q: 1.75, o: 1.75, up: 7.0, q.replace("1", "2"): 9.0}


@given(st.lists(values, min_size=8, max_size=20), st.floats(1e-3, 1e3))
def test_minmax_by_kind_keeps_norms_and_matrices_apart(numbers, factor):
    """However large the norms' importance is, the matrices' scales stay, and each kind has its own ends."""
    importance = named(numbers)
    louder = {n: value * (factor if is_norm(unit_of(n)) else 1) for n, value in importance.items()}
    scales, changed = unit_scales(importance, "minmax_by_kind"), unit_scales(louder, "minmax_by_kind")
    for norms in (True, False):
        kind = [name for name in importance if is_norm(unit_of(name)) == norms]
        if not norms:
            assert all(scales[name] == changed[name] for name in kind)
        if len({importance[name] for name in kind}) > 1:
            assert {min(scales[n] for n in kind), max(scales[n] for n in kind)} == {0, 2}


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_importance_that_is_not_finite_is_refused(rule, bad):
    """A broken measurement is an error that names the unit, also where the rule wouldn't look at it."""
    with pytest.raises(UserError, match=r"model.layers.1.input_layernorm is -?(nan|inf)"):
        unit_scales(named([1.0, bad, 2.0]), rule)


def test_an_unknown_rule_is_refused():
    """The error names the rules there are."""
    with pytest.raises(UserError, match=r"'softmax'.*rank, minmax, minmax_by_kind or none"):
        unit_scales(named([1.0]), "softmax")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_every_trainable_parameter_is_in_exactly_one_group(family, decay):
    """The groups hold the trainable parameters, each once, and every group is one unit."""
    model = tiny_model(family)
    expand(model, (0, 2))
    groups = parameter_groups(model, decay)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(unit_of(names[id(p)]) == group["unit"] for group in groups for p in group["params"])
    if not decay:
        assert len({group["unit"] for group in groups}) == len(groups)
    assert all(group["lr"] == 0 for group in groups)  # nothing moves before its rate is set


@pytest.mark.parametrize("family", FAMILIES)
def test_only_matrices_decay(family):
    """Weight decay pulls at matrices, never at norms and biases."""
    model = tiny_model(family)
    expand(model, (1,))
    for group in parameter_groups(model, weight_decay=0.1):
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0)


def test_the_whole_model_can_be_grouped():
    """Outside the layers too every trainable parameter is in exactly one group; what is frozen is in none."""
    model = tiny_model()
    model.requires_grad_(True)
    model.lm_head.weight.requires_grad_(False)
    grouped = [p for group in parameter_groups(model) for p in group["params"]]
    assert not any(group["weight_decay"] for group in parameter_groups(model))
    wanted = [p for name, p in model.named_parameters() if name != "lm_head.weight"]
    assert sorted(map(id, grouped)) == sorted(map(id, wanted))


def prepared(weight_decay=0.0):
    model = tiny_model()
    units = unit_importance(model, [{"input_ids": random_ids()}], range(4))
    expand(model, (1, 3))
    scales = unit_scales(source_importance(units, (1, 3)))
    return model, torch.optim.AdamW(parameter_groups(model, weight_decay)), scales


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_a_rate_is_base_times_schedule_times_scale(history):
    """Whatever was set before, a group's rate is what the last call says and nothing else."""
    (_, optimizer, scales) = PREPARED
    for base, factor in history:
        set_rates(optimizer, base, factor, scales)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(base * factor * scales[f"{group['unit']}.weight"])


PREPARED = prepared(weight_decay=0.1)  # biases are groups of their own there


def test_a_unit_without_a_scale_is_refused():
    """A missing scale is an error that names the unit, never read as 0 or 1."""
    _, optimizer, scales = prepared()
    missing = "model.layers.5.mlp.down_proj"
    with pytest.raises(UserError, match=missing):
        set_rates(optimizer, 1.0, 1.0, {name: s for name, s in scales.items() if unit_of(name) != missing})


def test_the_most_important_unit_stays_and_the_least_moves_most():
    """In a step of sign-like updates a unit moves in proportion to its scale; the most important stays."""
    model, optimizer, scales = prepared()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    set_rates(optimizer, 1e-2, 0.5, scales)
    optimizer.step()
    after = dict(model.named_parameters())
    for name, scale in scales.items():
        assert (before[name] - after[name]).mean().item() == pytest.approx(5e-3 * scale, abs=1e-6)
    assert min(scales.values()) == 0 and max(scales.values()) == 2


shapes = dict(steps=st.integers(1, 300), warmup=st.floats(0, 0.99), final=st.floats(0, 1))


@given(**shapes)
@example(steps=1, warmup=0.9, final=0.0)
def test_the_schedule_rises_then_falls_within_its_bounds(steps, warmup, final):
    """It is above 0, never above 1, rises over the warm-up and falls from 1 towards `final` afterwards."""
    factors = [cosine_factor(step, steps, warmup, final) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(1)
    assert abs(top - warmup * steps) <= 1
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(factor >= final - 1e-12 for factor in factors[top:])
    assert cosine_factor(steps, steps, warmup, final) == pytest.approx(final)


def test_a_single_step_has_the_full_rate():
    """One step is neither warm-up nor end, however long the warm-up is."""
    assert cosine_factor(0, 1, 0.1, 0.1) == cosine_factor(0, 1, 0.9, 0.0) == 1


ends = st.integers(1, 300).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(0, steps - 1)))


@given(ends=ends, rising=st.integers(0, 300), final=st.floats(0, 1))
@example(ends=(1, 0), rising=0, final=0.0)
def test_a_plateau_lies_between_warm_up_and_decay(ends, rising, final):
    """The factor is above 0 and never above 1, rises, stays, and falls towards `final`."""
    steps, start = ends
    factors = [wsd_factor(step, steps, rising, start, final) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:start] == sorted(factors[:start])
    assert all(factor == 1 for factor in factors[rising:start])
    if rising <= start:
        assert factors[start:] == sorted(factors[start:], reverse=True) and factors[-1] >= final
        assert factors[-1] < 1 or final == 1
        assert wsd_factor(steps, steps, rising, start, final) == pytest.approx(final)


@given(ends=ends, more=st.integers(1, 300), rising=st.integers(0, 300))
def test_nothing_before_a_decay_depends_on_the_length(ends, more, rising):
    """A longer training has the same rates up to the step at which the shorter one's fall."""
    steps, start = ends
    short = [wsd_factor(step, steps, rising, start, 0.1) for step in range(start)]
    assert short == [wsd_factor(step, steps + more, rising, start + more, 0.1) for step in range(start)]
    if rising <= start:
        assert wsd_factor(start, steps, rising, start, 0.1) < 1
        assert wsd_factor(start, steps + more, rising, start + 1, 0.1) == 1
