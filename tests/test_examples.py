"""The examples run, and what they show is true."""

import runpy
import sys
from pathlib import Path

import pytest
from common import save_tiny_backbone, write_corpus
from made_up import best, trials, write_folder, write_whole_folder

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run_example(name, words, monkeypatch):
    """Run an example as a script; returns what it has defined."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_layers_by_hand_learns_and_leaves_the_backbone_alone(tmp_path, monkeypatch, capsys):
    """The loss falls on held-out text, no frozen weight moves, and logits survive expansion and export."""
    monkeypatch.setenv("ADEPT_RAY_CACHE", str(tmp_path / "cache"))
    words = ["--backbone", save_tiny_backbone(tmp_path / "backbone"), "--output", tmp_path / "model"]
    words += ["--text", write_corpus(tmp_path / "domain.jsonl", 600, domain="medical")]
    words += ["--general", write_corpus(tmp_path / "general.jsonl")]
    made = run_example("layers_by_hand.py", words, monkeypatch)
    assert made["same"] and made["unchanged"] and made["reloaded"]
    assert len(made["losses"]) == made["STEPS"] and made["losses"][-1] < made["losses"][0]
    assert made["after"]["domain"] < made["before"]["domain"]
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert "the backbone is unchanged: True" in capsys.readouterr().out


@pytest.mark.parametrize("write", [write_folder, write_whole_folder])
def test_read_results_reads_what_a_search_leaves(write, tmp_path, monkeypatch, capsys):
    """The table has the best finished trial of each k, and the choice and its gain are those of best.yaml."""
    made = run_example("read_results.py", [write(tmp_path / "found")], monkeypatch)
    finished = {row["k"]: row["trial"] for row in trials() if row["state"] == "finished"}
    assert {k: trial for k, trial in made["table"]["trial"].items() if k} == finished
    assert made["gains"]["delta"]["domain"] == best()["test"]["domain"]["delta"]
    printed = capsys.readouterr().out
    assert f"chosen: k = {best()['choice']['k']}" in printed
    assert ("trial-004" in printed) == (write is write_whole_folder)  # its curve, though it was stopped


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_begins_with_its_command_and_has_cells(path):
    """As scripts do, and so that an editor or a notebook can run it piece by piece."""
    text = path.read_text()
    assert f"python examples/{path.name}" in text.split('"""')[1] and text.count("\n# %% ") >= 4
