"""One thread, no network and no stopwatch, fixed before torch is imported."""

import os
import shutil
import subprocess
import tempfile
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
import torch
from hypothesis import settings

torch.set_num_threads(1)
# How long one example takes says more about the machine than about the code.
settings.register_profile("adept_ray", deadline=None)
settings.load_profile("adept_ray")

RAY = {"test_cluster", "test_corpus", "test_crew", "test_end_to_end", "test_memory", "test_monitoring"}


def pytest_collection_modifyitems(items):
    """What takes longest first: else the other process has nothing left to do beside it."""
    items.sort(key=lambda item: item.path.stem not in RAY)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """What starts Ray stays in one process, one test after the other; else a file does.

    xdist's own groups name no test by its mark since pytest 9.2, where a node's id can't be changed any more.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "ray" if Path(file).stem in RAY else file

    return ByFile(config, log)


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
