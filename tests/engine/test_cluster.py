"""What fits on a cluster is known before a run."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import ray
import torch
from ray._private.authentication import authentication_token_setup as tokens
from ray._private.state import state
from ray.autoscaler.v2 import utils as autoscaler
from torch._inductor.utils import fresh_cache

from adept_ray.config import errors
from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.engine import cluster as launch
from adept_ray.engine import ray_internals
from adept_ray.engine.layout import Load


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


def test_workers_of_all_trials_at_once_are_counted(monkeypatch):
    """What doesn't fit is refused with both flags; no more crews are counted than there are trials."""
    run = SearchRun(workers=2, concurrent=3)
    with pytest.raises(UserError, match=r"--workers 2 with --concurrent 3 needs 8 logical CPUs .* has 7"):
        launch.check_cluster(run, {"CPU": 7})
    launch.check_cluster(run, {"CPU": 8})
    launch.check_cluster(SearchRun(concurrent=9, trials=2), {"CPU": 4})
    with pytest.raises(UserError, match=r"--workers 2 with --concurrent 3 with --gpus-per-worker 1 needs 6"):
        launch.check_cluster(SearchRun(workers=2, concurrent=3, gpus_per_worker=1), {"CPU": 99, "GPU": 5})
    monkeypatch.setattr(launch, "count_cpus", lambda: 4)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"--workers 2 with --concurrent 3: this machine has 4 CPUs"):
        launch.check_workers(run)


@pytest.fixture
def growth(monkeypatch):
    """A cluster that has two CPUs, and what it says of nodes that it may start; Ray isn't asked."""
    growth = SimpleNamespace(most=None, asks=True, wanted=None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "n", "Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: growth.most)
    monkeypatch.setattr(autoscaler, "is_autoscaler_v2", lambda fetch_from_server: growth.asks)

    def wait(bundles, refusal, say):
        growth.wanted, growth.refusal = bundles, refusal

    monkeypatch.setattr(launch, "wait_for_room", wait)
    return growth


def test_a_cluster_that_grows_is_asked_for_what_the_workers_need(growth):
    """One that starts at no GPU isn't refused by what it has now, where it may have more."""
    run = RunSpec(workers=2, gpus_per_worker=1)
    for growth.most, growth.asks in ((None, True), ({"GPU": 8, "CPU": 64}, False)):
        growth.wanted = None
        launch.ensure_room(run, print)
        assert growth.wanted == 2 * [{"CPU": 1, "GPU": 1}] + 2 * [{"CPU": 1}]
        assert growth.refusal.startswith("--workers 2 with --gpus-per-worker 1 needs 2 GPUs")
    launch.ensure_room(RunSpec(workers=8, min_workers=3, gpus_per_worker=1), print)
    assert len(growth.wanted) == 3 + 2  # the fewest that may begin


@pytest.mark.parametrize(
    ("most", "asks", "address"),
    [({"GPU": 1, "CPU": 64}, True, "head:6379"), (None, False, "head:6379"), (None, True, None)],
)
def test_what_a_cluster_can_never_have_is_refused_at_once(most, asks, address, growth, monkeypatch):
    """By its largest size, where that is known; by what there is where nothing can be started."""
    growth.most, growth.asks = most, asks
    if not address:
        monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError, match=r"needs 2 GPUs and the cluster has [01] "):
        launch.ensure_room(RunSpec(workers=2, gpus_per_worker=1), print)
    assert growth.wanted is None


def test_gpus_that_torch_cant_use_are_one_sentence(monkeypatch):
    """Before Ray starts, on this machine: else they are "0 GPUs", or a traceback of a worker."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(launch, "find_gpu_fault", lambda: "torch is built for CPUs alone")
    with pytest.raises(UserError, match=r"^--gpus-per-worker 1: torch is built for CPUs alone, or give .* 0"):
        launch.check_workers(RunSpec(gpus_per_worker=1))
    launch.check_workers(RunSpec())


def test_fewer_workers_are_enough_where_that_is_allowed():
    """With --min-workers a cluster that holds so many is taken, and the flag is named where it doesn't."""
    run = RunSpec(workers=8, min_workers=2)
    launch.check_cluster(run, {"CPU": 4})
    with pytest.raises(UserError, match=r"--min-workers 2 needs 4 logical CPUs .* has 3"):
        launch.check_cluster(run, {"CPU": 3})


def make_nodes(monkeypatch, nodes, free):
    """A cluster of such nodes (CPUs, GPUs, GiB), of which so much is free; Ray isn't asked."""
    whole = [dict(zip(("CPU", "GPU", "memory"), (*n[:2], n[2] * 2**30), strict=True)) for n in nodes]
    about = [
        {"NodeID": f"n{i}", "Alive": True, "Resources": each, "NodeManagerAddress": f"10.0.0.{i}"}
        for i, each in enumerate(whole)
    ]
    available = {f"n{i}": dict(zip(("CPU", "GPU"), each, strict=True)) for i, each in enumerate(free)}
    monkeypatch.setattr(ray, "nodes", lambda: about)
    monkeypatch.setattr(state, "available_resources_per_node", lambda: available)


