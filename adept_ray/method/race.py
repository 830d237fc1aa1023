"""Stage 1 on a whole probe: which layers are least important, and which of them can't be told apart.

The exhaustive probe measures every layer on every sequence. The raced one looks at the differences
between layers after a few sequences, gives up the layers that can't be among the `k_max` least important,
leaves alone those whose place is clear, and spends the rest of the probe on the others (a race in the sense
of Maron and Moore, 1997). Pure torch; every rank returns the same numbers.

**The test.** Two layers a and b are compared on the sequences that both were measured on: d_i is the
difference of their losses on sequence i, and t = mean(d) / standard error(d) is referred to Student's t with
one degree of freedom fewer than there are sequences, on both sides. **The correction.** All pairs are one
family. Each of the planned looks gets the same share of 1 - confidence, and within a look Holm's step-down
divides it among the pairs not decided so far. So with probability `confidence` not one pair is decided
wrongly. What follows from decisions (a below b, b below c) counts as decided.
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


def rank_layers(
    model: nn.Module,
    probe: Batch,
    k_max: int,
    *,
    raced: bool = True,
    confidence: float = CONFIDENCE,
    micro_batch: int = 8,
    progress: Progress | None = None,
) -> Ranking:
    """Measure the importance of the layers on `probe`: every rank is given all of it and works on its share.

    `probe` holds ``input_ids`` [N, T] and optional ``attention_mask`` [N, T]. Without `raced` every layer is
    measured on all N sequences, and the differences are looked at once. `progress` is called with
    (layer passes done, layer passes expected in all). Raises :class:`UserError` for an unsupported
    family or when no token is predicted.
    """
    count, total = len(layers_of(model)), len(probe["input_ids"])
    k_max = min(k_max, count)
    base, tokens = torch.zeros(2, total, dtype=torch.float64)
    increase = torch.zeros(count, total, dtype=torch.float64)
    measured = torch.zeros(count, dtype=torch.long)
    below = torch.zeros(count, count, dtype=torch.bool)
    schedule = plan_looks(total) if raced else [total]
    head = head_cost(model)
    budget = BUDGET * (count + 1) * (count + head) * total if raced else math.inf
    going, done, spent = list(range(count)), 0, 0.0  # costs are in passes of one sequence through one layer
    for look in schedule:
        each = sequence_cost(going, count, head)
        affordable = int((budget - spent) / each) if math.isfinite(budget) else total
        upto = min(look, max(done + affordable, schedule[0]))
        if upto == done:
            break
        for share in split_over_ranks(range(done, upto), micro_batch):
            ids = list(share)
            expected = min(budget, spent + each * (total - done))
            so_far = spent + each * (ids[0] - done if ids else 0)
            tell = (
                _scale_progress(progress, so_far, expected, going, count, head, len(ids))
                if progress
                else None
            )
            batch = {name: values[ids or [done]] for name, values in probe.items()}
            found = measure_bypass_losses(model, batch, going, tell)
            if ids:
                base[ids], tokens[ids], increase[torch.tensor(going)[:, None], torch.tensor(ids)] = found
        spent += each * (upto - done)
        for measure in (base, tokens, increase):
            piece = measure[..., done:upto]
            piece.copy_(sum_over_ranks(piece.contiguous(), next(model.parameters()).device))
        measured[going] = done = upto
        level = (1 - confidence) / len(schedule)
        below = decide_pairs(increase, tokens, measured, below, level)
        lowest, highest = possible_places(below)
        going = [i for i in going if lowest[i] < min(int(highest[i]), k_max)]
        if not going:
            break
    if progress:
        progress(round(spent), round(spent))
    if tokens.sum() == 0:
        raise UserError("the probe predicts no token: give sequences of at least two real tokens")
    order = order_layers(increase, tokens, measured, below)
    mean, error = average_rows(increase, tokens, measured)
    importance = LayerImportance(
        tuple(mean.tolist()), tuple(error.tolist()), float(base.sum() / tokens.sum()), order
    )
    settled = find_settled_depths(below, k_max)
    ties = find_ties(order, below, settled, k_max)
    span = tuple(zip(*(each.tolist() for each in possible_places(below)), strict=True))
    return Ranking(importance, tuple(measured.tolist()), settled, ties, span)


def plan_looks(sequences: int) -> list[int]:
    """Numbers of sequences after which the differences are looked at; the last is all of them."""
    found, next_look = [], float(FIRST_LOOK)
    while next_look < sequences:
        found.append(int(next_look))
        next_look *= GROWTH
    return [*found, sequences]


def sequence_cost(bypassed: Sequence[int], layers: int, head: float) -> float:
    """What a sequence costs, in passes through one layer: the whole model and what follows each bypass."""
    return layers + head + sum(layers - 1 - layer + head for layer in bypassed)


def head_cost(model: nn.Module) -> float:
    """What the output head costs, in passes through one layer: the ratio of their weights."""
    layers = layers_of(model)
    weights = sum(p.numel() for p in layers.parameters()) / len(layers)
    return model.get_output_embeddings().weight.numel() / weights  # type: ignore[operator]


def _scale_progress(
    progress: Progress,
    spent: float,
    of: float,
    going: Sequence[int],
    layers: int,
    head: float,
    sequences: int,
) -> Progress:
    """A progress in bypasses of one batch, told on as layer passes of the whole probe."""

    def tell(done: int, _: int) -> None:
        now = spent + sequences * world_size() * sequence_cost(going[:done], layers, head)
        progress(round(min(now, of)), round(of))

    return tell


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


def possible_places(below: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest and the highest place (0-based) that each layer can have in the order, [L] each."""
    return below.sum(0), len(below) - 1 - below.sum(1)


def find_settled_depths(below: torch.Tensor, k_max: int) -> tuple[int, ...]:
    """The depths k ≤ k_max for which every layer is certainly in S_k or certainly not."""
    lowest, highest = possible_places(below)
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

    A run that k_max itself cuts goes on to the last layer that may still belong to S_k_max.
    """
    lowest, _ = possible_places(below)
    last = max((place + 1 for place, layer in enumerate(order) if lowest[layer] < k_max), default=0)
    edges = [0, *settled] if k_max in settled else [0, *settled, last]
    groups = (tuple(order[start:end]) for start, end in itertools.pairwise(edges))
    return tuple(group for group in groups if len(group) > 1)
