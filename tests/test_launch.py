"""What fits on a cluster is known before a run; the memory of all that was started is counted."""

import subprocess
import sys

import pytest

from adept_ray import launch
from adept_ray.config import RunSpec, UserError


def test_more_gpus_than_the_cluster_has_are_refused():
    """The sentence says what was asked, what it needs and what there is."""
    run = RunSpec(workers=4, gpus_per_worker=2)
    with pytest.raises(UserError, match=r"--workers 4 with --gpus-per-worker 2 needs 8 GPUs .* has 1"):
        launch.check_cluster(run, {"CPU": 64, "GPU": 1})


def test_cpus_for_ray_itself_are_counted():
    """A cluster with just the workers' CPUs would wait for ever, so it is refused."""
    with pytest.raises(UserError, match=r"--workers 2 needs 4 logical CPUs .* has 3"):
        launch.check_cluster(RunSpec(workers=2), {"CPU": 3})
    launch.check_cluster(RunSpec(workers=2), {"CPU": 4})


def test_no_cluster_at_the_address_is_one_sentence(monkeypatch):
    """RAY_ADDRESS that nobody answers ends in a sentence that names it."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    refused = pytest.raises(UserError, match=r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:1")
    with refused, launch.cluster(RunSpec(name="x")):
        pass


def test_threads_never_exceed_the_cpus(monkeypatch):
    """Busy threads beyond the CPUs spin: each worker gets its share, and at least one."""
    monkeypatch.setattr(launch, "cpus", lambda: 6)
    assert [launch.threads_per_worker(RunSpec(workers=n)) for n in (1, 2, 4, 6)] == [6, 3, 1, 1]


def test_memory_counts_the_processes_that_were_started():
    """A child that fills 200 MiB raises the peak by about that much."""
    launch.Memory._peak = 0
    launch.Memory.sample()
    before = launch.Memory.peak_gib()
    code = "x = bytearray(b'1') * (200 * 2**20); print('full', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"full\n"
    launch.Memory.sample()
    child.communicate(b"\n")
    assert launch.Memory.peak_gib() - before == pytest.approx(0.2, abs=0.03)