@pytest.mark.parametrize(
    ("free", "layout"),
    [
        ([(34, 0), (32, 0)], (4, 8)),
        ([(4, 0), (0, 0)], (2, 1)),  # others have the rest
        ([(1, 0), (1, 0)], (4, 8)),  # others have all: it waits for its turn
    ],
)
def test_what_is_auto_becomes_a_number_by_what_is_free(monkeypatch, free, layout):
    """Those numbers are said; settings that are numbers stay, and nobody is asked for them."""
    make_nodes(monkeypatch, [(34, 0, 64), (32, 0, 64)], free)
    said, load = [], Load(4, 8)
    run = launch.resolve_layout(SearchRun(workers="auto", concurrent="auto"), load, said.append)
    assert (run.machine.workers, run.concurrent) == layout
    assert said == [f"workers: {layout[0]}, trials at once: {layout[1]}, by what the cluster has room for"]
    monkeypatch.setattr(ray, "nodes", None)
    for plain in (SearchRun(workers=4, concurrent=3), RunSpec()):
        assert launch.resolve_layout(plain, load, said.append) is plain
    assert len(said) == 1


def test_workers_without_work_are_warned_of(monkeypatch):
    """With what would use them, before any of them is started."""
    make_nodes(monkeypatch, [(10, 0, 64)], [(10, 0)])
    warned = []
    run = SearchRun(workers=8)
    assert launch.resolve_layout(run, Load(4, 8), print, warned.append) is run
    assert "so 4 of 8 workers have nothing" in warned[0] and "--workers 4 --concurrent 2" in warned[0]


def test_memory_is_that_of_the_smallest_share(monkeypatch):
    """On nodes of uneven size; which node it is, and how to do without it, is said."""
    heard = []
    make_nodes(monkeypatch, [(4, 0, 8), (64, 0, 512)], [])
    assert launch.measure_worker_memory(RunSpec(workers=8), heard.append) == 2 * 2**30
    assert "2.0 GiB, on the node 10.0.0.0: with fewer CPUs for Ray there" in heard[0]
    make_nodes(monkeypatch, [(0, 0, 8), (64, 0, 512)], [])
    assert launch.measure_worker_memory(RunSpec(workers=8), heard.append) == 64 * 2**30
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("nodes", "settings", "room"),
    [
        ([(64, 3), (64, 3)], {"workers": 3, "gpus_per_worker": 2}, 2),
        ([(2, 8), (64, 0)], {"workers": 4, "gpus_per_worker": 1}, 2),
    ],
)
def test_workers_that_no_single_node_has_room_for_are_refused(nodes, settings, room):
    """There is enough in all, and Ray would wait for ever."""
    named = [dict(zip(("CPU", "GPU"), node, strict=True)) for node in nodes]
    run = RunSpec(**settings)
    launch.check_cluster(run, {name: sum(node[name] for node in named) for name in ("CPU", "GPU")})
    with pytest.raises(UserError, match=rf"^--workers .* GPUs and a logical CPU of one node.* for {room}: "):
        launch.check_nodes(run, named)
    launch.check_nodes(RunSpec(**settings | {"workers": room}), named)


def test_no_cluster_at_the_address_is_one_sentence(monkeypatch):
    """RAY_ADDRESS that nobody answers ends in a sentence that names it, before anything is fetched, too."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    refused = r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:1 \(Connection refused\): give the address"
    with pytest.raises(UserError, match=refused), launch.connect_cluster(RunSpec(name="x")):
        pass
    with pytest.raises(UserError, match=refused):
        launch.check_workers(RunSpec(name="x"))


@pytest.mark.parametrize(
    "fault", [ConnectionError("no port\nis free"), Exception("no port"), OSError(28, "full")]
)
def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch, fault):
    """Whatever it raises, but for a full disk, which is explained with the command that goes on."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(ray, "init", fail)
    full = isinstance(fault, OSError) and fault.errno == errno.ENOSPC
    words = "full" if full else r"^Ray can't be started on this machine \(no port\): end what else"
    with (
        pytest.raises(OSError if full else UserError, match=words),
        launch.connect_cluster(RunSpec(name="x")),
    ):
        pass


JOIN = """
from adept_ray.config.specs import RunSpec
from adept_ray.engine.cluster import connect_cluster

try:
    with connect_cluster(RunSpec(name="x")):
        print("joined")
except Exception as problem:
    print(type(problem).__name__, problem)
"""


