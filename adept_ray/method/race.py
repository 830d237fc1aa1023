"""Stage 1 on a whole probe: which layers are least important, and which of them can't be told apart.

The exhaustive probe measures every layer on every sequence. The raced one looks at the differences
between layers after a few sequences. It gives up the layers that can't be among the `k_max` least important,
leaves alone those whose place is clear, and spends the rest of the probe on the others (a race in the sense
of Maron and Moore, 1997). Pure torch; every rank returns the same numbers.

**The test.** Two layers a and b are compared on the sequences that both were measured on: d_i is the
difference of their losses on sequence i, and t = mean(d) / standard error(d) is referred to Student's t with
one degree of freedom fewer than there are sequences, on both sides. **The correction.** All pairs are one
family. Each of the planned looks gets the same share of 1 - confidence, and within a look Holm's step-down
divides it among the pairs not decided so far. So with probability `confidence` not one pair is decided
wrongly. A pair that follows from decisions (a below b, b below c) counts as decided.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method.anatomy import layers_of
from adept_ray.method.importance import LayerImportance, Progress, estimate_ratio, measure_bypass_losses
from adept_ray.method.loss import Batch
from adept_ray.method.ranks import split_over_ranks, sum_over_ranks, world_size

CONFIDENCE = 0.95
FIRST_LOOK = 8  # sequences; with fewer, Student's t hardly ever tells two layers apart after the correction
GROWTH = 1.5  # sequences at a look over those at the look before
BUDGET = 0.3  # of the cost of L + 1 whole passes over the probe; the first look is always taken


@dataclass(frozen=True)
class RaceRules:
    """How the layers are measured."""

    raced: bool = True
    """Give up layers that can't be among the `k_max` least important. Else every layer is measured on all
    sequences, and the differences are looked at once."""
    confidence: float = CONFIDENCE
    """Probability that not one pair of layers is decided wrongly."""
    micro_batch: int = 8
    """Sequences of a forward pass."""


RACED = RaceRules()


@dataclass(frozen=True)
class Ranking:
    """The layers by importance, and how much of that order is certain."""

    importance: LayerImportance
    """Mean and standard error of each layer on the sequences it was measured on; `order` ranks them."""
    sequences: tuple[int, ...]
    """Per layer, the number of sequences it was measured on (the first ones of the probe)."""
    settled: tuple[int, ...]
    """The depths k, 1 … k_max, whose S_k is certain at the confidence asked for."""
    ties: tuple[tuple[int, ...], ...]
    """Groups of layers, least important first, among which the choice of some S_k, k ≤ k_max, is open."""
    places: tuple[tuple[int, int], ...]
    """Per layer the lowest and the highest place (0-based) that it can have in the order."""


@dataclass(frozen=True)
class Costs:
    """What passes cost, in passes of one sequence through one layer."""

    layers: int
    """Layers of the model."""
    head: float
    """Cost of the output head."""

    def estimate_sequence(self, bypassed: Sequence[int]) -> float:
        """Cost of a sequence: the whole model, and for each bypass what follows it."""
        tails = sum(self.layers - 1 - layer + self.head for layer in bypassed)
        return self.layers + self.head + tails


@dataclass
class Measurements:
    """Losses of a probe of N sequences as far as they are measured, for L layers."""

    base: torch.Tensor
    """Loss of the whole model, nats, float64 [N]."""
    tokens: torch.Tensor
    """Predicted tokens, float64 [N]."""
    increase: torch.Tensor
    """Loss increase without a layer, nats, float64 [L, N]."""
    measured: torch.Tensor
    """Number of sequences that each layer was measured on, the first ones, int64 [L]."""
    done: int = 0
    """Number of sequences that any layer was measured on."""

    @classmethod
    def begin(cls, layers: int, sequences: int) -> Measurements:
        """Nothing measured yet."""
        base, tokens = torch.zeros(2, sequences, dtype=torch.float64)
        increase = torch.zeros(layers, sequences, dtype=torch.float64)
        return cls(base, tokens, increase, torch.zeros(layers, dtype=torch.long))


@dataclass(frozen=True)
class RaceClock:
    """Tells `progress` of the bypasses of one look, as layer passes of the whole probe."""

    progress: Progress | None
    costs: Costs
    going: Sequence[int]
    """The layers that are bypassed."""
    spent: float
    """Cost of the looks before."""
    expected: float
    """Cost of the whole probe, as far as it can be foreseen."""

    def follow_batch(self, before: int, sequences: int) -> Progress | None:
        """A progress in bypasses of a batch of so many `sequences`, which comes after `before` others."""
        if (progress := self.progress) is None:
            return None
        start = self.spent + self.costs.estimate_sequence(self.going) * before

        def tell(done: int, _: int) -> None:
            bypasses = self.costs.estimate_sequence(self.going[:done])
            now = start + sequences * world_size() * bypasses
            progress(round(min(now, self.expected)), round(self.expected))

        return tell


def rank_layers(
    model: nn.Module,
    probe: Batch,
    k_max: int,
    rules: RaceRules = RACED,
    progress: Progress | None = None,
) -> Ranking:
    """Measure the importance of the layers on `probe`: every rank is given all of it and works on its share.

    `probe` holds ``input_ids`` [N, T] and optional ``attention_mask`` [N, T]. `progress` is called with
    (layer passes done, layer passes expected in all). Raises :class:`UserError` for an unsupported
    family or when no token is predicted.
    """
    count, total = len(layers_of(model)), len(probe["input_ids"])
    k_max = min(k_max, count)
    schedule = plan_looks(total) if rules.raced else [total]
    costs = Costs(count, estimate_head_cost(model))
    budget = BUDGET * (count + 1) * (count + costs.head) * total if rules.raced else math.inf
    seen = Measurements.begin(count, total)
    below = torch.zeros(count, count, dtype=torch.bool)
    going, spent = list(range(count)), 0.0  # costs are in passes of one sequence through one layer
    for look in schedule:
        each = costs.estimate_sequence(going)
        affordable = int((budget - spent) / each) if math.isfinite(budget) else total
        upto = min(look, max(seen.done + affordable, schedule[0]))
        if upto == seen.done:
            break
        expected = min(budget, spent + each * (total - seen.done))
        clock = RaceClock(progress, costs, going, spent, expected)
        spent += each * (upto - seen.done)
        measure_sequences(model, probe, seen, upto, rules.micro_batch, clock)
        level = (1 - rules.confidence) / len(schedule)
        below = decide_pairs(seen.increase, seen.tokens, seen.measured, below, level)
        lowest, highest = find_possible_places(below)
        going = [i for i in going if lowest[i] < min(int(highest[i]), k_max)]
        if not going:
            break
    if progress:
        progress(round(spent), round(spent))
    return build_ranking(seen, below, k_max)


def measure_sequences(
    model: nn.Module, probe: Batch, seen: Measurements, upto: int, micro_batch: int, clock: RaceClock
) -> None:
    """Measure the layers that are left on the next sequences of `probe`, up to number `upto`, into `seen`."""
    going, done = clock.going, seen.done
    for share in split_over_ranks(range(done, upto), micro_batch):
        ids = list(share)
        batch = {name: values[ids or [done]] for name, values in probe.items()}
        tell = clock.follow_batch(ids[0] - done if ids else 0, len(ids))
        found = measure_bypass_losses(model, batch, going, tell)
        if ids:
            rows = torch.tensor(going)[:, None], torch.tensor(ids)
            seen.base[ids], seen.tokens[ids], seen.increase[rows] = found
    for measure in (seen.base, seen.tokens, seen.increase):
        piece = measure[..., done:upto]
        piece.copy_(sum_over_ranks(piece.contiguous(), next(model.parameters()).device))
    seen.measured[going] = seen.done = upto


def build_ranking(seen: Measurements, below: torch.Tensor, k_max: int) -> Ranking:
    """The ranking by what was measured and decided. Raises :class:`UserError` if no token was predicted."""
    increase, tokens, measured = seen.increase, seen.tokens, seen.measured
    if tokens.sum() == 0:
        raise UserError("the probe predicts no token: give sequences of at least two real tokens")
    order = order_layers(increase, tokens, measured, below)
    mean, error = average_rows(increase, tokens, measured)
    importance = LayerImportance(
        tuple(mean.tolist()), tuple(error.tolist()), float(seen.base.sum() / tokens.sum()), order
    )
    settled = find_settled_depths(below, k_max)
    ties = find_ties(order, below, settled, k_max)
    span = tuple(zip(*(each.tolist() for each in find_possible_places(below)), strict=True))
    return Ranking(importance, tuple(measured.tolist()), settled, ties, span)


def plan_looks(sequences: int) -> list[int]:
    """Numbers of sequences after which the differences are looked at; the last is all of them."""
    found, next_look = [], float(FIRST_LOOK)
    while next_look < sequences:
        found.append(int(next_look))
        next_look *= GROWTH
    return [*found, sequences]


def estimate_head_cost(model: nn.Module) -> float:
    """What the output head costs, in passes through one layer: the ratio of their weights."""
    layers = layers_of(model)
    weights = sum(p.numel() for p in layers.parameters()) / len(layers)
    return model.get_output_embeddings().weight.numel() / weights  # type: ignore[operator]


def decide_pairs(
    increase: torch.Tensor, tokens: torch.Tensor, measured: torch.Tensor, below: torch.Tensor, level: float
) -> torch.Tensor:
    """`below` [L, L] with what another look at the losses adds (see the top of this file).

    ``below[a, b]`` says that a is less important than b. `increase` [L, N] is in nats per sequence, `tokens`
    [N] what they predict, `measured` [L] how many of the sequences each layer has seen. Only pairs measured
    on as many as the best-measured are tested; `level` is this look's share of the error allowed.
    """
    from scipy.special import stdtr

    latest = int(measured.max())
    current = (measured == latest).nonzero().flatten().tolist()
    open_pairs = ~(below | below.T)
    remaining = int(open_pairs.sum() - len(below)) // 2
    pairs = [(a, b) for a, b in itertools.combinations(current, 2) if open_pairs[a, b]]
    if not pairs or latest < 2:
        return below
    first, second = torch.tensor(pairs).T
    mean, error = average_rows((increase[first] - increase[second]), tokens, measured[first])
    degrees = int((tokens[:latest] > 0).sum()) - 1
    p = torch.from_numpy(2 * stdtr(degrees, -(mean / error).abs().numpy())).nan_to_num(1.0)
    below = below.clone()
    for step, pair in enumerate(torch.argsort(p).tolist()):
        if p[pair] > level / (remaining - step):
            break
        a, b = pairs[pair] if mean[pair] < 0 else pairs[pair][::-1]
        if not (below[a, b] or below[b, a]):  # else it followed from others meanwhile
            up_to_a, from_b = below[:, a].clone(), below[b].clone()
            up_to_a[a] = from_b[b] = True
            below |= up_to_a[:, None] & from_b
    return below


def average_rows(
    values: torch.Tensor, tokens: torch.Tensor, measured: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean per token and its standard error of each row of `values` [R, N], over its first `measured` [R]."""
    n = torch.where(torch.arange(len(tokens)) < measured[:, None], tokens, 0.0)
    d = torch.where(n > 0, values, 0.0)
    moments = torch.stack([d.sum(1), (d * d).sum(1), (d * n).sum(1)])
    return estimate_ratio(moments, torch.stack([n.sum(1), (n * n).sum(1), (n > 0).sum(1).double()]))


