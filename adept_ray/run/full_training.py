"""A training at full length: how it is called and opened, and the readings that it leaves."""

from __future__ import annotations

import shlex
from dataclasses import replace

from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec, TrainRun
from adept_ray.config.validation import validate_spec
from adept_ray.method.dial import Turned
from adept_ray.report.evidence import TRAINING
from adept_ray.run.context import Session, open_session
from adept_ray.run.resuming import resume_training
from adept_ray.run.settings import list_run_overrides, resolve_settings
from adept_ray.search.trials import Facts, read_curve, write_curves, write_dials
from adept_ray.storage.records import BestRecord
from adept_ray.storage.results import Results
from adept_ray.tracking.libraries import check_trackers


def name_command(args: TrainRun) -> str:
    """The command by which a training begins, but for the flags that all commands have."""
    track = f" --track {' '.join(args.track)}" if args.track else ""
    taken = f" --settings {args.settings}" if "settings" in args.given else ""
    return f"train --config {shlex.quote(args.config)} --tokens {args.tokens}{taken}{track}"


def open_training(args: TrainRun, best: BestRecord) -> tuple[Session[RunSpec], TrainingSpec]:
    """The session of a training with what a best.yaml holds, new or resumed, and the training's settings.

    Raises :class:`UserError` for settings that don't go together, and for a tracker that can't be used.
    """
    check_trackers(args.track)
    if args.resume:
        named = RunSpec(storage=args.storage, name=args.name, json_lines=args.json_lines)
        session = open_session(named, continues=True)
        run, training = resume_training(args, best, session.results.read_record())
        return replace(session, run=run), training
    settings = {**best["run"], **list_run_overrides(args)}
    plain = best["training"].get("dial") == "off" and "dial" not in args.given  # as the search was
    sizes = {"tokens": args.tokens, "reports": args.reports, "dial": "off" if plain else args.dial}
    run = resolve_settings(validate_spec(RunSpec, settings, args.config), "train")
    training = validate_spec(TrainingSpec, {**best["training"], **sizes}, args.config)
    return open_session(run), training


def write_readings(results: Results, last: Facts, weights: ScoreWeights) -> None:
    """Write curves.jsonl and dials.csv of a training, whose `last` report has them."""
    write_curves(results, {TRAINING: read_curve(last["curve"])})
    write_dials(results, {TRAINING: Turned.from_json(last.get("turned"))}, weights)
