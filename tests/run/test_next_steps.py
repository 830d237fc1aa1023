"""After a search a person is told what may come next, in commands that work as they stand."""

import shlex

import pytest

from adept_ray.commands.main import COMMANDS
from adept_ray.config.specs import SearchRun, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.run.flags import parse_flags
from adept_ray.run.next_steps import list_next_steps

RUN = SearchRun(name="mine", domain=["my notes.jsonl"], seq_len=64, tokens_per_trial=4096, trials=3)
TRAINING = TrainingSpec(k=3, recompute_every=8)


def parse(step):
    """The settings that a command gives."""
    _, script, *words = shlex.split(step)
    return parse_flags(
        COMMANDS[script.removeprefix("scripts/").removesuffix(".py").replace("_", "-")].spec, "", words
    )


def test_every_command_parses_and_names_the_run(monkeypatch):
    """The comparison is of what the search chose, on its text, at the tokens of a trial."""
    monkeypatch.setattr("sys.argv", ["scripts/tune_k.py"])
    steps = list_next_steps(RUN, "results/mine", TRAINING)
    assert list(steps) == ["open the report", "train at full length", "compare with LoRA", "ask both models"]
    assert steps["open the report"] == "python -m webbrowser results/mine/report.html"
    assert parse(steps["train at full length"]).config == "results/mine/best.yaml"
    assert parse(steps["ask both models"]).results == "results/mine"
    compared = parse(steps["compare with LoRA"])
    assert (compared.methods, compared.k, compared.recompute_every) == (("adept", "lora"), 3, 8)
    assert (compared.domain, compared.seq_len, compared.tokens) == (RUN.domain, 64, 4096)
    assert "results/mine" not in steps["compare with LoRA"]  # it has results of its own


@pytest.mark.parametrize("k", [0, 2])
def test_only_what_can_be_done_is_named(k):
    """No report is opened behind a URI, and nothing is trained where no layer was added."""
    steps = list_next_steps(RUN, "s3://bucket/mine", TrainingSpec(k=k))
    assert list(steps) == ["train at full length", "compare with LoRA"] * bool(k) + ["ask both models"]


def test_code_that_may_run_may_run_next():
    steps = list_next_steps(SearchRun(trust_remote_code=True), "results/mine", TRAINING)
    assert all("--trust-remote-code" in step for what, step in steps.items() if what != "open the report")


@pytest.mark.parametrize(("told", "tokens"), [("", 10**6), ("50M", 50_000_000)])
def test_full_length_is_what_the_search_was_for(told, tokens):
    """Where it wasn't told, a beginning."""
    steps = list_next_steps(apply_changes(RUN, {"for_tokens": told}), "results/mine", TRAINING)
    assert parse(steps["train at full length"]).tokens == tokens
