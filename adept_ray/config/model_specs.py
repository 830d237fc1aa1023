"""Specifications of the commands that take a model as it is and train nothing."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from adept_ray.config.choices import Tasks
from adept_ray.config.fields import Mark, setting
from adept_ray.config.places import Place, default_cache
from adept_ray.config.validation import Spec


class EvaluateRun(Spec):
    """What ``evaluate.py`` takes: a model and the benchmarks to score it on."""

    model: str = setting(..., positional=True)
    """Results folder's model, any folder, hub id, preset or GGUF file."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a backbone or its tokenizer; never without this flag."""
    tasks: Tasks = ()
    """lm-eval tasks, groups or .yaml definitions; none means all of ours that need no hub."""
    items: int = Field(100, ge=1)
    """Items of each task or group, drawn from the half that no search chooses by."""
    seed: int = Field(0, ge=0)
    """Seed of that drawing."""
    micro_batch: int = Field(8, ge=1)
    """Sequences per forward pass."""
    cache: Path = Field(default_factory=default_cache)
    """Folder for assets, token blocks and probes, shared by all runs."""
    output: Path | None = None
    """File to write the table to as JSON, too."""
    json_lines: bool = setting(False, Mark.COMMAND, Mark.REPORT, flag="json")
    """Print every event as a line of JSON, for machines, and nothing else."""


class ChatRun(Spec):
    """What ``chat.py`` takes: the results whose model answers beside its backbone, and how both answer."""

    results: Place = setting(..., positional=True)
    """Results folder of a search or a training, or its URI."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a backbone or its tokenizer; never without this flag."""
    prompt: str = ""
    """Ask this and end; without it every line that is typed, or comes from a pipe, is asked."""
    max_new_tokens: int = Field(128, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token each time; more draws tokens, the higher the more freely."""
    seed: int = Field(0, ge=0)
    """Seed of that drawing, the same for both models."""
    cache: Path = Field(default_factory=default_cache)
    """Folder for assets, token blocks and probes, shared by all runs."""
    json_lines: bool = setting(False, Mark.COMMAND, Mark.REPORT, flag="json")
    """Print every event as a line of JSON, for machines, and nothing else."""
