"""A module imports only from floors below it: the method doesn't know the engine."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each module may import only those before it.
FLOORS = (
    "config grammar ranks loss anatomy sharding importance race expansion reception placement rates lora "
    "tuning plan activations",
    "storage assets documents backbones corpus benchmarks scoring checkpoint",
    "launch metrics",
    "probe train pace crew",
    "methods display prepare choice spaces trials study search growth compare",
    "evidence figures page comparison_report card report cli runs commands studies",
)
ORDER = " ".join(FLOORS).split()
METHOD = FLOORS[0].split()
HOMES = {  # what may be imported only there; of two entries the longer one holds
    "ray.tune": {"search", "study"},
    "optuna": {"study"},
    "ray.data": {"corpus", "launch"},
    "ray.train.torch": {"crew"},
    "ray": set(ORDER) - set(METHOD) | {"scripts"},
}
FILES = [p for p in sorted((ROOT / "adept_ray").glob("*.py")) if p.stem != "__init__"]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def imported(source: str) -> set[str]:
    """Dotted names of everything a file imports, inside functions too, and `ray.x` read as an attribute."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["adept_ray" if node.level else "", node.module]))
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ray":
            names.add(f"ray.{node.attr}")
    return names


def own_modules(names: set[str]) -> set[str]:
    """The modules of this package among imported names."""
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == "adept_ray" and len(part) > 1} & set(ORDER)


def test_every_module_has_a_floor():
    """A new module must be given its place in the order."""
    assert {path.stem for path in FILES} <= set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_go_down(path):
    """A module imports only modules that come before it in the order."""
    allowed = set(ORDER[: ORDER.index(path.stem)])
    assert own_modules(imported(path.read_text(encoding="utf-8"))) <= allowed


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda path: path.stem)
def test_ray_stays_in_its_rooms(path):
    """The method never imports ray; ray.tune, optuna, ray.data and the trainer each have their homes."""
    place = "scripts" if path in SCRIPTS else path.stem
    for name in imported(path.read_text(encoding="utf-8")):
        libraries = [library for library in HOMES if f"{name}.".startswith(f"{library}.")]
        if libraries:
            assert place in HOMES[max(libraries, key=len)], f"{path.name} imports {name}"


def test_the_reader_of_imports_sees_every_form():
    """No way of writing an import escapes the tests above."""
    source = """
import adept_ray.engine.cluster, optuna
from adept_ray.search.tune import best
from adept_ray.training import stage2 as train
from . import probe
from .report import write
import ray
def f():
    from ray import tune
    ray.data.read_text("x")
"""
    names = imported(source)
    assert own_modules(names) == {"launch", "search", "train", "probe", "report"}
    assert {"optuna", "ray", "ray.tune", "ray.data"} <= names
