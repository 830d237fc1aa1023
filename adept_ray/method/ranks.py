"""This process among its peers: rank, number of ranks, sums over all of them.

Outside `torch.distributed` there is one rank and a sum is the value itself, so code written with
these functions runs unchanged in a notebook.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 to world_size() - 1."""
    return dist.get_rank() if world_size() > 1 else 0


def split_over_ranks(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    """This rank's share of `ids` in pieces of at most `size`.

    Every rank has as many pieces, so the last ones may be empty: where the ranks hold pieces of a model, all
    of them have to make each of its passes.
    """
    mine = ids[rank() :: world_size()]
    longest = -(-len(ids) // world_size())
    return [mine[start : start + size] for start in range(0, longest, size)]


def sum_over_ranks(values: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """`values` summed over all ranks, on the device they came on.

    `device` is where the backend can reduce (NCCL: the GPU); default: where `values` are.
    """
    if world_size() == 1:
        return values
    total = values.to(device) if device is not None else values.clone()
    dist.all_reduce(total)
    return total.to(values.device)


def agree_on_largest(number: int, device: torch.device) -> int:
    """The largest `number` that any rank has; `device` is where the backend can reduce."""
    if world_size() == 1:
        return number
    numbers = torch.tensor([number], device=device)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)
