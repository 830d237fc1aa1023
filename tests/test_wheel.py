"""What users install holds all that the commands need, and works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "adept_ray"
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
SOURCES = ("adept_ray", "search_spaces", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
OFFLINE = ("--quiet", "--no-index", "--no-deps")  # setuptools is here, since the test extra asks for it


def run(*command, **options):
    """Run a process to its end; returns what it printed. Fails unless it exits with 0."""
    command = [*map(str, command)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=570, **options
    )  # before the test's
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that is built from the source archive of this checkout; nothing is written into that."""
    room = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, room / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, room / "source" / name)
    name = run(sys.executable, "-c", BUILD, room, cwd=room / "source").split()[-1]
    pip = [sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation"]
    run(*pip, "--wheel-dir", room, room / name, cwd=room)
    return next(room.glob("*.whl"))


def test_every_folder_of_the_package_is_named():
    """pyproject.toml lists them, since one of them lies elsewhere; a new one has to be added."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(named) == folders | {"adept_ray.search_spaces"} and len(named) == len(set(named))


def test_the_wheel_holds_every_file_of_the_package(wheel):
    """Code, benchmark tasks, the Grafana dashboard, search spaces and the mark of types; nothing else."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    spaces = {f"adept_ray/search_spaces/{path.name}" for path in (ROOT / "search_spaces").glob("*.yaml")}
    assert held == {str(path.relative_to(ROOT)) for path in files} | spaces
    assert {"adept_ray/py.typed", "adept_ray/engine/monitoring/grafana.json"} <= held


@pytest.mark.assets
@pytest.mark.timeout(600)
def test_an_installed_wheel_searches_with_what_is_there_by_default(wheel, tmp_path):
    """In an empty folder, without a backbone or a corpus given: the real ones learn medicine.

    ``adept-ray tune-k`` takes a search space by its name, comes to its end, and names no script.
    """
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    run(sys.executable, "-m", "pip", "install", *OFFLINE, "--target", installed, wheel, cwd=tmp_path)
    empty.mkdir()
    env = os.environ | {"PYTHONPATH": str(installed)}
    where = run(sys.executable, "-P", "-c", "import adept_ray; print(adept_ray.__file__)", cwd=empty, env=env)
    assert Path(where.strip()).is_relative_to(installed)
    flags = {"search-space": "quick", "trials": 1, "reports": 1, "name": "found", "remeasure-tokens": 128}
    flags |= {"probe-tokens": 128, "validation-tokens": 256, "test-tokens": 256, "tokens-per-trial": 1024}
    words = [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    run(installed / "bin" / "adept-ray", "tune-k", *words, "--no-dashboard", cwd=empty, env=env)
    results = empty / "results" / "found"
    best = yaml.safe_load((results / "best.yaml").read_text())
    assert best["choice"]["k"] == 4 and best["test"]["domain"]["delta"] > 3
    page = (results / "report.html").read_text()
    assert "adept-ray tune-k --" in page and "--search-space quick" in page
    assert "scripts/" not in page and "scripts/" not in (results / "run.json").read_text()
