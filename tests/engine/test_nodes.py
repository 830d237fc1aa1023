"""What a node says of itself, on a machine with stand-in cards."""

import stat
from pathlib import Path

import pytest
import torch

from adept_ray.engine import nodes as nodes_module
from adept_ray.engine.nodes import Gpu, fingerprint_code, measure_disk, query_gpus, try_cuda

CARDS = "NVIDIA H100 80GB HBM3, 81559, 570.124.06\nNVIDIA L4, 23034, 570.124.06"


def stand_in(folder, monkeypatch, script):
    """Put a program under the name of NVIDIA's own before all others."""
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_cards_are_those_that_the_driver_lists(tmp_path, monkeypatch):
    """Names, memory and the driver's version, as NVIDIA's program prints them."""
    stand_in(tmp_path, monkeypatch, f"cat <<E\n{CARDS}\nE")
    cards = (Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20), Gpu("NVIDIA L4", 23034 * 2**20))
    assert query_gpus() == (cards, "570.124.06", "")


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "version mismatch"),
        ("exec sleep 9", "timed out"),
        ("echo 'No devices were found'; exit 6", ""),
    ],
)
def test_a_driver_that_does_not_answer_is_a_fault(tmp_path, monkeypatch, script, fault):
    """One that hangs, too; a machine whose driver has no card is fine."""
    stand_in(tmp_path, monkeypatch, script)
    monkeypatch.setattr(nodes_module, "QUERY_TIMEOUT_S", 0.3)
    cards, driver, said = query_gpus()
    assert (cards, driver) == ((), "") and fault in said and bool(said) == bool(fault)


def test_a_machine_without_a_driver_has_no_cards(tmp_path, monkeypatch):
    """And nothing is wrong with that."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_gpus() == ((), "", "")


@pytest.mark.parametrize(
    ("cuda", "error", "said"),
    [
        (None, "unasked", ("", "")),
        ("13.0", "", ("CUDA 13.0", "")),
        ("13.0", "The NVIDIA driver on your system is too old", ("CUDA 13.0", "The NVIDIA driver on your")),
    ],
)
def test_torch_says_what_it_was_built_for_and_why_it_sees_nothing(monkeypatch, cuda, error, said):
    """A build for CPUs isn't asked for cards: it would say so in other words."""

    def init():
        if error:
            raise RuntimeError(error)

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    built_for, fault = try_cuda()
    assert built_for == said[0] and fault.startswith(said[1]) and bool(fault) == bool(said[1])


def test_a_folder_that_is_not_made_yet_has_a_disk(tmp_path):
    """That of the nearest folder above it."""
    disk = measure_disk(str(tmp_path / "not" / "there"))
    assert disk.device == tmp_path.stat().st_dev and disk.free > 0
    assert disk.path == str(tmp_path / "not" / "there") and not Path(disk.path).exists()


def test_code_is_named_by_what_it_is(tmp_path, monkeypatch):
    """A changed line gives another name, another place doesn't."""
    for name, text in (("a", "x = 1"), ("b", "x = 1"), ("c", "x = 2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.py").write_text(text)
    names = []
    for name in "abc":
        monkeypatch.setattr(nodes_module, "PACKAGE", tmp_path / name)
        names.append(fingerprint_code())
    assert names[0] == names[1] != names[2]
