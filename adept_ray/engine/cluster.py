"""Ray: the cluster that a run works on, and what fits on it."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from adept_ray.config.errors import UserError, first_line
from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.config.validation import apply_changes
from adept_ray.engine.failures import explain_no_start
from adept_ray.engine.layout import (
    CPUS_PER_WORKER,
    SPARE_CPUS,
    Layout,
    Load,
    asks_for_layout,
    choose_layout,
    count_room,
    explain_idle_workers,
)
from adept_ray.engine.node_gpus import LIKE, measure_gpu_memory
from adept_ray.engine.own_ray import bring_token, check_ray_folder
from adept_ray.engine.ports import JOIN, check_head_port, check_listener
from adept_ray.engine.ray_internals import (
    check_token,
    find_head,
    has_autoscaler,
    list_free_resources,
    read_largest_size,
)
from adept_ray.engine.waiting import Say, wait_for_room, wait_for_task
from adept_ray.method.compiling import describe_compiler_fault, find_compiler_fault
from adept_ray.method.gpus import find_gpu_fault

R = TypeVar("R", bound=RunSpec)
OBJECT_STORE_BYTES = 512 * 2**20  # blocks of a run are a few MiB; Ray's default takes 30 % of the memory
UNKNOWN = 2**60  # bytes of a machine that doesn't say how many it has
# Keeps Ray's chatter out of a run that goes well; what the user has set stays.
QUIET_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables: ours is shown instead
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's own CSV, JSON and TensorBoard files
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning about actors without GPUs
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",  # imports on a busy machine take longer than Ray's minute
}
# Nobody takes away the only node of a cluster on this machine, so no process has to watch for that.
LOCAL_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


@contextmanager
def connect_cluster(run: RunSpec, say: Say = print) -> Iterator[str]:
    """Connect to the cluster in ``RAY_ADDRESS``, else start one on this machine; yields the dashboard's URL.

    A local cluster gets logical CPUs for the workers and for what Ray needs on top, so that two real CPUs are
    enough. On the way out this process leaves the cluster, which ends a local one. `say` hears what is waited
    for. Raises :class:`UserError` when the workers don't fit.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    check_workers(run)
    address = os.environ.get("RAY_ADDRESS")
    about = ray.job_config.JobConfig(metadata={"job_name": run.name})
    join = functools.partial(ray.init, namespace="adept_ray", job_config=about)
    if address is None:
        bring_token()
        with explain_no_start(), set_variables(LOCAL_ENVIRONMENT):  # for Ray's processes, which inherit it
            context = join(
                "local",
                num_cpus=count_local_cpus(run),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=run.machine.dashboard,
            )
    else:
        with explain_no_entry(address):
            context = join()
    try:
        ensure_room(run, say)
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        ray.shutdown()


@contextmanager
def explain_no_entry(address: str) -> Iterator[None]:
    """Turn what comes of a cluster that isn't there, or wants a token, into :class:`UserError`."""
    import ray

    try:
        yield
    except ray.exceptions.AuthenticationError as problem:
        raise UserError(explain_missing_token(address, problem)) from None
    except (ConnectionError, OSError) as problem:
        why = first_line(getattr(problem, "strerror", None) or problem)
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address} ({why}): {JOIN}") from None


@contextmanager
def set_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Have these environment variables set within this, where the user hasn't set them."""
    new = values.keys() - os.environ.keys()
    os.environ.update({name: values[name] for name in new})
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def count_local_cpus(run: RunSpec) -> int:
    """Logical CPUs of a cluster that is started here for `run`; what is auto may take all that there are."""
    workers = count_cpus() if asks_for_layout(run) else run.machine.most_workers * run.crews
    return max(count_cpus(), workers * CPUS_PER_WORKER + SPARE_CPUS)


def explain_dashboard_token() -> str:
    """What a person must do to see the dashboard of the cluster that this process is connected to."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":  # Ray sets it when it turns that on by itself
        return ""
    return " (it asks for a token: paste what `ray get-auth-token` prints)"


def explain_missing_token(address: str, problem: Exception) -> str:
    """A sentence on what a person must do so that the cluster lets the command in."""
    what = first_line(problem).removeprefix("RPC error: ").partition(". ")[0].rstrip(".")
    return (
        f"the Ray cluster at RAY_ADDRESS={address} turns this command away ({what}): run `export "
        "RAY_AUTH_MODE=token` here, and give the token of its head in ~/.ray/auth_token or RAY_AUTH_TOKEN"
    )


def check_address(address: str) -> None:
    """Try what answers at `address`: Ray itself would try for half a minute, or for minutes.

    Raises OSError where nothing listens, :class:`UserError` where that is no Ray, and Ray's
    AuthenticationError where the cluster wants a token.
    """
    head = find_head(address)
    host, _, port = head.rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        check_listener(address, host, int(port))
        if "://" not in head:
            check_token(head, found=address == "auto")


def check_workers(run: RunSpec) -> None:
    """Refuse more workers than this machine has CPUs or GPUs, before Ray is even started.

    With ``RAY_ADDRESS`` set only the cluster knows (see :func:`check_cluster`); here it has to answer, and to
    let the command in. Raises :class:`UserError`.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        with explain_no_entry(address):
            check_address(address)
        return
    check_ray_folder()
    check_head_port()
    cpus = count_cpus()
    if run.machine.most_workers * run.crews > cpus:
        asked = f"--workers {run.machine.workers}{format_concurrent(run)}"
        raise UserError(f"{asked}: this machine has {cpus} CPUs, so at most {cpus} workers")
    if run.machine.gpus_per_worker:
        import torch

        if fault := find_gpu_fault():
            zero = "or give --gpus-per-worker 0 to train on CPUs"
            raise UserError(f"--gpus-per-worker {run.machine.gpus_per_worker:g}: {fault}, {zero}")
        check_cluster(run, {"CPU": math.inf, "GPU": torch.cuda.device_count()})


