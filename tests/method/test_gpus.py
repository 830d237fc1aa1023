"""Why torch can't use GPUs is one sentence with what mends it."""

import pytest
import torch

from adept_ray.method import gpus
from adept_ray.method.gpus import (
    GpuFacts,
    explain_gpu_fault,
    find_gpu_fault,
    measure_smallest_gpu,
    read_gpu_facts,
)

CUDA = {"torch": "2.13.0+cu130", "built_for": "CUDA 13.0", "cards": 8, "driver": "550.54.14"}
CPU = {"torch": "2.13.0+cpu", "problem": "Torch not compiled with CUDA enabled"}
COUNT = "Unexpected error from cudaGetDeviceCount(). "
OLD = "The NVIDIA driver on your system is too old (found version {}). Please update your GPU driver"
KERNEL = "NVRM version: NVIDIA UNIX {} 550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version:  gcc 12\n"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({**CPU, "cards": 1}, ["2.13.0+cpu is built for CPUs alone", "install its build for CUDA"]),
        ({**CPU, "driver": "550.54.14"}, ["is built for CPUs alone"]),  # a container without the cards
        (
            {**CUDA, "problem": OLD.format(12080)},
            ["driver 550.54.14 goes up to CUDA 12.8,", "for CUDA 13.0:", "is built for CUDA 12.8 or older"],
        ),
        ({**CUDA, "driver": "", "problem": OLD.format(9000)}, ["NVIDIA's driver goes up to CUDA 9.0,"]),
        ({**CUDA, "visible": "", "problem": "No CUDA GPUs are available"}, ["DEVICES is ''", "unset it"]),
        (
            {**CUDA, "cards": 0, "problem": "Found no NVIDIA driver on your system."},
            ["docker run --gpus all"],
        ),
        (
            {**CUDA, "problem": COUNT + "Error 802: not yet initialized\nmore"},
            ["fabric manager", "Error 802"],
        ),
        ({**CUDA, "problem": COUNT + "Error 803: unsupported display driver"}, ["restart", "Error 803"]),
        ({**CUDA, "problem": "CUDA unknown error - this\nmore"}, ["GPUs: CUDA unknown error - this"]),
    ],
)
def test_each_reason_is_one_line_that_says_what_mends_it(facts, words):
    """The words are those of torch for an old driver, hidden cards, a container without them, switches."""
    said = explain_gpu_fault(GpuFacts(**facts))
    assert "\n" not in said
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "facts",
    [
        CUDA,
        CPU,
        {**CUDA, "cards": 0, "driver": "", "problem": "Found no NVIDIA driver on your system. Please check"},
        {"torch": "2.13.0+rocm6.4", "built_for": "ROCm 6.4", "problem": "No HIP GPUs are available"},
    ],
)
def test_no_fault_where_gpus_work_and_where_there_are_none(facts):
    """That a machine has no GPU is for the one who counts them to say."""
    assert explain_gpu_fault(GpuFacts(**facts)) == ""


def test_gpus_that_are_wanted_are_missed_where_there_are_none(monkeypatch):
    """By the name of torch's build, which is what mends it; else "0 GPUs" is all that a person hears."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for facts, words in ((CPU, "2.13.0+cpu is built for CPUs alone, so"), (CUDA, "CUDA 13.0 sees no GPU")):
        monkeypatch.setattr(gpus, "read_gpu_facts", lambda facts=facts: GpuFacts(**facts))
        assert words in find_gpu_fault()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_gpu_fault() == ""


@pytest.mark.parametrize("kind", ["x86_64 Kernel Module ", "Open Kernel Module for x86_64 "])
def test_cards_and_driver_are_those_of_the_kernel(kind, tmp_path, monkeypatch):
    """Both of NVIDIA's kernel modules name their version; of its devices only cards count."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(KERNEL.format(kind))
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    facts = read_gpu_facts(tmp_path)
    assert (facts.cards, facts.driver, facts.visible) == (2, "550.54.14", "3")


def test_what_torch_says_is_kept_as_it_is(tmp_path, monkeypatch):
    """Of an error the words, and nothing if it can use GPUs."""

    def refuse():
        raise RuntimeError("No CUDA GPUs are available")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    assert read_gpu_facts(tmp_path).problem == "No CUDA GPUs are available"
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert read_gpu_facts(tmp_path).problem == ""


def test_the_smallest_card_counts(monkeypatch):
    """A worker may get any of them."""
    assert measure_smallest_gpu() == 0 or torch.cuda.is_available()
    sizes = [80, 24, 48]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda card: type("Card", (), {"total_memory": sizes[card]})
    )
    assert measure_smallest_gpu() == 24
