"""Every command and every snippet of the README does what it says."""

import re
import shlex
from pathlib import Path

import pytest
from common import random_ids, tiny_model, tiny_tokenizer

from adept_ray.config.specs import (
    ActivationsRun,
    CompareRun,
    EvaluateRun,
    PickRun,
    ProbeRun,
    SearchRun,
    TrainRun,
)
from adept_ray.run.flags import parse_flags

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SPECS = {
    "tune_k.py": SearchRun,
    "pick.py": PickRun,
    "probe.py": ProbeRun,
    "train.py": TrainRun,
    "compare.py": CompareRun,
    "evaluate.py": EvaluateRun,
    "activations.py": ActivationsRun,
}
PATHS = [*sorted((ROOT / "scripts").glob("*.py")), *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [README, *(path.read_text() for path in PATHS)]
COMMANDS = sorted(
    {line for text in DOCUMENTS for line in re.findall(r"python (scripts/\w+\.py[^\n`#]*)", text)}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_parses(command):
    """The script exists and its flags are understood."""
    script, *flags = shlex.split(command)
    assert (ROOT / script).exists()
    assert parse_flags(SPECS[Path(script).name], "", flags)


def test_the_library_snippet_runs(tmp_path, monkeypatch):
    """The README's library example works on a model as it stands."""
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    names = {"model": tiny_model(), "batches": [{"input_ids": random_ids()}], "tokenizer": tiny_tokenizer()}
    exec(snippet, names)
    assert (tmp_path / "expanded" / "model.safetensors").exists()
    assert len(names["added"]) == 4 and set(names["rates"]) == set(
        name for name, p in names["model"].named_parameters() if p.requires_grad
    )


def test_the_map_of_the_code_is_whole():
    """Every module stands in the README's map, and nothing that isn't there."""
    named = set(re.findall(r"`(\w+)\.py`", README.partition("## Map of the code")[2]))
    assert named == {path.stem for path in (ROOT / "adept_ray").glob("*.py")} - {"__init__"}


def test_both_setup_commands_are_there():
    """One line runs the main work, one passes the tests, each with its own installation."""
    lines = [line for line in README.splitlines() if line.startswith("pip install -c constraints.txt")]
    assert [line.rpartition("&& ")[2] for line in lines] == ["python scripts/tune_k.py", "pytest"]