def list_free_nodes() -> list[Mapping[str, float]]:
    """What is free on each node of the cluster that this process is connected to.

    Where others hold all of it this is what the nodes have: a run waits for its turn.
    """
    available, whole = list_free_resources(), list_whole_nodes()
    free = [available.get(name, {}) for name in whole]
    busy = sum(node.get("CPU", 0) for node in free) <= SPARE_CPUS
    return list(whole.values()) if busy else free


def list_whole_nodes() -> dict[str, Mapping[str, float]]:
    """Id of each node that is alive → what it has, by Ray's names."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def resolve_layout(run: R, load: Load, say: Say = print, warn: Say = print) -> R:
    """`run` with ``auto`` made numbers: workers of a trial and trials at once, by what the cluster has free.

    `say` hears what was chosen, `warn` of workers that have nothing to do. Needs a running Ray. Raises
    :class:`UserError` for GPUs that can't be used.
    """
    asked = asks_for_layout(run)
    if not asked and run.machine.most_workers <= load.blocks:
        return run
    room = count_room(list_free_nodes(), run.machine.gpus_per_worker)
    measure_memory = ask_memory(run, say)
    if asked:
        layout = choose_layout(run, room, load, measure_memory)
        crews = {"concurrent": layout.crews} if isinstance(run, SearchRun) else {}
        run = apply_changes(run, {"workers": layout.workers, **crews})
        say(describe_layout(layout, run))
    if why := explain_idle_workers(run, room, load, measure_memory):
        warn(why)
    return run


def ask_memory(run: RunSpec, say: Say) -> Callable[[Layout], int]:
    """Something that says how many bytes a worker of a layout may use; a GPU has as many in each."""
    if run.machine.gpus_per_worker:
        memory = measure_worker_memory(run, say)
        return lambda layout: memory
    return lambda layout: min(share_memory(layout.workers * layout.crews))[0]


def describe_layout(layout: Layout, run: RunSpec) -> str:
    """What was chosen, as a line of the output."""
    at_once = f", trials at once: {layout.crews}" if isinstance(run, SearchRun) else ""
    return f"workers: {layout.workers}{at_once}, by what the cluster has room for"


def count_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cluster(run: RunSpec, have: Mapping[str, float]) -> None:
    """Refuse what the cluster can never schedule: without this the run would wait for ever."""
    machine, fewest = run.machine, name_fewest(run)
    workers = machine.fewest_workers * run.crews
    gpus = workers * machine.gpus_per_worker
    if gpus > have.get("GPU", 0):
        raise UserError(
            f"{fewest} with --gpus-per-worker {machine.gpus_per_worker:g} needs {gpus:g} GPUs and the "
            f"cluster has {have.get('GPU', 0):g} (--gpus-per-worker 0 trains on CPUs)"
        )
    needed = workers * CPUS_PER_WORKER + SPARE_CPUS
    if needed > have.get("CPU", 0):
        raise UserError(
            f"{fewest} needs {needed} logical CPUs ({SPARE_CPUS} of them for Ray itself) and the cluster has "
            f"{have.get('CPU', 0):g}: fewer workers need fewer"
        )


def check_nodes(run: RunSpec, nodes: Iterable[Mapping[str, float]]) -> None:
    """Refuse workers for which the `nodes` have enough in all, but not each on one of them.

    Raises :class:`UserError`.
    """
    machine, wanted = run.machine, run.machine.fewest_workers * run.crews
    if (room := sum(count_room(nodes, machine.gpus_per_worker))) < wanted:
        gpus = f"{machine.gpus_per_worker:g} GPUs and " if machine.on_gpus else ""
        raise UserError(
            f"{name_fewest(run)} needs {wanted} workers, each with {gpus}a logical CPU of one node, and the "
            f"nodes of the cluster have room for {room}: ask for fewer, or add nodes"
        )


def ensure_room(run: RunSpec, say: Say) -> None:
    """Refuse what the cluster can't hold now, nor when it has grown; let it grow to what the workers need.

    Raises :class:`UserError`. A cluster whose nodes Ray starts as they are needed may have none at first.
    """
    import ray

    have = ray.cluster_resources()
    try:
        check_cluster(run, have)
        check_nodes(run, list_whole_nodes().values())
    except UserError as refusal:
        # What it may have at most is known from clusters whose service says so; others know it when asked.
        most = read_largest_size()
        if most:
            check_cluster(run, {name: max(have.get(name, 0), most.get(name, 0)) for name in {*have, *most}})
        if not os.environ.get("RAY_ADDRESS") or not (most or has_autoscaler()):
            raise
        workers = [list_worker_resources(run)] * run.machine.fewest_workers * run.crews
        wait_for_room([*workers, *[{"CPU": 1.0}] * SPARE_CPUS], str(refusal), say)


def list_worker_resources(run: RunSpec) -> dict[str, float]:
    """What Ray sets aside for a worker, by its names."""
    gpus = run.machine.gpus_per_worker
    return {"CPU": CPUS_PER_WORKER, "GPU": gpus} if gpus else {"CPU": CPUS_PER_WORKER}


def name_fewest(run: RunSpec) -> str:
    """The flags that say how many workers there must be at least, as an error names them."""
    machine = run.machine
    fewest = f"--min-workers {machine.min_workers}" if machine.min_workers else f"--workers {machine.workers}"
    return fewest + format_concurrent(run)


def format_concurrent(run: RunSpec) -> str:
    """The flag of several trials at once, as an error names it; empty for one."""
    return f" with --concurrent {run.crews}" if run.crews > 1 else ""


def measure_worker_memory(run: RunSpec, say: Say = print) -> int:
    """Bytes that one worker may use: of its GPU, or its share of a machine's memory. Needs a running Ray.

    Raises :class:`UserError` for nodes whose GPUs can't be used; `say` hears what is waited for.
    """
    if run.machine.gpus_per_worker:
        share = min(1.0, run.machine.gpus_per_worker)
        return int(measure_gpu_memory(run.machine.gpus_per_worker, say) * share)
    shares = share_memory(run.machine.most_workers * run.crews)
    smallest, node = min(shares)
    if smallest < LIKE * max(shares)[0]:
        say(
            f"a worker is planned for the smallest share of a node's memory, {smallest / 2**30:.1f} GiB, on "
            f"the node {node}: with fewer CPUs for Ray there (`ray start --num-cpus`) fewer workers share it"
        )
    return smallest


def share_memory(workers: int) -> list[tuple[int, str]]:
    """Bytes of a node's memory for each worker, if as many as it has room for are there, and its address.

    Needs a running Ray.
    """
    import ray

    shares = []
    for node in ray.nodes():
        resources = node["Resources"]
        most = min(workers, int(resources.get("CPU", 0)) // CPUS_PER_WORKER)
        if most and "memory" in resources:
            shares.append((int(resources["memory"] // most), node["NodeManagerAddress"]))
    return shares or [(UNKNOWN, "")]


def check_compiler(run: RunSpec, say: Say = print) -> None:
    """Try torch.compile where a worker of a run with ``--compile on`` runs. Needs a running Ray.

    Without this the first training would fail, after token blocks and stage 1. `say` hears what is waited
    for. Raises :class:`UserError`.
    """
    if run.machine.compile != "on":
        return
    import ray

    ask = ray.remote(num_cpus=CPUS_PER_WORKER, num_gpus=run.machine.gpus_per_worker)(find_compiler_fault)
    device, where = ("cuda", "a GPU") if run.machine.gpus_per_worker else ("cpu", "a CPU")
    if why := wait_for_task(ask.remote(device), f"{where} on which to try torch.compile", say):
        raise UserError(f"--compile on: {describe_compiler_fault(why)}")


def read_thread_request() -> int:
    """Torch threads that ``OMP_NUM_THREADS`` of this process asks each worker to take; 0 for none.

    Call it where the command runs: in workers Ray sets the variable.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else 0


def share_threads(mates: int, logical: float) -> int:
    """Torch threads of one of `mates` workers on this machine: busy threads beyond the CPUs only spin.

    `logical` are the CPUs that Ray counts here. Where they are fewer than there are, others have the rest.
    """
    mates = max(1, min(mates, int(logical) // CPUS_PER_WORKER))
    return max(1, int(min(count_cpus(), logical)) // mates)


def count_logical_cpus() -> float:
    """CPUs that Ray counts on this process's node."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return next(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["NodeID"] == here)


def count_worker_nodes() -> int:
    """Nodes on which a worker may be."""
    return sum(node.get("CPU", 0) >= CPUS_PER_WORKER for node in list_whole_nodes().values())
