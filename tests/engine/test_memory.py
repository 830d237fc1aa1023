"""The memory of all that was started is counted, and what the kernel killed for want of it."""

import subprocess
import sys

import pytest

from adept_ray.engine import memory


@pytest.mark.slow
def test_memory_counts_the_processes_that_were_started():
    """A child that fills 200 MiB raises the peak by about that much."""
    memory.Memory._peak = 0
    memory.Memory.sample()
    before = memory.Memory.read_peak()
    code = "x = bytearray(b'1') * (200 * 2**20); print('full', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"full\n"
    memory.Memory.sample()
    child.communicate(b"\n")
    assert memory.Memory.read_peak() - before == pytest.approx(0.2, abs=0.03)


EVENTS = "low 0\nhigh 3\nmax 12\noom 2\noom_kill 2\noom_group_kill 0\n"
VMSTAT = "nr_free_pages 2946763\noom_kill 5\npswpin 0\n"


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"sys/fs/cgroup/memory.events": EVENTS, "proc/vmstat": VMSTAT}, 2),  # a container's own count
        ({"proc/vmstat": VMSTAT}, 5),
        ({"sys/fs/cgroup/memory.events": "low 0\n", "proc/vmstat": VMSTAT}, 5),  # an old kernel
        ({"proc/vmstat": "nr_free_pages 1\n"}, 0),
        ({}, 0),
    ],
)
def test_the_kernel_says_what_it_killed_for_memory(tmp_path, files, kills):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert memory.count_kernel_kills(tmp_path) == kills
