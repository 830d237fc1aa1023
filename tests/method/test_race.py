"""The race: the same answer as the exhaustive probe wherever it claims one, for fewer passes."""

import pytest
import torch
from common import logits, padded, random_ids, tiny_model

from adept_ray.config.errors import UserError
from adept_ray.method import race
from adept_ray.method.anatomy import layers_of
from adept_ray.method.importance import layer_importance
from adept_ray.method.race import RACED, Costs, RaceRules, find_settled_depths, plan_looks, rank_layers

LAYERS, SEQUENCES = 10, 96
EXHAUSTIVE = RaceRules(raced=False)


def table(means, seed, noise=0.1, sequences=SEQUENCES):
    """Loss increases [L, N] of made-up layers; a part of the noise is common to all layers of a sequence."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(len(means), sequences, generator=generator, dtype=torch.float64)
    common = torch.randn(sequences, generator=generator, dtype=torch.float64)
    return torch.tensor(means, dtype=torch.float64)[:, None] + noise * (own + common)


@pytest.fixture
def losses(monkeypatch):
    """Let the race read a table of losses in place of a model's; returns a function that takes the table.

    The sequences name their column by their first token. What was asked for is kept in ``asked``.
    """

    def use(increase):
        asked = torch.zeros_like(increase, dtype=torch.bool)

        def read(model, batch, layers, progress=None):
            ids = batch["input_ids"][:, 0]
            asked[torch.tensor(layers)[:, None], ids] = True
            return torch.ones(len(ids)).double(), torch.ones(len(ids)).double(), increase[layers][:, ids]

        monkeypatch.setattr(race, "measure_bypass_losses", read)
        model = tiny_model(layers=len(increase))
        probe = {"input_ids": torch.arange(increase.shape[1])[:, None]}
        return lambda k_max, rules=RACED: (rank_layers(model, probe, k_max, rules), asked)

    return use


def test_the_exhaustive_ranking_is_the_layer_importance():
    """Mean, standard error, base loss and order are those of the plain function, padding left out."""
    model = tiny_model()
    sequences = [random_ids(1, n, seed=n)[0] for n in (20, 9, 14, 3, 17)]
    measured = rank_layers(model, padded(sequences), 4, RaceRules(raced=False, micro_batch=2))
    expected = layer_importance(model, [padded(sequences)])
    assert measured.importance.mean == pytest.approx(expected.mean, abs=1e-6)
    assert measured.importance.standard_error == pytest.approx(expected.standard_error, rel=1e-4)
    assert measured.importance.base_loss == pytest.approx(expected.base_loss, abs=1e-6)
    assert measured.importance.order == expected.order
    assert measured.sequences == (5,) * 4


def spoken(model, sequences, length):
    """Text that the model itself says, so that each layer it loses costs something."""
    torch.manual_seed(0)
    ids = random_ids(sequences, 1)
    while ids.shape[1] < length:
        ids = torch.cat([ids, logits(model, ids)[:, -1].softmax(-1).multinomial(1)], dim=1)
    return ids


def test_a_race_on_a_model_agrees_with_the_exhaustive_probe():
    """Every settled S_k is the exhaustive one, at least one k is settled, and passes are saved."""
    model = tiny_model(layers=6)
    with torch.no_grad():
        for number, layer in enumerate((3, 0, 4, 1, 5, 2)):
            for parameter in layers_of(model)[layer].parameters():
                parameter *= 1 + number / 2
    ids = spoken(model, 80, 12)
    whole = rank_layers(model, {"input_ids": ids}, 3, EXHAUSTIVE)
    raced = rank_layers(model, {"input_ids": ids}, 3)
    assert raced.settled and min(raced.sequences) < 80
    for k in raced.settled:
        assert set(raced.importance.order[:k]) == set(whole.importance.order[:k])


@pytest.mark.parametrize("seed", range(20))
def test_settled_depths_have_the_exhaustive_layers(losses, seed):
    """On made-up losses of clear and of close layers, whatever is called settled is what all of them say."""
    means = torch.rand(LAYERS, generator=torch.Generator().manual_seed(seed)).tolist()
    increase = table(means, seed)
    raced, asked = losses(increase)(4)
    order = increase.mean(1).argsort().tolist()
    for k in raced.settled:
        assert set(raced.importance.order[:k]) == set(order[:k])
    assert asked.sum(1).tolist() == list(raced.sequences)
    assert asked.sum() < asked.numel()


def test_wrong_decisions_are_as_rare_as_promised():
    """With equally important layers, 95 % confidence decides any pair in at most 5 % of the races.

    Each of 200 races has 45 pairs that can only be decided wrongly, at each of the looks. 5 % of 200 is 10,
    and 17 would be 2.3 standard deviations more.
    """
    wrong, schedule = 0, plan_looks(SEQUENCES)
    tokens = torch.ones(SEQUENCES, dtype=torch.float64)
    for seed in range(200):
        increase, below = table([0.0] * LAYERS, seed), torch.zeros(LAYERS, LAYERS, dtype=torch.bool)
        for look in schedule:
            measured = torch.full((LAYERS,), look)
            below = race.decide_pairs(increase, tokens, measured, below, 0.05 / len(schedule))
        wrong += bool(below.any())
    assert wrong <= 17


def test_equal_layers_are_reported_as_a_tie(losses):
    """Two layers that always lose the same are tied, stay tied to the end of the probe, and settle no k."""
    increase = table([0.1, 1.0, 2.0, 3.0, 4.0, 5.0], seed=1)
    increase[2] = increase[1]
    raced, _ = losses(increase)(4)
    assert raced.ties == ((1, 2),) and raced.settled == (1, 3, 4)
    assert raced.sequences[1] == raced.sequences[2] == max(raced.sequences)
    assert max(raced.sequences[layer] for layer in (0, 3, 4, 5)) < raced.sequences[1]


def test_a_tie_across_the_largest_depth_is_reported_whole(losses):
    """The group goes on beyond k_max, to the last layer that may still be chosen."""
    increase = table([0.1, 1.0, 1.0, 1.0, 4.0, 5.0], seed=1)
    increase[2] = increase[3] = increase[1]
    raced, _ = losses(increase)(2)
    assert raced.ties == ((1, 2, 3),) and raced.settled == (1,)


def test_hopeless_layers_are_given_up_first(losses):
    """A layer far above the k_max least important ones is measured at the first look and never again."""
    raced, _ = losses(table([0.1, 0.1, 0.2, 0.2, 9.0, 9.1], seed=2))(2)
    assert raced.sequences[4] == raced.sequences[5] == race.FIRST_LOOK
    assert set(raced.importance.order[4:]) == {4, 5}


def test_the_order_never_contradicts_a_decision(losses):
    """A layer given up stays behind the least important ones, even if its few sequences were easy ones."""
    increase = table([1.0, 1.0, 3.0, 3.2], seed=4, noise=0.05)
    increase[1] = increase[0]
    increase[:, : race.FIRST_LOOK] -= 2.5  # all layers alike: no difference between them changes
    raced, _ = losses(increase)(2)
    assert raced.importance.mean[2] < raced.importance.mean[0]  # a mean over other sequences says nothing
    assert set(raced.importance.order[:2]) == {0, 1}


def test_one_sequence_decides_nothing(losses):
    """Without a standard error every layer is tied with every other."""
    raced, _ = losses(table([0.0, 1.0, 2.0], seed=0, sequences=1))(2)
    assert raced.settled == () and raced.ties == ((0, 1, 2),)


def test_micro_batches_change_nothing():
    """The same ranking whether sequences come one by one or together."""
    model, ids = tiny_model(layers=5), random_ids(40, 12)
    one, many = (rank_layers(model, {"input_ids": ids}, 2, RaceRules(micro_batch=size)) for size in (1, 16))
    assert one.sequences == many.sequences and one.settled == many.settled
    assert one.importance.mean == pytest.approx(many.importance.mean, abs=1e-6)


def test_progress_rises_to_its_end():
    """It is told per bypass, never falls, and ends with all that was expected."""
    told = []
    rank_layers(
        tiny_model(layers=5), {"input_ids": random_ids(40, 12)}, 2, progress=lambda *at: told.append(at)
    )
    done = [at for at, _ in told]
    assert done == sorted(done) and told[-1][0] == told[-1][1] and len(told) > 20
    assert all(at <= of for at, of in told)


def test_costs_are_counted_in_layer_passes():
    """A probe of n layers runs n of them once and then 0 … n-1 behind each bypass, each with a head."""
    costs = Costs(layers=5, head=0.5)
    assert costs.estimate_sequence([]) == 5.5
    assert costs.estimate_sequence(range(5)) == 5.5 + 4.5 + 3.5 + 2.5 + 1.5 + 0.5


def test_a_race_ends_with_its_budget(losses):
    """Layers that never differ are measured until three tenths of L + 1 whole passes are spent."""
    increase = table([0.0] * LAYERS, seed=0, noise=0.1)
    raced, _ = losses(increase)(4)
    head = race.estimate_head_cost(tiny_model(layers=LAYERS))
    each = Costs(LAYERS, head).estimate_sequence(range(LAYERS))
    spent = each * raced.sequences[0]
    allowed = race.BUDGET * (LAYERS + 1) * (LAYERS + head) * SEQUENCES
    assert allowed - each < spent <= allowed
    whole, _ = losses(increase)(4, EXHAUSTIVE)
    assert whole.sequences == (SEQUENCES,) * LAYERS


def test_the_last_look_is_the_whole_probe():
    """However long the probe is, looks rise strictly and end with it."""
    for sequences in (1, 7, 8, 9, 32, 1000):
        found = plan_looks(sequences)
        assert found == sorted(set(found)) and found[-1] == sequences


def test_settled_needs_every_layer_placed():
    """S_k is settled exactly when no layer may be on either side of k."""
    below = torch.zeros(3, 3, dtype=torch.bool)
    below[0, 1] = below[0, 2] = True
    assert find_settled_depths(below, 3) == (1, 3)
    below[1, 2] = True
    assert find_settled_depths(below, 2) == (1, 2)


def test_a_probe_that_predicts_nothing_is_refused():
    """One token a sequence predicts none."""
    with pytest.raises(UserError, match="predicts no token"):
        rank_layers(tiny_model(), {"input_ids": random_ids(3, 1)}, 2)
