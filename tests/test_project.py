"""The files around the code say what is so: Makefile, workflow, citation, package."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import adept_ray

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RECIPES = re.findall(r"^(\w+):.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("target", "recipe"), RECIPES, ids=lambda part: part.split()[0])
def test_a_target_calls_programs_that_contributors_have(target, recipe):
    """Its program comes with the dev extra, and the files that it names exist."""
    dev = " ".join(PROJECT["optional-dependencies"]["dev"] + PROJECT["optional-dependencies"]["test"])
    for line in recipe.strip().splitlines():
        program, *words = line.split()
        assert re.search(rf"\b{program}>=", dev)
        assert all((ROOT / word).exists() for word in words if "/" in word)


def test_the_makefile_has_the_targets_that_the_guide_names():
    """And `make check` is what CI checks."""
    targets = dict(RECIPES)
    assert set(targets) == set(re.findall(r"`make (\w+)`", (ROOT / "CONTRIBUTING.md").read_text()))
    run = (ROOT / ".ci" / "run").read_text()
    assert all(line.strip() in run for line in targets["check"].splitlines())


def test_the_workflow_runs_what_a_merge_needs():
    """On pushes and pull requests, with the oldest Python that is supported."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML reads "on" as true
    steps = workflow["jobs"]["ci"]["steps"]
    assert any(".ci/run" in step.get("run", "") for step in steps) and (ROOT / ".ci" / "run").exists()
    python = next(step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", ""))
    assert PROJECT["requires-python"] == f">={python}"


def test_the_citation_names_this_software_and_the_paper():
    """With the keys that the format asks for, of this version, and with people to cite."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["title"], cited["version"]) == (PROJECT["name"], adept_ray.__version__)
    assert cited["license"] == PROJECT["license"]
    paper = cited["references"][0]
    assert "2510.10071" in paper["url"] and paper["title"] in " ".join(
        (ROOT / "README.md").read_text().split()
    )
    assert all(author["given-names"] and author["family-names"] for author in paper["authors"])


def test_the_package_says_that_it_is_typed():
    """By its classifier and by the file that type checkers look for."""
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (ROOT / "adept_ray" / "py.typed").read_text() == ""


def test_the_names_of_the_library_exist():
    """Whatever ``adept_ray`` lists as its own can be imported from it."""
    assert sorted(adept_ray.__all__) == adept_ray.__all__
    assert all(getattr(adept_ray, name).__name__ == name for name in adept_ray.__all__)


def test_files_are_utf_8_whatever_the_locale_is():
    """Every text that is read or written names its encoding; the kernel's own files are ASCII."""
    silent = []
    for path in sorted((ROOT / "adept_ray").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in ("read_text", "write_text"):
                continue
            text = ast.unparse(node)
            if "encoding" not in text and "proc" not in text:
                silent.append(f"{path.name}: {text}")
    assert silent == ["memory.py: (task / 'children').read_text()", "memory.py: (root / file).read_text()"]


def test_whoever_starts_a_python_process_is_slow():
    """A test that isn't marked so, as this one, is refused it; other programs may be asked."""
    assert subprocess.run(["true"]).returncode == 0
    with pytest.raises(AssertionError, match="whoever starts a process is slow"):
        subprocess.run([sys.executable, "--version"])
