"""Out of memory, for real: the job fails alone, isn't begun again, and the next one goes well."""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from common import local_backbone, one_document_each, save_tiny_backbone
from ray._private.utils import get_system_memory, get_used_memory

from adept_ray.config.specs import RunSpec
from adept_ray.engine.client import run_job
from adept_ray.engine.crew import start_crews
from adept_ray.engine.job import KERNEL_KILL, CrewLost, Job, JobFailed, is_out_of_memory
from adept_ray.engine.memory import count_kernel_kills
from adept_ray.training.work import ProbeWork

GIB = 2**30
# Free memory, and what Ray's processes here and all that runs beside may take of it before one is killed.
NEEDED, ALLOWED = 8 * GIB, 5 * GIB
CGROUP = Path("/sys/fs/cgroup/memory/adept_ray-test")
PIECE = 64 * 2**20
BLOCKS = {"probe": one_document_each(np.arange(3, 67).reshape(4, 16))}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A crew of one worker, where Ray kills what would make the machine's memory too full."""
    total, used = get_system_memory(), get_used_memory()
    if total - used < NEEDED:
        pytest.skip(f"{(total - used) / GIB:.1f} GiB of memory are free, {NEEDED / GIB:.0f} are needed")
    watched = {"memory_usage_threshold": (used + ALLOWED) / total, "memory_monitor_refresh_ms": 100}
    ray.init(
        "local",
        num_cpus=3,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _system_config=watched,
    )
    try:
        with start_crews(RunSpec(name="memory"), str(tmp_path_factory.mktemp("ray"))) as board:
            yield board
    finally:
        ray.shutdown()


def greedy(tried, cgroup=None):
    """A work that takes memory until its process is killed; each time that it is begun it signs `tried`."""

    class Greedy:  # inside of a function, so that it travels with its code
        @property
        def fit(self):  # the first thing that a probe asks for
            with open(tried, "a") as file:
                print(os.getpid(), file=file)
            if cgroup:
                (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            hoard = []
            while len(hoard) * PIECE < NEEDED:
                hoard.append(np.ones(PIECE, dtype=np.int8))
                time.sleep(0.02)

    return Greedy()


def fails_alone(board, work, tried, folder):
    """What is said of a job that takes too much; the next one must go well."""
    with pytest.raises(JobFailed) as told:
        run_job(board, Job(f"greedy in {folder.name}", "probe", work, ray.put({})))
    assert not isinstance(told.value, CrewLost)
    assert len(tried.read_text().split()) == 1
    source = local_backbone(save_tiny_backbone(folder / "backbone", layers=2))
    modest = Job(f"modest in {folder.name}", "probe", ProbeWork(source, 4), ray.put(BLOCKS))
    after = run_job(board, modest)
    assert len(after["importance"]["layers"]) == 2
    assert len(tried.read_text().split()) == 1
    return str(told.value)


def test_what_rays_memory_monitor_kills_fails_alone(board, tmp_path):
    """The worker is killed when the machine's memory becomes too full."""
    tried = tmp_path / "tried"
    said = fails_alone(board, greedy(str(tried)), tried, tmp_path)
    assert is_out_of_memory(said) and KERNEL_KILL not in said


@pytest.fixture
def cgroup():
    """A group of processes that may take little memory; needs the rights of root and cgroup v1."""
    try:
        CGROUP.mkdir()
        (CGROUP / "memory.limit_in_bytes").write_text(str(GIB))
    except OSError:
        pytest.skip("no memory cgroup can be made here")
    yield CGROUP
    subprocess.run(["rmdir", str(CGROUP)], check=True)


def test_what_the_kernel_kills_fails_alone(board, tmp_path, cgroup):
    """SIGKILL like any other, but the kernel has counted it."""
    tried, before = tmp_path / "tried", count_kernel_kills()
    said = fails_alone(board, greedy(str(tried), cgroup), tried, tmp_path)
    assert count_kernel_kills() > before and KERNEL_KILL in said
