"""The memory that a run's processes take, and what the kernel killed for want of it."""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Memory:
    """Memory of this process and of all that it started; files that they map are left to the page cache."""

    _peak = 0

    @classmethod
    def sample(cls) -> None:
        """Measure now. Does nothing where there is no /proc."""
        own, shared, waiting = 0, 0, [os.getpid()]
        while waiting:
            pid = waiting.pop()
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                own += int(status.partition("RssAnon:")[2].split()[0])
                # The object store is one piece that every process maps.
                shared = max(shared, int(status.partition("RssShmem:")[2].split()[0]))
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
            except (OSError, IndexError):  # it has ended, or this isn't Linux
                continue
        cls._peak = max(cls._peak, own + shared)

    @classmethod
    def read_peak(cls) -> float | None:
        """The largest sample so far, GiB."""
        return round(cls._peak / 2**20, 2) or None


def count_kernel_kills(root: Path = Path("/")) -> int:
    """Processes that the kernel has killed for want of memory, of this container or else of this machine."""
    for file in ("sys/fs/cgroup/memory.events", "proc/vmstat"):
        with suppress(OSError, IndexError):
            return int((root / file).read_text().partition("oom_kill ")[2].split()[0])
    return 0


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew to watch the memory of this process (on a GPU: what torch takes of it)."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).malloc_trim(0)  # what earlier jobs left with the allocator
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: see proc(5)


def read_peak_memory(device: torch.device) -> float | None:
    """Largest memory since :func:`reset_peak_memory`, GiB; None where it can't be known."""
    if device.type == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    with suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        return round(int(status.partition("VmHWM:")[2].split()[0]) / 2**20, 2)
    return None
