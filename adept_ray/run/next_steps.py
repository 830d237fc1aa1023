"""What may come after a search, as commands with the run's own names in them."""

from __future__ import annotations

import shlex

from adept_ray.config.calls import format_command
from adept_ray.config.specs import CompareRun, RunSpec, SearchRun, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.report.rerun import CALL, format_flags

FULL_TOKENS = 1_000_000  # where a search wasn't told: a beginning; how much text there is, its owner knows


def list_next_steps(run: SearchRun, place: str, training: TrainingSpec) -> dict[str, str]:
    """What may be done with the results at a `place` → the command; `training` is the chosen one.

    Nothing can be trained longer or compared where no layer was added.
    """
    trust = " --trust-remote-code" if run.trust_remote_code else ""
    steps = {}
    if "://" not in place:
        steps["open the report"] = f"python -m webbrowser {shlex.quote(f'{place}/report.html')}"
    if training.k:
        best = shlex.quote(f"{place}/best.yaml")
        train = f"train --config {best} --tokens {run.for_tokens or FULL_TOKENS}{trust}"
        steps["train at full length"] = format_command(train)
        steps["compare with LoRA"] = format_command(f"compare {format_comparison(run, training)}")
    steps["ask both models"] = format_command(f"chat {shlex.quote(place)}{trust}")
    return steps


def format_comparison(run: SearchRun, training: TrainingSpec) -> str:
    """The flags that compare the chosen training with LoRA on the search's text, at the tokens of a trial."""
    shared = {name: run.read_field(name) for name in RunSpec.flat_fields() if name not in CALL}
    chosen = {name: getattr(training, name) for name in ("k", "recompute_every", "tokens_per_step")}
    compared = {"methods": ("adept", "lora"), "tokens": run.tokens_per_trial}
    return format_flags(apply_changes(CompareRun(), shared | chosen | compared))
