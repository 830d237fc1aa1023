"""Resuming a run that was stopped: its settings, and the command that resumes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

from adept_ray.config.calls import format_command
from adept_ray.config.errors import InterruptedRun, UnfinishedRun, UserError
from adept_ray.config.fields import Mark, list_fields, name_flag
from adept_ray.config.mixtures import Mixture
from adept_ray.config.os_faults import describe_os_fault, find_fault_place
from adept_ray.config.places import mask_password
from adept_ray.config.specs import RunSpec, SearchRun, TrainingSpec, TrainRun
from adept_ray.config.validation import apply_changes, validate_spec
from adept_ray.engine.job import DiskFault
from adept_ray.run.context import Session
from adept_ray.run.last_word import leave_last_word
from adept_ray.run.record import has_ended, sum_spent
from adept_ray.run.settings import check_trust, list_run_overrides, resolve_settings
from adept_ray.storage.files import describe_full_disk, is_disk_full
from adept_ray.storage.records import BestRecord, RunRecord

Begun = TypeVar("Begun", bound=RunSpec)
OWN = list_fields(SearchRun, Mark.COMMAND, Mark.RESULTS)  # of the command that continues a run


OLDER = {"dial": "off"}  # what a run did that was begun before there was such a setting


@contextmanager
def explain_stops(session: Session[RunSpec], command: str) -> Iterator[None]:
    """Turn Ctrl-C into :class:`InterruptedRun` and a full disk into :class:`UserError`.

    These and every other :class:`UserError` name the command that resumes the run, and so does what is said
    if this process dies. Only a run that is refused before it has anything to go on with is taken back: it
    may be the input that has to be mended, and no resumed run takes another one. run.json keeps the time
    that was spent, and the command that resumes the run adds to it.
    """
    continued, name_cache = format_resume_command(command, session.run), session.run.machine.name_cache
    death = (
        "this command's process has died: it was killed, or a process of Ray's that it can't do without was"
    )
    try:
        with leave_last_word(f"error: {death}; go on with {continued}"), keep_spent_time(session):
            yield
    except KeyboardInterrupt:
        raise InterruptedRun(continued) from None
    except UnfinishedRun as problem:
        said = f"{problem}{name_cache(str(problem))}"
        raise UserError(f"{said}; what is finished is kept: go on with {continued}") from problem
    except UserError as problem:
        said = str(problem).rstrip(".") + (name_cache(str(problem)) if isinstance(problem, DiskFault) else "")
        after = "" if session.results.withdraw() else f"; then go on with {continued}"
        raise UserError(f"{said}{after}") from problem
    except Exception as problem:
        if is_disk_full(problem):
            raise UserError(f"{describe_full_disk(problem, name_cache)} go on with {continued}") from problem
        if isinstance(problem, OSError) and (sentence := describe_os_fault(problem)):
            said = f"{sentence}{name_cache(find_fault_place(problem))}"
            raise UserError(f"{said}; then go on with {continued}") from problem
        raise


@contextmanager
def keep_spent_time(session: Session[RunSpec]) -> Iterator[None]:
    """Write the time that was spent to run.json if the work inside stops half-way."""
    try:
        yield
    except BaseException:
        about = session.results.read_record()
        if about and not has_ended(about):  # what is published behind a URI isn't here any more
            with suppress(OSError):  # the disk may be full
                spent = sum_spent(about, session.display)
                session.results.write_json("run.json", about | {"spent": spent})
        raise


def format_resume_command(command: str, run: RunSpec) -> str:
    """The command line that resumes a run; `command` is as in ``tune-k`` or ``train --config FILE``."""
    trust = " --trust-remote-code" if run.trust_remote_code else ""
    elsewhere = "" if run.storage == RunSpec().storage else f" --storage {shlex.quote(run.storage)}"
    return format_command(f"{command} --name {run.name} --resume{trust}{elsewhere}")


def resume_settings(run: Begun, begun: Mapping[str, object]) -> Begun:
    """The settings that a run began with, to resume it; a flag that contradicts them is refused.

    Settings that no result depends on (see :class:`~adept_ray.config.fields.Mark`) may be given anew. The
    others stay as they were.
    """
    fields = type(run).flat_fields()
    older = {name: value for name, value in OLDER.items() if name in fields}
    saved = validate_spec(type(run), older | dict(begun), "run.json")
    check_trust(run.trust_remote_code, begun, f"the run '{run.name}'")
    changes = {name: getattr(run, name) for name in OWN if name in fields}
    for name in (n for n in fields if n in run.given and n not in OWN):
        new, old = run.read_field(name), saved.read_field(name)
        if new == old:
            continue
        if isinstance(new, Mixture) and new.unsigned == old.unsigned:  # run.json has no signatures
            changes[name] = new
            continue
        if name not in list_fields(type(run), Mark.CHANGEABLE):
            flag = name_flag(type(run), name)
            if name == "study":
                new, old = mask_password(new), mask_password(old)
            if isinstance(new, Mixture):
                new, old = new.unsigned, old.unsigned
            raise UserError(f"{flag} {new}: the run '{run.name}' began with {old}, so leave that flag out")
        changes[name] = new
    return apply_changes(saved, changes, where=f"resuming '{run.name}'")


def resume_training(args: TrainRun, best: BestRecord, begun: RunRecord) -> tuple[RunSpec, TrainingSpec]:
    """The settings that a training at full length began with, to resume it.

    `best` is the best.yaml that was given, `begun` the run.json of the training. Raises :class:`UserError`
    for a flag or a best.yaml that contradicts them, and for what is no training.
    """
    if "training" not in begun:
        raise UserError(f"'{args.name}' is no training at full length: check --name and --storage")
    given = RunSpec.model_construct(
        set(list_run_overrides(args)),
        machine=args.machine,
        trust_remote_code=args.trust_remote_code,
        storage=args.storage,
        name=args.name,
        json_lines=args.json_lines,
    )
    run = resolve_settings(resume_settings(given, begun["run"]))
    file = resolve_settings(validate_spec(RunSpec, best["run"], args.config))
    for name in (name for name in RunSpec.flat_fields() if name not in TrainRun.flat_fields()):
        new, old = file.read_field(name), run.read_field(name)
        if isinstance(new, Mixture) and new.unsigned == old.unsigned:
            run = apply_changes(run, {name: new})
        elif new != old:
            raise UserError(
                f"{args.config}: {name} is {new}, but the training to be resumed began with {old}"
            )
    begun_with = OLDER | begun["training"]
    training = validate_spec(TrainingSpec, begun_with, "run.json")
    own = {name: getattr(args if name in args.given else training, name) for name in ("reports", "dial")}
    wanted = {**best["training"], "tokens": args.tokens, **own}
    check_same_training(validate_spec(TrainingSpec, wanted, args.config), begun_with)
    return run, training


def check_same_training(training: TrainingSpec, begun: Mapping[str, object]) -> None:
    """Refuse to resume a training as another one: the schedule would break. Raises :class:`UserError`."""
    old = validate_spec(TrainingSpec, begun, "run.json").model_dump(mode="json")
    for name, value in training.model_dump(mode="json").items():
        if value != old[name]:
            raise UserError(
                f"{name} is {value}, but the training to be resumed began with {old[name]}: give that"
            )
