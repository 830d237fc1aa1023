"""activations.py: where three models keep both kinds of text apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adept_ray.config.errors import UserError
from adept_ray.config.specs import (
    ActivationsRun,
    RunSpec,
    ScoreWeights,
    TrainingSpec,
)
from adept_ray.config.validation import validate_spec
from adept_ray.engine.crew import Job, run_job
from adept_ray.method.expansion import RECORD
from adept_ray.method.fit import PLAIN
from adept_ray.report.figures import save_figure, separation_figure
from adept_ray.rivals.comparison import (
    format_csv,
)
from adept_ray.run.context import Context, open_context, open_session
from adept_ray.run.preparing import Needs, Prepared, describe_probe, load_test_blocks, prepare, store_blocks
from adept_ray.run.record import record_run
from adept_ray.run.settings import (
    check_trust,
    known_fingerprints,
    load_best,
    overrides_from,
    resolve_settings,
)
from adept_ray.run.sources import find_sources
from adept_ray.run.terminal import Update
from adept_ray.run.training import build_work, plan_fit, test_and_export
from adept_ray.storage.files import fetch_temporarily
from adept_ray.storage.results import Results
from adept_ray.training.work import TrainWork

Models = dict[str, list[dict[str, Any]]]
FEWEST = 8  # blocks of a kind of text that a density is drawn of
SHOWN = 4  # layers whose densities are drawn


def draw_activations(args: ActivationsRun) -> str:
    """Measure and draw how far apart three models keep both kinds of text; returns the results' place.

    The models: the untouched backbone, its chosen layers tuned as they are (trained here, with the settings
    of the search but for the rate), and the expanded one that the search exported.
    Raises :class:`UserError` for bad input.
    """
    if "://" in args.config:
        what = f"--config {args.config}: activations are drawn beside a model"
        raise UserError(f"{what}: copy that folder here")
    best = load_best(args.config)
    run, training = resolve_tuning(args, best)
    expanded = find_expanded(args.config, best)
    session = open_session(run)
    results, display = session.results, session.display
    sources = find_sources(session, made_from=known_fingerprints(best))
    record_run(session, sources)
    with open_context(session) as context:
        fit = plan_fit(context, sources, training, best["layers"])
        if fit.sharded:
            raise UserError("activations are taken of whole models, and this one has to be shared out")
        needs = Needs(best["k_max"], training.tokens, replay=training.replay > 0, fit=fit)
        prepared = prepare(context, sources, needs)
        check_blocks(run, prepared)
        tune_originals(context, prepared, build_work(run, prepared, training, best["layers"], ScoreWeights()))
        with display.stage("activations", "activations of three models") as update:
            models = measure_separations(context, prepared, expanded, update)
    write_activations(results, models, best["layers"])
    record_run(session, sources, prepared, training)
    display.overlaps(models, best["layers"])
    place = results.publish()
    display.say(f"activations.png, activations.csv and activations.json are in {place}")
    return place


def resolve_tuning(args: ActivationsRun, best: Mapping[str, Any]) -> tuple[RunSpec, TrainingSpec]:
    """The settings of the run and of the training without expansion. Raises :class:`UserError`."""
    check_trust(args.trust_remote_code, best["run"], args.config)
    changes = {**overrides_from(args), "general_tasks": (), "domain_tasks": (), "min_workers": 0}
    if args.test_tokens:
        changes["test_tokens"] = args.test_tokens
    run = resolve_settings(validate_spec(RunSpec, {**best["run"], **changes}, args.config), "activations")
    tuned = best["training"] | {"tunes": "originals", "base_lr": args.originals_lr, "reports": 1}
    return run, validate_spec(TrainingSpec, tuned, args.config)


def find_expanded(config: str, best: Mapping[str, Any]) -> Path:
    """The expanded model beside a best.yaml. Raises :class:`UserError` where there is none."""
    expanded = Path(config).parent / "model"
    if not best["layers"] or not (expanded / RECORD).exists():
        raise UserError(f"{config}: there is no expanded model beside it, in {expanded}")
    return expanded


def check_blocks(run: RunSpec, prepared: Prepared) -> None:
    """Refuse test splits of too few blocks for a density. Raises :class:`UserError`."""
    fewest, needed = (
        min(map(len, load_test_blocks(run, prepared.sets).values())),
        max(FEWEST, run.machine.workers),
    )
    if fewest < needed:
        raise UserError(
            f"--test-tokens {run.test_tokens}: {fewest} blocks of a side are too few for densities, "
            f"at least {needed} of {run.seq_len} tokens are needed"
        )


def tune_originals(context: Context[RunSpec], prepared: Prepared, work: TrainWork) -> None:
    """Tune the chosen layers themselves, and export the model to the results."""
    job = Job("without", "train", work, store_blocks(prepared.blocks), context.results.ray)
    with context.show_jobs("train", f"tuning without expansion, {work.steps} steps", "without"):
        last = run_job(context.board, job)
    test_and_export(context, prepared, work, last["saved"])


def measure_separations(
    context: Context[RunSpec], prepared: Prepared, expanded: Path, update: Update
) -> Models:
    """Name of a model → a row a layer (see :func:`adept_ray.report.figures.separation_figure`)."""
    run, backbone = context.run, prepared.sources.backbone
    added = json.loads((expanded / RECORD).read_text())["added_layers"]
    blocks = store_blocks(load_test_blocks(run, prepared.sets))
    probe = describe_probe(run, prepared.sources, PLAIN, importance=False, separation=True)
    found = {}
    with fetch_temporarily(f"{context.results.place}/model") as without:
        folders = {
            "untouched": (backbone.source, backbone.revision),
            "without expansion": (str(without), None),
            "expanded": (str(expanded.resolve()), None),
        }
        for name, (source, revision) in folders.items():
            work = replace(probe, source=source, revision=revision)
            measured = run_job(context.board, Job(f"activations of {name}", "probe", work, blocks))
            copies = added if name == "expanded" else []
            found[name] = [
                {"layer": at - sum(a <= at for a in copies), "copy": at in copies, **row}
                for at, row in enumerate(measured["separation"])
            ]
            update(len(found), len(folders))
    return found


def write_activations(results: Results, models: Models, layers: Sequence[int]) -> None:
    """Write activations.json, activations.csv and activations.png."""
    results.write_json("activations.json", {"layers": layers, "models": models})
    columns = ("layer", "copy", "overlap")
    rows = [
        {"model": name, **{column: row[column] for column in columns}}
        for name, model in models.items()
        for row in model
    ]
    results.write("activations.csv", format_csv(rows))
    save_figure(separation_figure(models, layers[:SHOWN]), results.folder / "activations.png")
