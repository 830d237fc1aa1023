"""One thread, no network and no stopwatch, fixed before torch is imported."""

import gc
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HOME=str(Path(tempfile.gettempdir()) / "adept_ray-tests"),  # what this machine has doesn't matter
)

import pytest
from forking import patch_ray, start_stem
from hub_stand_in import serve_hub
from hypothesis import settings

# How long one example takes says more about the machine than about the code.
settings.register_profile("adept_ray", deadline=None)
settings.load_profile("adept_ray")

COMMANDS = "test_end_to_end"  # start Ray in processes of their own
# Every test of these starts processes, a browser or the compiler, so all are slow.
HEAVY = {"test_device", "test_pace", "test_page", "test_ranks", "test_wheel"}
RAY = {"test_packing", "test_crew", "test_crew_memory", "test_crew_nodes", "test_node_faults"}
FORKS = {"test_device", "test_importance", "test_ranks"}  # from one process that has its imports done
# What takes longest of the others.
LONG = {"test_cluster", "test_expansion", "test_export", "test_flags", "test_memory_plan", "test_report"}
LONG |= {"test_search", "test_stage2", "test_streams"}
SERVERS = {"browser", "postgres", "s3"}  # fixtures that start one; a parameter of that name asks for it


def pytest_collection_modifyitems(items):
    """What takes longest first: else the other process has nothing left to do beside it.

    The process that only hands out tests isn't here, and needn't import torch.
    """
    import torch

    torch.set_num_threads(1)
    for item in items:
        asks = item.get_closest_marker("assets") or not SERVERS.isdisjoint(list_needs(item))
        if item.path.stem in {COMMANDS, *HEAVY, *RAY} or asks:
            item.add_marker(pytest.mark.slow)
    first = ({COMMANDS}, RAY, {"test_wheel"}, FORKS, HEAVY, LONG)
    items.sort(key=lambda item: [item.path.stem not in stems for stems in first])


def list_needs(item):
    """Names of a test's fixtures and what it is parametrized with."""
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {*item.fixturenames, *(each for each in given if isinstance(each, str))}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Whoever starts a Python process is slow: a test that isn't marked so is refused one."""
    if item.get_closest_marker("slow"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse_python)
        return (yield)


START = subprocess.Popen.__init__


def refuse_python(process, args, *more, **named):
    """Start a process that isn't Python."""
    program = args if isinstance(args, (str, os.PathLike)) else args[0]
    assert os.fspath(program) != sys.executable, "whoever starts a process is slow: mark this test so"
    START(process, args, *more, **named)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported stays, so no search for garbage looks through it, neither meanwhile nor afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file stays in one process; so do those that start Ray, one at a time, and those that fork.

    xdist's own groups name no test by its mark since pytest 9.2, where a node's id can't be changed any more.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            together = {"ray": RAY, "forks": FORKS}
            return next((name for name, stems in together.items() if Path(file).stem in stems), file)

    return ByFile(config, log)


@pytest.fixture(scope="module", autouse=True)
def stem(request):
    """Where Ray is started, its Python processes are forked from one that has their imports done."""
    if request.path.stem in {COMMANDS, *RAY}:
        start_stem()
        patch_ray()


@pytest.fixture
def small(tmp_path):
    """A disk that has room for one checkpoint of a tiny model and not for two."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def s3():
    """A client of an S3 server on this machine, which answers over HTTP as any other does."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else each request is a line of a failure's report
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield boto3.client("s3")
    server.stop()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face hub on this machine, and the one of this process."""
    with serve_hub(tmp_path / "hub", monkeypatch) as stand_in:
        yield stand_in


@pytest.fixture(params=["by its variable", "by the network", "by its own fault"])
def silence(request, hub, monkeypatch):
    """Makes the hub silent when it is called, in each of the ways in which one can be."""
    from huggingface_hub import constants

    return {
        "by its variable": lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True),
        "by the network": lambda: monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9"),
        "by its own fault": lambda: hub.fail("", status=503),
    }[request.param]


@pytest.fixture(scope="session")
def postgres():
    """Makes an empty database of a name and gives its URL; skips the test where there is no PostgreSQL.

    The server is one of its own, without a port. It refuses to run as root, so root runs it as ``postgres``.
    """
    places = os.pathsep.join([os.environ["PATH"], *glob("/usr/lib/postgresql/*/bin")])
    pg_ctl = shutil.which("pg_ctl", path=places)
    if pg_ctl is None:
        pytest.skip("no PostgreSQL here; on Debian: apt-get install postgresql")
    import psycopg

    user = {"user": "postgres"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a short one: a socket's path may have 107 bytes

        def control(*words):
            command = [pg_ctl, "-D", f"{folder}/data", "-s", "-w", "-l", f"{folder}/log", *words]
            subprocess.run(command, cwd="/", check=True, timeout=60, **user)

        if user:
            shutil.chown(folder, **user)
        control("initdb", "-o", "--auth=trust --no-sync --username=postgres")
        control("start", "-o", f"-c listen_addresses= -c fsync=off -c unix_socket_directories={folder}")

        def database(name):
            with psycopg.connect(host=folder, user="postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return f"postgresql://postgres@/{name}?host={folder}"

        yield database
        control("stop", "-m", "immediate")


@pytest.fixture(scope="module")  # as long as it runs, no other event loop can
def browser():
    """A Chromium of this machine, without a window, behind Playwright; skips the test where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium fonts-dejavu-core")
    from playwright.sync_api import sync_playwright

    quiet = ("background-networking", "component-update", "quic", "sync", "gpu")
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{each}" for each in quiet)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()
