"""From the command line to a command: flags from a spec's fields, errors as one sentence."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypedDict, cast

import tyro

from adept_ray.config.errors import InterruptedRun, UserError
from adept_ray.config.fields import name_flag, read_extra
from adept_ray.config.machine import FollowingSpec, Machine, MachineSpec
from adept_ray.config.mixtures import Mixture
from adept_ray.config.os_faults import describe_os_fault, find_fault_place
from adept_ray.config.plain_text import allow_any_terminal, end_with_reader
from adept_ray.config.search_space import load_search_space
from adept_ray.config.validation import WRITTEN, S, Spec, validate_spec
from adept_ray.data.backbones import PRESETS
from adept_ray.storage.files import describe_full_disk, is_disk_full

INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C


@end_with_reader()
def run_command(spec: type[Spec], command: str, description: str | None) -> NoReturn:
    """Parse the flags of `spec`, call `command` (``tune_k.find_k``, …) and exit with its status.

    Bad input is one sentence on stderr and status 2, and so is a full disk.
    """
    allow_any_terminal()
    given: Spec | None = None
    try:
        given = parse_flags(spec, description)
        module, _, function = command.partition(".")
        getattr(importlib.import_module(f"adept_ray.commands.{module}"), function)(given)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except InterruptedRun as stopped:
        print(f"interrupted; to go on from here: {stopped}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        print("interrupted before anything was worth keeping", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as problem:
        if is_disk_full(problem):
            full = describe_full_disk(problem, partial(name_cache, given))
            print(f"error: {full} give the command again", file=sys.stderr)
        elif isinstance(problem, OSError) and (sentence := describe_os_fault(problem)):
            print(f"error: {sentence}{name_cache(given, find_fault_place(problem))}", file=sys.stderr)
        else:
            raise
        sys.exit(2)
    sys.exit(0)


def name_cache(given: Spec | None, place: str) -> str:
    """What is added to a sentence about a place that is in the cache of a command, or is that."""
    return given.machine.name_cache(place) if isinstance(given, MachineSpec) else ""


def parse_flags(spec: type[S], description: str | None, args: list[str] | None = None) -> S:
    """A `spec` from command-line flags (default: those of this process).

    A backbone's preset brings its own defaults of other flags, and so does a search space. Raises
    :class:`UserError` for a value that `spec` refuses.
    """
    args = join_repeated(spec, sys.argv[1:] if args is None else args)
    purpose = (description or "").partition("\n\n")[0]  # tyro would run the examples below it together
    sized = "backbone" in spec.model_fields
    words = [word for word in args if word not in ("-h", "--help")] if sized else args
    usual = vars(tyro.cli(make_flag_class(spec, {}), description=purpose, args=words))
    # What was given counts as given; sizes that a preset or a search space brought don't.
    given = {*tyro.cli(TypedDict("Given", list_arguments(spec), total=False), args=words)}  # type: ignore
    sizes = find_sizes(usual, given) if sized else {}
    if words != args:  # the help names the sizes
        tyro.cli(make_flag_class(spec, sizes), description=purpose, args=args)
    values = {name: value if name in given else sizes.get(name, value) for name, value in usual.items()}
    given -= {name for name in given if stays_as_searched(spec, name) and values[name] is None}
    known = {n: v for n, v in values.items() if n in {*given, *sizes}}
    checked = validate_spec(spec, known, where="", name_key=lambda path: name_flag(spec, str(path[0])))
    return cast("S", spec.model_construct(given, **dict(checked)))


def find_sizes(values: Mapping[str, object], given: Collection[str]) -> Mapping[str, object]:
    """Defaults of flags that the backbone's preset brings, and the search space, if there is one."""
    if values.get("resume") or values.get("more_trials"):
        return {}  # what is resumed has the sizes that it began with
    preset = PRESETS.get(str(values["backbone"]))
    sizes = preset.sizes if preset else {}
    if "search_space" not in values:
        return sizes
    space = values if "search_space" in given else {**values, **sizes}
    return {**sizes, **load_search_space(cast("Path", space["search_space"])).run}


def join_repeated(spec: type[Spec], words: Sequence[str]) -> list[str]:
    """The words of a command line, the flags of corpora that come again with what follows their first one."""
    flags = {f"--{name}" for name, field in spec.flat_fields().items() if field.annotation is Mixture}
    joined: list[str] = []
    first: dict[str, list[str]] = {}  # flag → the values of all its uses
    values = joined
    for word in words:
        name, sign, value = word.partition("=")
        if name in flags:
            if name not in first:
                joined.append(name)
            values = first.setdefault(name, [])
            values += [value] if sign else []
        elif word.startswith("--"):
            values = joined
            joined.append(word)
        else:
            values.append(word)
    return [each for word in joined for each in (word, *first.get(word, ()))]


def make_flag_class(spec: type[Spec], defaults: Mapping[str, object]) -> type:
    """A plain dataclass with the fields of `spec`, some with other `defaults`.

    It checks nothing, so that a value that `spec` refuses is reported in our one sentence.
    """
    fields = []
    for name, kind in list_arguments(spec).items():
        field, default = spec.flat_fields()[name], dataclasses.field()
        if not field.is_required():
            usual = None if stays_as_searched(spec, name) else field.get_default(call_default_factory=True)
            usual = tuple(map(str, usual.parts)) if isinstance(usual, Mixture) else usual
            default = dataclasses.field(default=defaults.get(name, usual))
        fields.append((name, kind, default))
    return dataclasses.make_dataclass(spec.__name__, fields)


def list_arguments(spec: type[Spec]) -> dict[str, Any]:
    """Field of `spec` → its type as tyro takes it, with its help."""
    arguments = {}
    for name, field in spec.flat_fields().items():
        kind, text = field.annotation, field.description or ""
        if kind is Mixture:
            kind = tuple[str, ...]
        if WRITTEN in field.metadata:
            kind = str
        if stays_as_searched(spec, name):
            what = text.partition(";")[0].rstrip(".")
            kind, text = kind | None, f"{what}; default: as the search had."  # type: ignore
        names = {"name": read_extra(field, "flag"), "aliases": read_extra(field, "aliases")}
        marks = [tyro.conf.arg(help=text, **names)]
        if read_extra(field, "positional"):
            marks.append(tyro.conf.Positional)
        arguments[name] = Annotated[(kind, *marks)]  # type: ignore[name-defined, valid-type]
    return arguments


def stays_as_searched(spec: type[Spec], name: str) -> bool:
    """Whether a field of `spec` stays as the search had it unless it is given."""
    return issubclass(spec, FollowingSpec) and name in Machine.model_fields
