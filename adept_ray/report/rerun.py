"""The command that does the same again."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from adept_ray.config.calls import format_command
from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.mixtures import Mixture
from adept_ray.config.places import mask_password
from adept_ray.config.search_space import SIZES
from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.config.validation import apply_changes, validate_spec
from adept_ray.data.backbones import PRESETS
from adept_ray.report.records import RunRecord

# Settings that say how a search is called, and those that say where it lies; the others say what it does.
CALL = ("name", *list_fields(SearchRun, Mark.COMMAND))
ELSEWHERE = (*CALL, *list_fields(SearchRun, Mark.PLACE), "track")


def format_rerun(record: RunRecord) -> str:
    """A command that does the same again, under another name and where the reader is.

    That of a search is made of its settings, since a resumed one was called with few of them. A second line
    picks the trial that was picked since, if one was.
    """
    if record.training is not None or not record.run:
        return record.command
    settings = {name: value for name, value in record.run.items() if name in SearchRun.flat_fields()}
    run = validate_spec(SearchRun, settings, "run.json: run")
    search = format_command(f"tune-k {format_flags(run, ELSEWHERE)}".strip(), record.command)
    if not record.pick:
        return search
    name = f"{run.name}-again"
    flags = {f"--{n.replace('_', '-')}": str(v) for n, v in record.pick.items() if v is not None}
    trust = ["--trust-remote-code"] if run.trust_remote_code else []
    words = [f"{SearchRun().storage}/{name}", *(word for pair in flags.items() for word in pair), *trust]
    pick = format_command(f"pick {shlex.join(words)}", record.command)
    return f"{search} {shlex.join(['--name', name])}\n{pick}"


def format_flags(run: RunSpec, without: Collection[str] = (*CALL, "range")) -> str:
    """The flags that start such a run again under another name, without the password of its study."""
    preset = PRESETS.get(run.backbone)
    overridden = set(preset.sizes if preset else ())  # something else sets them where no flag does
    if isinstance(run, SearchRun) and run.search_space != SearchRun().search_space:
        overridden |= set(SIZES)
    machine = run.machine.model_copy(update={"precision": "auto"})
    usual, words = apply_changes(type(run)(), {"precision": machine.dtype}), []
    for name in type(run).flat_fields():
        value = mask_password(run.read_field(name)) if name == "study" else run.read_field(name)
        if name in without or (value == usual.read_field(name) and name not in overridden):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Mixture):
            words += [f"--{flag}", *map(str, value.parts)]
        else:
            words += [f"--{flag}", *(value if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)
