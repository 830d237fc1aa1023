"""evaluate.py: a model on benchmark tasks."""

from __future__ import annotations

from adept_ray.config.model_specs import EvaluateRun
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.benchmark_tasks import (
    OFFLINE,
    answer_items,
    draw_items,
    find_tasks_at_chance,
    summarise_accuracies,
)
from adept_ray.data.hub_client import PATIENCE
from adept_ray.data.hub_files import fetch_missing_files
from adept_ray.data.loading import load_model, load_tokenizer
from adept_ray.engine.nodes import list_versions
from adept_ray.run.terminal import Display
from adept_ray.storage.files import write_json


def evaluate_model(run: EvaluateRun) -> None:
    """Score a model on benchmark tasks and print the table. Raises :class:`UserError` for bad input."""
    import torch

    display = Display(run.json_lines)
    PATIENCE.say = display.say
    with display.show_stage("tasks", "benchmark tasks"):
        items = draw_items(run.tasks or OFFLINE, run.items, run.seed, run.cache)["test"]
    with display.show_stage("model", run.model) as update:
        device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
        backbone = resolve_backbone(run.model, run.cache, run.trust_remote_code, dtype)
        if backbone.revision:
            fetch_missing_files(backbone.source, backbone.revision, update)
        model, tokenizer = load_model(backbone, device), load_tokenizer(backbone)
    with display.show_stage("items", f"{len(items)} items"):
        right = answer_items(model, tokenizer, items, run.micro_batch, quiet=not display.live)
    rows = summarise_accuracies(items, right)
    display.show_accuracies(rows)
    for sentence in find_tasks_at_chance(items, right):
        display.warn(sentence)
    if run.output:
        run.output.parent.mkdir(parents=True, exist_ok=True)
        about = {"model": backbone.name, "fingerprint": backbone.fingerprint, "seed": run.seed}
        write_json(run.output, about | {"versions": list_versions(), "tasks": rows})
        display.say(f"written to {run.output}")
