"""Whether torch can use the GPUs of this machine, and what mends it where it can't."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from adept_ray.config.errors import first_line

# What torch says on a machine that may have no card at all.
NO_CARD = "no NVIDIA driver|No (CUDA|HIP) GPUs|no CUDA-capable|not compiled"
HIDING = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES under which no card is seen


@dataclass(frozen=True)
class GpuFacts:
    """What a machine and its torch say of GPUs."""

    torch: str
    """Version of torch."""
    built_for: str = ""
    """What torch was built for, such as ``CUDA 13.0``; empty: for CPUs alone."""
    cards: int = 0
    """NVIDIA's cards that this process may open, whatever torch makes of them."""
    driver: str = ""
    """Version of NVIDIA's driver in the kernel, which a container sees, too; empty: there is none."""
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES; None where it isn't set."""
    problem: str = ""
    """What torch says when it is to use GPUs; empty if it can."""


def find_gpu_fault() -> str:
    """Why torch can't use GPUs here, in this process, as the rest of a sentence; empty if it can."""
    import torch

    facts = read_gpu_facts()
    return explain_gpu_fault(facts) or ("" if torch.cuda.device_count() else explain_missing_gpus(facts))


def explain_gpu_fault(facts: GpuFacts) -> str:
    """Why torch can't use a machine's GPUs, and what mends it, as the rest of a sentence.

    Empty if it can, and if there are none.
    """
    torch, driver, problem = f"torch {facts.torch}", facts.driver, first_line(facts.problem)
    if not problem or (not facts.cards and not driver and re.search(NO_CARD, problem)):
        return ""
    if not facts.built_for:
        return f"{torch} is built for CPUs alone, and this machine has GPUs: install its build for CUDA"
    if found := re.search(r"driver on your system is too old \(found version (\d+)\)", problem):
        most = f"CUDA {int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}"  # 12080 is 12.8
        return (
            f"NVIDIA's driver{' ' + driver if driver else ''} goes up to {most}, and {torch} is built for "
            f"{facts.built_for}: update the driver, or install a torch that is built for {most} or older"
        )
    if facts.visible in HIDING:
        return f"CUDA_VISIBLE_DEVICES is '{facts.visible}', which hides all GPUs: unset it"
    if re.search(NO_CARD, problem):
        return (
            "NVIDIA's driver runs on this machine, but no card can be reached from here: start the container "
            f"with the GPUs, as by `docker run --gpus all` ({problem})"
        )
    if "Error 802" in problem:  # cudaErrorSystemNotReady: cards that are joined by switches
        return f"the GPUs aren't ready: start NVIDIA's fabric manager on this machine ({problem})"
    if re.search(r"Error 80[34]\b", problem):  # cudaErrorSystemDriverMismatch, …CompatNotSupportedOnDevice
        return (
            "NVIDIA's driver and its libraries don't go together: restart the machine after an update, or "
            f"use a container that is made for the driver ({problem})"
        )
    return f"{torch} can't use this machine's GPUs: {problem}"


def explain_missing_gpus(facts: GpuFacts) -> str:
    """Why torch sees no GPU where :func:`explain_gpu_fault` finds no fault, as the rest of a sentence."""
    if not facts.built_for:
        return f"torch {facts.torch} is built for CPUs alone, so it sees no GPU: install its build for CUDA"
    return f"torch {facts.torch} for {facts.built_for} sees no GPU"


def read_gpu_facts(root: Path = Path("/")) -> GpuFacts:
    """What this machine, whose files are under `root`, and torch in this process say of GPUs.

    Torch gets ready for GPUs, but takes no memory of them.
    """
    import torch

    kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    try:
        said = (root / "proc/driver/nvidia/version").read_text()
    except OSError:  # no driver, or not Linux
        said = ""
    driver = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", said)
    try:
        torch.cuda.init()
        problem = ""
    except Exception as error:  # AssertionError without CUDA, RuntimeError or what the driver raises
        problem = str(error)
    return GpuFacts(
        torch=torch.__version__,
        built_for=next((f"{kind} {number}" for kind, number in kinds.items() if number), ""),
        cards=len([*root.glob("dev/nvidia[0-9]*")]),
        driver=driver[1] if driver else "",
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        problem=problem,
    )


def measure_smallest_gpu() -> int:
    """Memory of the smallest GPU that this process sees, bytes; 0 if it sees none."""
    import torch

    cards = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_properties(card).total_memory for card in cards), default=0)