@pytest.fixture(scope="module")
def guarded():
    """Calls a command that joins a cluster which asks for a token, in a home without one; gives its words."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home, socket.socket() as free:  # sockets have short names
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        plain |= {"HOME": home, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_ADDRESS": f"127.0.0.1:{port}"}
        start = (
            f"ray.scripts.scripts start --head --block --num-cpus=3 --include-dashboard=false --port={port}"
        )
        head = subprocess.Popen(
            [sys.executable, "-m", *start.split(), f"--temp-dir={home}"],
            env={**plain, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

        def join(**changes):
            command = [sys.executable, "-c", JOIN]
            done = subprocess.run(command, env=plain | changes, capture_output=True, text=True)
            return done.stdout + done.stderr

        try:
            while "no Ray cluster answers" in (said := join()):
                assert head.poll() is None
            yield lambda **changes: join(**changes) if changes else said
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({}, "token is missing or incorrect"),
        ({"RAY_AUTH_MODE": "token"}, "no authentication token was found"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 32}, "token is missing or incorrect"),
    ],
)
def test_a_cluster_that_turns_the_command_away_is_one_sentence(settings, what, guarded):
    """Whether there is no token, another one, or none is asked for: what to give, and where, and no more."""
    said = guarded(**settings)
    assert said.startswith("UserError the Ray cluster at RAY_ADDRESS=127.0.0.1:") and said.count("\n") == 1
    assert what in said and "export RAY_AUTH_MODE=token" in said and "~/.ray/auth_token" in said


def test_a_head_that_is_slow_is_left_to_ray(monkeypatch):
    """Only a missing token is told before Ray tries; where it found the head itself, it looks for a token."""
    asked = []
    monkeypatch.setattr(tokens, "maybe_enable_token_auth_if_token_available", lambda **_: asked.append(1))
    monkeypatch.setattr(tokens, "ensure_token_if_auth_enabled", lambda **_: None)
    for problem in (ray.exceptions.RpcError("timed out"), ray.exceptions.AuthenticationError("no token")):

        def fail(address, problem=problem):
            raise problem

        monkeypatch.setattr(ray._raylet, "GcsClient", fail)
        turned_away = isinstance(problem, ray.exceptions.AuthenticationError)
        with pytest.raises(ray.exceptions.AuthenticationError) if turned_away else nullcontext():
            ray_internals.check_token("head:6379", found=turned_away)
    assert len(asked) == 1


@pytest.mark.slow
def test_a_missing_compiler_is_one_sentence(monkeypatch):
    """Before anything is made: what torch says, and what to install or to leave out."""
    asked = []

    def remote(**options):
        asked.append(options)
        return lambda function: SimpleNamespace(remote=function)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(launch, "wait_for_task", lambda task, what, say: task)
    run = RunSpec(compile="on")
    torch.compiler.reset()  # what an earlier test of this process compiled needs no compiler
    with (
        fresh_cache(),
        torch._inductor.config.patch({"cpp.cxx": (None, "no-compiler")}),
        pytest.raises(UserError, match=r"\(InvalidCxxCompiler: No working C\+\+ .*g\+\+.*--compile off$"),
    ):
        launch.check_compiler(run)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    launch.check_compiler(run)
    launch.check_compiler(RunSpec())
    assert asked == 2 * [{"num_cpus": 1, "num_gpus": 0}]


def test_the_cause_of_an_error_comes_before_torchs_advice(monkeypatch):
    """The last line of a failed compilation says how to look for the cause and not what it is."""

    def broken(*_):
        raise RuntimeError("there is no such machine")

    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as problem:
        torch.compile(torch.sin, backend=broken)(torch.ones(2))
    text = "".join(traceback.format_exception(problem.value))
    assert "TORCHDYNAMO_VERBOSE" in text.strip().splitlines()[-1]
    assert errors.find_cause(text).endswith("there is no such machine")
    assert errors.find_cause("\n") == "an error without a message"


def test_threads_never_exceed_the_cpus(monkeypatch):
    """Busy threads beyond the CPUs spin: each worker gets its share, and at least one."""
    monkeypatch.setattr(launch, "count_cpus", lambda: 6)
    assert [launch.share_threads(n, n + 2) for n in (4, 6)] == [1, 1]
    assert [launch.share_threads(n, 6) for n in (1, 2, 3)] == [6, 3, 2]
    assert launch.share_threads(1, 2) == 2  # Ray was told to leave the rest to others
    assert launch.share_threads(8, 2) == 1  # no more of them than two can be here


@pytest.mark.parametrize(("given", "asked"), [(None, 0), ("", 0), ("3", 3), ("all", 0)])
def test_threads_are_those_that_were_asked_for(monkeypatch, given, asked):
    """By the variable that other programs take, too."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert launch.read_thread_request() == asked


def test_native_code_writes_elsewhere_for_a_while(capfd, tmp_path):
    """What it writes past Python is in a file within that, and on the terminal again afterwards."""
    with (tmp_path / "log").open("w") as log, ray_internals.redirect_native_code(log):
        os.write(2, b"noise")
    os.write(2, b"a word")
    assert capfd.readouterr().err == "a word" and (tmp_path / "log").read_text() == "noise"


def test_a_trainer_of_other_insides_is_left_as_it_is():
    """To start without a process that nobody uses is worth no failed run."""
    trainer = SimpleNamespace()
    assert ray_internals.leave_out_datasets(trainer) is trainer and not vars(trainer)
