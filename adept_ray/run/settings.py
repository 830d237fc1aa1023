"""Definite settings: names, absolute paths, those of a best.yaml and those that are given anew."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from adept_ray.config.errors import UserError, first_line
from adept_ray.config.machine import Machine
from adept_ray.config.mixtures import Mixture, Part
from adept_ray.config.places import list_search_spaces
from adept_ray.config.specs import ActivationsRun, TrainRun
from adept_ray.config.validation import apply_changes, load_yaml
from adept_ray.data.backbones import PRESETS as BACKBONES
from adept_ray.data.benchmark_tasks import is_task_file
from adept_ray.data.corpora import CORPORA
from adept_ray.method.precision import bfloat16_pays
from adept_ray.storage.files import fetch_temporarily
from adept_ray.storage.records import BestRecord
from adept_ray.storage.results import make_run_name

if TYPE_CHECKING:
    from adept_ray.run.context import R


def resolve_settings(run: R, what: str = "") -> R:
    """`run` with a name and with absolute paths, so that what it writes can be used from anywhere."""
    changes: dict[str, object] = {} if run.name else {"name": make_run_name(run, what)}
    if not (getattr(run, "resume", False) or getattr(run, "more_trials", 0)):
        changes["precision"] = choose_precision(run.machine)  # whatever a later command of this run has
    for field, names in {"backbone": {*BACKBONES}, "search_space": {*list_search_spaces()}}.items():
        value = str(getattr(run, field, ""))
        if (place := locate_given(value, names)) != value:
            changes[field] = place
    for side, mixture in run.corpora.items():
        parts = [Part(locate_given(part.place, {*CORPORA}), part.weight) for part in mixture.parts]
        changes[side] = Mixture(tuple(parts))
    if study := getattr(run, "study", ""):
        changes["study"] = resolve_study(study)
    for field in ("general_tasks", "domain_tasks"):
        names = getattr(run, field)
        changes[field] = [str(Path(name).resolve()) if is_task_file(name) else name for name in names]
    return apply_changes(run, changes)


def locate_given(value: str, names: Collection[str]) -> str:
    """A path that exists made absolute, unless it is one of the `names`; anything else unchanged."""
    there = value and value not in names and Path(value).expanduser().exists()
    return str(Path(value).expanduser().resolve()) if there else value


def choose_precision(machine: Machine) -> str:
    """The type in which the backbone is held and computed: as asked for, else the faster one.

    GPUs have units for bfloat16. A CPU is asked by timing a product, where the workers are on this machine.
    """
    if machine.precision == "auto" and not machine.on_gpus and not os.environ.get("RAY_ADDRESS"):
        return "bfloat16" if bfloat16_pays() else "float32"
    return machine.dtype


def resolve_study(study: str) -> str:
    """A ``--study`` whose file, if it is one, is named by an absolute path."""
    before, scheme, file = study.rpartition("sqlite:///")
    if "://" in study and not (scheme and not before and file != ":memory:"):
        return study
    return f"{scheme}{Path(file).expanduser().absolute()}"


def check_trust(trusted: bool, begun: Mapping[str, object], what: str) -> None:
    """Refuse to trust more or less code than a run of those settings did: no file can ask for trust.

    Raises :class:`UserError`.
    """
    if trusted != begun.get("trust_remote_code", False):
        how, remedy = (
            ("without", "leave it out") if trusted else ("with", "give it again if that code may run")
        )
        raise UserError(f"{what} was made {how} --trust-remote-code: {remedy}")


def load_best(place: str | Path) -> BestRecord:
    """Read a best.yaml, behind a path or URI. Raises :class:`UserError` for one that can't be used."""
    if "://" in str(place):
        parent, _, name = str(place).rpartition("/")
        try:
            with fetch_temporarily(parent, [name]) as folder:
                best = load_yaml(folder / name)
        except OSError as problem:
            raise UserError(f"{place}: can't be read: {first_line(problem)}") from problem
    else:
        best = load_yaml(Path(place))
    for part in ("run", "training", "layers", "score", "k_max"):
        if part not in best:
            raise UserError(f"{place}: no '{part}' in it; give the best.yaml that a search wrote")
    return cast("BestRecord", best)


def list_known_fingerprints(best: BestRecord) -> dict[str, str]:
    """The fingerprints that a best.yaml holds, by what they are of."""
    return {"backbone": best["backbone"]} if "backbone" in best else {}


def list_run_overrides(args: TrainRun | ActivationsRun) -> dict[str, object]:
    """The run's fields that somebody gave to a command which takes a best.yaml."""
    own = ("trust_remote_code", "storage", "name", "json_lines")
    return args.list_overrides() | {name: getattr(args, name) for name in own}
