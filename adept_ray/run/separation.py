"""How far apart three models keep both kinds of text: measured, and written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adept_ray.config.specs import (
    RunSpec,
)
from adept_ray.engine.client import run_job
from adept_ray.engine.job import Job
from adept_ray.method.copies import RECORD
from adept_ray.method.fit import PLAIN
from adept_ray.report.layer_figures import save_separation
from adept_ray.rivals.table import format_csv
from adept_ray.run.context import Context
from adept_ray.run.preparing import Prepared, load_test_blocks
from adept_ray.run.stage_one import describe_probe, store_blocks
from adept_ray.run.terminal import Update
from adept_ray.run.training import test_and_export
from adept_ray.storage.files import fetch_temporarily
from adept_ray.storage.results import Results
from adept_ray.training.work import TrainWork

Models = dict[str, list[dict[str, Any]]]
SHOWN = 4  # layers whose densities are drawn


def tune_originals(context: Context[RunSpec], prepared: Prepared, work: TrainWork) -> None:
    """Tune the chosen layers themselves, and export the model to the results."""
    job = Job("without", "train", work, store_blocks(prepared.blocks), context.results.ray)
    with context.show_jobs("train", f"tuning without expansion, {work.steps} steps", "without"):
        last = run_job(context.board, job)
    test_and_export(context, prepared, work.turn(last["dial"]), last["saved"])


def measure_separations(
    context: Context[RunSpec], prepared: Prepared, expanded: Path, update: Update
) -> Models:
    """Name of a model → a row a layer (see :func:`adept_ray.report.layer_figures.draw_separation`)."""
    run, backbone = context.run, prepared.sources.backbone
    added = json.loads((expanded / RECORD).read_text(encoding="utf-8"))["added_layers"]
    blocks = store_blocks(load_test_blocks(run, prepared.sets))
    probe = replace(describe_probe(run, prepared.sources, PLAIN), separation=True)
    models: Models = {}
    with fetch_temporarily(f"{context.results.place}/model") as without:
        folders = {
            "untouched": backbone,
            "without expansion": replace(backbone, source=str(without), revision=None),
            "expanded": replace(backbone, source=str(expanded.resolve()), revision=None),
        }
        for name, model in folders.items():
            work = replace(probe, backbone=model)
            measured = run_job(context.board, Job(f"activations of {name}", "probe", work, blocks))
            copies = added if name == "expanded" else []
            models[name] = [
                {"layer": at - sum(a <= at for a in copies), "copy": at in copies, **row}
                for at, row in enumerate(measured["separation"])
            ]
            update(len(models), len(folders))
    return models


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
    save_separation(models, layers[:SHOWN], results.folder / "activations.png")
