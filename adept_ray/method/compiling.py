"""Whether torch.compile works in this process."""

from __future__ import annotations

from adept_ray.config.errors import find_cause


def find_compiler_fault(device: str) -> str:
    """Why torch.compile doesn't work for that `device` in this process; empty if it does."""
    import torch

    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as problem:  # whatever it is: each compiler has errors of its own
        return find_cause(problem)
    return ""


def describe_compiler_fault(why: str) -> str:
    """That torch.compile doesn't work on a worker, `why`, and what mends it."""
    return (
        f"torch.compile doesn't work where a worker runs ({why}): install a C++ compiler, such as g++, and "
        "Python's headers there, or give --compile off"
    )