def find_possible_places(below: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and the highest place (0-based) that each layer can have in the order, [L] each."""
    return below.sum(0), len(below) - 1 - below.sum(1)


def find_settled_depths(below: torch.Tensor, k_max: int) -> tuple[int, ...]:
    """The depths k ≤ k_max for which every layer is certainly in S_k or certainly not."""
    lowest, highest = find_possible_places(below)
    return tuple(k for k in range(1, k_max + 1) if not ((lowest < k) & (k <= highest)).any())


def order_layers(
    increase: torch.Tensor, tokens: torch.Tensor, measured: torch.Tensor, below: torch.Tensor
) -> tuple[int, ...]:
    """Layer ids, least important first: by the number of layers that each beats (Copeland).

    A decided pair counts as decided; any other by the means over the sequences that both have seen, since
    a mean over other sequences is no measure.
    """
    count = len(measured)
    wins = torch.zeros(count)
    for a, b in itertools.combinations(range(count), 2):
        shared = min(measured[a], measured[b])
        difference = (increase[a, :shared] - increase[b, :shared]).sum()
        first = bool(below[a, b]) or (not below[b, a] and bool(difference <= 0))
        wins[a if first else b] += 1
    mean = average_rows(increase, tokens, measured)[0]
    return tuple(sorted(range(count), key=lambda layer: (-wins[layer], mean[layer], layer)))


def find_ties(
    order: Sequence[int], below: torch.Tensor, settled: Sequence[int], k_max: int
) -> tuple[tuple[int, ...], ...]:
    """The runs of `order` between settled depths that hold more than one layer.

    If k_max cuts a run, that goes on to the last layer that may still belong to S_k_max.
    """
    lowest, _ = find_possible_places(below)
    last = max((place + 1 for place, layer in enumerate(order) if lowest[layer] < k_max), default=0)
    edges = [0, *settled] if k_max in settled else [0, *settled, last]
    groups = (tuple(order[start:end]) for start, end in itertools.pairwise(edges))
    return tuple(group for group in groups if len(group) > 1)
