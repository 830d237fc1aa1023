"""In which type a CPU computes faster: one product, timed in both."""

from __future__ import annotations

import statistics
import time

import torch

ROWS, INNER, COLUMNS = 128, 576, 1536  # tokens of a block, and the largest matrix of a small model's layer
TIMED = 3  # products of each type, after one that doesn't count
PAYS = 1.5  # times as fast: units for bfloat16 are 3 to 6 times as fast, and without them it is far slower


def bfloat16_pays() -> bool:
    """Whether this machine's CPU has units for bfloat16 that make products clearly faster than in float32."""
    return time_product(torch.float32) > PAYS * time_product(torch.bfloat16)


def time_product(dtype: torch.dtype) -> float:
    """Median seconds of a product [ROWS, INNER] × [INNER, COLUMNS] on this process's CPU threads."""
    left, right = torch.ones(ROWS, INNER, dtype=dtype), torch.ones(INNER, COLUMNS, dtype=dtype)
    seconds = []
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
