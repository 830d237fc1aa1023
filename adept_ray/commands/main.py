"""The ``adept-ray`` command: the name of a command, then its flags."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NoReturn

from adept_ray import __version__
from adept_ray.config.calls import PROGRAM
from adept_ray.config.errors import suggest_names
from adept_ray.config.model_specs import ChatRun, EvaluateRun
from adept_ray.config.plain_text import end_with_reader
from adept_ray.config.specs import (
    ActivationsRun,
    CompareRun,
    DoctorRun,
    PickRun,
    ProbeRun,
    SearchRun,
    TrainRun,
)
from adept_ray.config.validation import Spec


@dataclass(frozen=True)
class Command:
    """What one command takes, what it calls and what it is for."""

    spec: type[Spec]
    function: str
    """Its module under adept_ray.commands and the function there."""
    purpose: str


COMMANDS = {
    "tune-k": Command(
        SearchRun, "tune_k.find_k", "Find how many layers to add: probe, search, choose, export."
    ),
    "doctor": Command(
        DoctorRun,
        "doctor.examine_search",
        "Look for what stands in the way of a search, on every node, and say how long it will take.",
    ),
    "train": Command(
        TrainRun, "train.train_model", "Train at full length with what a search found, and export the model."
    ),
    "probe": Command(
        ProbeRun,
        "probe.probe_layers",
        "Stage 1 alone: how much each layer of a model matters on general text.",
    ),
    "compare": Command(
        CompareRun,
        "compare.compare_methods",
        "Compare ADEPT with its rivals at equal tokens: train, score, and say who wins.",
    ),
    "evaluate": Command(
        EvaluateRun,
        "evaluate.evaluate_model",
        "Score a model on benchmarks: accuracy on lm-eval tasks, beside what guessing gives.",
    ),
    "chat": Command(
        ChatRun,
        "chat.chat_with_both",
        "Ask the untouched backbone and the trained model the same questions, side by side.",
    ),
    "pick": Command(
        PickRun,
        "pick.pick_trial",
        "Choose anew among the trials of a finished search, by other weights; nothing is trained.",
    ),
    "activations": Command(
        ActivationsRun,
        "activations.draw_activations",
        "Draw where models keep general and domain text apart: untouched, tuned without expansion, expanded.",
    ),
}


@end_with_reader()
def main() -> NoReturn:
    """Run the command that the first word names, and exit with its status."""
    first, *flags = sys.argv[1:] or [""]
    if first in COMMANDS:
        # Usage lines, and the command that goes on with a run, begin as this one was called.
        sys.argv = [f"{PROGRAM} {first}", *flags]
        call_command(first)
    if first == "--version":
        print(f"{PROGRAM} {__version__}")
        sys.exit(0)
    if first in ("-h", "--help", ""):
        print(describe_commands(), file=sys.stdout if first else sys.stderr)
        sys.exit(0 if first else 2)
    print(f"error: unknown command '{first}': {suggest_names(first, COMMANDS)}", file=sys.stderr)
    sys.exit(2)


def call_command(name: str) -> NoReturn:
    """Run one of :data:`COMMANDS` with the flags of this process, and exit with its status."""
    from adept_ray.run.flags import run_command

    command = COMMANDS[name]
    run_command(command.spec, command.function, command.purpose)


def describe_commands() -> str:
    """The help of ``adept-ray``: every command with its purpose."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [OPTIONS]",
            "",
            "ADEPT continual pretraining with the expansion depth found by search.",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help explains a command's flags; {PROGRAM} --version prints the version.",
        ]
    )


if __name__ == "__main__":
    main()
