"""The plan of the house: a folder imports only folders above it, no circle inside one, nothing too large."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "adept_ray"
# Each folder may import only those before it.
FOLDERS = (
    "config",
    "method",
    "storage",
    "data",
    "training",
    "engine",
    "search",
    "rivals",
    "report",
    "tracking",
    "run",
    "commands",
)
MOST_LINES, MOST_FUNCTION_LINES, MOST_ARGUMENTS, MOST_IMPORTS, MOST_ANY = 400, 60, 6, 15, 150
HOMES = {  # what may be imported only there; of two entries the longer one holds
    "ray.tune": {"search"},
    "optuna": {"search"},
    "ray.data": {"data", "engine"},
    "ray.train": {"engine"},
    "ray": {"storage", "data", "engine", "search", "rivals", "run", "commands"},
    **{library: {"tracking"} for library in ("wandb", "mlflow", "tensorboard", "trackio")},
    "torch": {"method", "data", "training", "engine", "rivals", "run", "commands"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name_of(path: Path) -> str:
    """``method.rates`` for adept_ray/method/rates.py; a package goes by its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in FILES}


class Code(NamedTuple):
    """What the tests below ask of a file."""

    imports: frozenset[str]
    """Dotted names of everything it imports, inside functions too, and `ray.x` read as an attribute."""
    functions: tuple[tuple[str, int, int], ...]
    """Name, lines and arguments of each."""
    names: Counter[str]


def read_code(source: str) -> Code:
    """Look at every node of a file once."""
    names: set[str] = set()
    functions, used = [], Counter[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            used[node.id] += 1
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ray":
            names.add(f"ray.{node.attr}")
        elif isinstance(node, FUNCTIONS):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([each for each in given if each.arg not in ("self", "cls")])
            functions.append((node.name, node.end_lineno - node.lineno, count))
    return Code(frozenset(names), tuple(functions), used)


@cache
def code_of(module: str) -> Code:
    """A file is read when a test first asks for it, and once."""
    return read_code(MODULES[module].read_text(encoding="utf-8"))


def imports_of(module: str) -> set[str]:
    """The modules of this package that one of them imports."""
    return own_modules(code_of(module).imports)


def own_modules(names: Iterable[str]) -> set[str]:
    """The modules of this package among imported names."""
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "adept_ray":
            known = (".".join(parts[1:end]) for end in range(len(parts), 0, -1))
            found.add(next((each for each in known if each in MODULES), ""))
    return found - {""}


def folder_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_folder_has_its_place():
    """A new folder must be given its place in the order; the package itself holds no code of its own."""
    assert {folder_of(module) for module in MODULES} - {""} == set(FOLDERS)
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("module", sorted(filter(None, MODULES)))
def test_imports_go_up(module):
    """A module imports only its own folder and folders that come before it."""
    allowed = set(FOLDERS[: FOLDERS.index(folder_of(module)) + 1])
    assert {folder_of(name) for name in imports_of(module)} <= allowed


def test_no_folder_has_a_circle():
    """The modules of each folder can be read one after the other."""
    for folder in FOLDERS:
        own = {
            m: {i for i in imports_of(m) if folder_of(i) == folder} for m in MODULES if folder_of(m) == folder
        }
        assert list(TopologicalSorter(own).static_order())  # raises CycleError


@pytest.mark.parametrize("module", sorted(filter(None, MODULES)))
def test_libraries_stay_in_their_rooms(module):
    """The method never imports ray, a page never imports torch; Tune, Optuna and Ray Train have homes."""
    for name in code_of(module).imports:
        libraries = [library for library in HOMES if f"{name}.".startswith(f"{library}.")]
        if libraries:
            assert folder_of(module) in HOMES[max(libraries, key=len)], f"{module} imports {name}"


@pytest.mark.slow
def test_pages_need_no_torch_and_no_ray_and_a_chat_no_ray():
    """Importing what writes the report loads neither, nor what they load in turn."""
    pages = "from adept_ray.report import comparison_page, model_card, search_page"
    chat = "from adept_ray.commands import chat"
    neither = "import sys; loaded = {'torch', 'ray'} & set(sys.modules); assert not loaded, loaded"
    steps = [pages, neither, chat, "assert 'ray' not in sys.modules"]
    done = subprocess.run([sys.executable, "-c", "; ".join(steps)], cwd=ROOT)
    assert done.returncode == 0


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_too_large(path):
    """A file, a function, its arguments, a module's imports: each as much as a person can keep in mind."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    for name, lines, arguments in code_of(name_of(path)).functions:
        assert lines < MOST_FUNCTION_LINES, name
        assert arguments <= MOST_ARGUMENTS, f"{name} takes {arguments} arguments"
    assert len(imports_of(name_of(path))) <= MOST_IMPORTS


def test_any_is_for_what_really_may_be_anything():
    """`Any` is written no more often than this in all of the package."""
    assert sum(code_of(module).names["Any"] for module in MODULES) <= MOST_ANY


def test_the_reader_of_imports_sees_every_form():
    """No way of writing an import escapes the tests above."""
    source = """
import adept_ray.engine.cluster, optuna
from adept_ray.search.tune import run_search
from adept_ray.training import stage2
from adept_ray import report
import ray
def f():
    from ray import tune
    ray.data.read_text("x")
"""
    names = read_code(source).imports
    assert own_modules(names) == {"engine.cluster", "search.tune", "training.stage2", "report"}
    assert {"optuna", "ray", "ray.tune", "ray.data"} <= names
