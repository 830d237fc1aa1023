"""Every command, snippet, link and map on the pages is true."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from common import random_ids, tiny_model, tiny_tokenizer

from adept_ray.commands.main import COMMANDS as CONSOLE
from adept_ray.run.flags import parse_flags

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *DOCS]
# A command ends where its line, its `code` or what a comment says of it does.
COMMAND = re.compile(r"python scripts/(\w+\.py)([^\n`#]*)|(?:^|(?<=[\s`]))adept-ray ([a-z][a-z-]*)([^\n`#]*)")
MODULE = re.compile(r"\b(?:import|from) (adept_ray(?:\.\w+)*)")
FOLDERS = re.compile(r"^( *)(\w+)/ ", re.MULTILINE)
MADE_HERE = {"build", "results"}  # folders that no checkout has
# What there is to choose from → the page that names all of it.
CHOICES = {
    "adept_ray.config.specs.Placement": "docs/comparing.md",
    "adept_ray.rivals.methods.METHODS": "docs/comparing.md",
    "adept_ray.method.families.FAMILIES": "docs/families.md",
    "adept_ray.data.backbones.PRESETS": "docs/searching.md",
    "adept_ray.data.corpora.CORPORA": "docs/searching.md",
}


def commands_in(text: str) -> set[tuple[str, str]]:
    """Name and flags of every command in a text; the script ``tune_k.py`` is ``adept-ray tune-k``."""
    found = COMMAND.findall(text.replace("\\\n", " "))
    return {(name or script[:-3].replace("_", "-"), flags or more) for script, flags, name, more in found}


def snippets_in(page: Path) -> list[str]:
    """The Python on a page, in its order."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """What a link to a heading of the page may end in."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


PROGRAMS = sorted(path for folder in ("scripts", "examples") for path in (ROOT / folder).glob("*.py"))
TEXTS = [page.read_text() for page in [*PAGES, *PROGRAMS]]
COMMANDS = sorted(set().union(*map(commands_in, TEXTS)))
LINKS = [
    (page, target)
    for page in PAGES
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    if "://" not in target
]


@pytest.mark.parametrize(("name", "flags"), COMMANDS)
def test_a_documented_command_parses(name, flags):
    """The console command knows it, there is a script of that name, and its flags are understood."""
    assert (ROOT / "scripts" / f"{name.replace('-', '_')}.py").exists()
    assert parse_flags(CONSOLE[name].spec, "", shlex.split(flags))


def test_both_spellings_of_a_command_are_found():
    """A command is read to the end of its line, its code or its words, whichever way it is spelled."""
    text = "`adept-ray tune-k --name a` and\npython scripts/tune_k.py --trials 2  # few"
    text += "\nadept-ray probe \\\n --seed 1"
    found = {(name, *shlex.split(flags)) for name, flags in commands_in(text)}
    assert found == {("tune-k", "--name", "a"), ("tune-k", "--trials", "2"), ("probe", "--seed", "1")}
    assert not commands_in("metadata: {name: adept-ray}")


@pytest.mark.parametrize("name", ["README.md", "docs/library.md"])
def test_python_on_a_page_runs(name, tmp_path, monkeypatch):
    """The snippets of a page work one after the other on a model as it stands."""
    monkeypatch.chdir(tmp_path)
    names = {"model": tiny_model(), "batches": [{"input_ids": random_ids()}], "tokenizer": tiny_tokenizer()}
    for snippet in snippets_in(ROOT / name):
        exec(snippet, names)
    if name == "docs/library.md":
        assert (tmp_path / "expanded" / "model.safetensors").exists()
        trained = {name for name, p in names["model"].named_parameters() if p.requires_grad}
        assert len(names["added"]) == 4 and set(names["rates"]) == set(names["first_rates"]) == trained


def test_the_modules_that_pages_import_exist():
    """Whatever Python or shell on a page imports of this package is there."""
    named = set().union(*(MODULE.findall(page.read_text()) for page in PAGES))
    assert named and all(importlib.util.find_spec(name) for name in named)


@pytest.mark.parametrize(("page", "target"), LINKS, ids=lambda part: getattr(part, "name", part))
def test_a_link_leads_somewhere(page, target):
    """The file or picture of a relative link exists, and so does the heading that it names."""
    path, _, anchor = target.partition("#")
    place = (page.parent / path).resolve() if path else page
    assert place.exists() and place.is_relative_to(ROOT)
    assert not anchor or anchor in anchors_of(place)


def test_the_readme_links_every_page():
    """Nothing under docs/ has to be found by chance."""
    linked = {(ROOT / target.partition("#")[0]).resolve() for page, target in LINKS if page == README}
    assert linked >= {path.resolve() for path in (*DOCS, ROOT / "CONTRIBUTING.md")}


def test_the_readme_is_short():
    """It has 1,500 words at most, as `wc -w` counts them."""
    assert len(README.read_text().split()) <= 1500


def test_the_map_of_the_code_is_whole():
    """Every package of adept_ray and every folder of a checkout is in the README's map, and nothing else."""
    drawn = README.read_text().partition("## Map of the code")[2].split("```")[1]
    named = FOLDERS.findall(drawn)
    packages = {path.parent.name for path in (ROOT / "adept_ray").glob("*/__init__.py")}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and re.fullmatch(r"[a-z]\w*", path.name)}
    assert {name for indent, name in named if indent} == packages
    assert {name for indent, name in named if not indent} == folders - MADE_HERE
    assert len(named) == len(set(named))


def test_the_guide_for_contributors_names_files_that_exist():
    """Whoever follows it finds what is to be edited and the tests that must pass."""
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"(?<![\w./])((?:adept_ray|scripts|tests|docs)/[\w./]*)", guide)
    assert paths and not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_page_names_all_there_is(choice):
    """No method, placement, family, backbone or corpus is left out where a page lists them."""
    module, _, name = choice.rpartition(".")
    known = getattr(importlib.import_module(module), name)
    named = set(re.findall(r"`([^`\s]+)`", (ROOT / CHOICES[choice]).read_text()))
    assert set(known if isinstance(known, dict) else get_args(known)) <= named


def test_a_page_names_every_search_space():
    """docs/searching.md has a row for each file that ships."""
    page = (ROOT / "docs" / "searching.md").read_text()
    named = set(re.findall(r"^\| `([\w.-]+\.yaml)` \|", page, re.MULTILINE))
    assert named == {path.name for path in (ROOT / "search_spaces").glob("*.yaml")}


def test_both_setup_commands_are_there():
    """One line runs the main job, one passes the tests, each with its own installation."""
    lines = re.findall(r"^pip install -c constraints\.txt .*", README.read_text(), re.MULTILINE)
    assert [line.rpartition("&& ")[2] for line in lines] == ["python scripts/tune_k.py", "pytest"]
