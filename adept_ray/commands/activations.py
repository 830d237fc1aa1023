"""activations.py: where three models keep both kinds of text apart."""

from __future__ import annotations

import json
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
from adept_ray.engine import cluster as launch
from adept_ray.engine.crew import Job, run_job
from adept_ray.method.expansion import RECORD
from adept_ray.report.figures import save_figure, separation_figure
from adept_ray.rivals.comparison import (
    format_csv,
)
from adept_ray.run.context import open_context
from adept_ray.run.preparing import Prepared, load_test_blocks, prepare, show_jobs
from adept_ray.run.record import record_run
from adept_ray.run.settings import (
    check_trust,
    known_fingerprints,
    load_best,
    overrides_from,
    resolve_settings,
)
from adept_ray.run.sources import find_sources
from adept_ray.run.terminal import Display, Update
from adept_ray.run.training import build_work, plan_fit, store_blocks, test_and_export
from adept_ray.storage.files import fetch_temporarily
from adept_ray.storage.results import Results
from adept_ray.training.work import ProbeWork

FEWEST = 8  # blocks of a kind of text that a density is drawn of
SHOWN = 4  # layers whose densities are drawn


def draw_activations(args: ActivationsRun) -> str:
    """Measure and draw how far apart three models keep both kinds of text; returns the results' place.

    The models: the untouched backbone, its chosen layers tuned as they are (trained here, with the settings
    of the search but for the rate), and the expanded one that the search exported.
    Raises :class:`UserError` for bad input.
    """
    display = Display(args.json_lines)
    if "://" in args.config:
        raise UserError(
            f"--config {args.config}: activations are drawn beside a model: copy that folder here"
        )
    best = load_best(args.config)
    check_trust(args.trust_remote_code, best["run"], args.config)
    changes: dict[str, Any] = {
        **overrides_from(args),
        "general_tasks": (),
        "domain_tasks": (),
        "min_workers": 0,
    }
    if args.test_tokens:
        changes["test_tokens"] = args.test_tokens
    run = resolve_settings(validate_spec(RunSpec, {**best["run"], **changes}, args.config), "activations")
    expanded = Path(args.config).parent / "model"
    if not best["layers"] or not (expanded / RECORD).exists():
        raise UserError(f"{args.config}: there is no expanded model beside it, in {expanded}")
    results = Results(run.storage, run.name)
    results.open(resume=False)
    launch.check_workers(run)
    sources = find_sources(run, display, made_from=known_fingerprints(best))
    record_run(results, run, display, sources)
    training = validate_spec(
        TrainingSpec,
        best["training"] | {"tunes": "originals", "base_lr": args.originals_lr, "reports": 1},
        args.config,
    )
    with open_context(run, results, display) as (board, memory):
        fit = plan_fit(run, sources, training, memory, display, best["layers"])
        if fit.sharded:
            raise UserError("activations are taken of whole models, and this one has to be shared out")
        replays = training.replay > 0
        made = prepare(run, sources, display, board, best["k_max"], training.tokens, replays, fit=fit)
        tests = load_test_blocks(run, made.sets)
        if (fewest := min(map(len, tests.values()))) < max(FEWEST, run.machine.workers):
            raise UserError(
                f"--test-tokens {run.test_tokens}: {fewest} blocks of a side are too few for densities, "
                f"at least {max(FEWEST, run.machine.workers)} of {run.seq_len} tokens are needed"
            )
        work = build_work(run, made, training, tuple(best["layers"]), ScoreWeights())
        work = replace(work, fit=fit)
        with show_jobs(display, board, "train", f"tuning without expansion, {work.steps} steps", "without"):
            last = run_job(board, Job("without", "train", work, store_blocks(made.blocks), results.ray))
        test_and_export(run, work, made, results, display, board, last["saved"])
        with display.stage("activations", "activations of three models") as update:
            models = measure_separations(run, made, results, expanded, board, update)
    results.write_json("activations.json", {"layers": best["layers"], "models": models})
    rows = [
        {"model": name, "layer": row["layer"], "copy": row["copy"], "overlap": row["overlap"]}
        for name, rows in models.items()
        for row in rows
    ]
    results.write("activations.csv", format_csv(rows))
    save_figure(separation_figure(models, best["layers"][:SHOWN]), results.folder / "activations.png")
    record_run(results, run, display, sources, made, training)
    display.overlaps(models, best["layers"])
    place = results.publish()
    display.say(f"activations.png, activations.csv and activations.json are in {place}")
    return place


def measure_separations(
    run: RunSpec, made: Prepared, results: Results, expanded: Path, board: Any, update: Update
) -> dict[str, list[dict[str, Any]]]:
    """Name of a model → a row a layer (see :func:`adept_ray.report.figures.separation_figure`)."""
    backbone = made.sources.backbone
    added = json.loads((expanded / RECORD).read_text())["added_layers"]
    blocks = store_blocks(load_test_blocks(run, made.sets))
    found = {}
    with fetch_temporarily(f"{results.place}/model") as without:
        folders = {
            "untouched": (backbone.source, backbone.revision),
            "without expansion": (str(without), None),
            "expanded": (str(expanded.resolve()), None),
        }
        for name, (source, revision) in folders.items():
            work = ProbeWork(
                source,
                revision,
                run.machine.micro_batch,
                importance=False,
                separation=True,
                dtype=run.machine.dtype,
                trusted=backbone.trusted,
            )
            measured = run_job(board, Job(f"activations of {name}", "probe", work, blocks))["separation"]
            copies = added if name == "expanded" else []
            found[name] = [
                {"layer": at - sum(a <= at for a in copies), "copy": at in copies, **row}
                for at, row in enumerate(measured)
            ]
            update(len(found), len(folders))
    return found
