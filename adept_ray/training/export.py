"""The end of a training: one look at the test splits, and the exported model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from adept_ray.data.blocks import Blocks
from adept_ray.data.loading import borrow, borrow_sharded, load_tokenizer
from adept_ray.method.dial import TRAINED
from adept_ray.method.expansion import export
from adept_ray.method.fit import PLAIN
from adept_ray.method.ranks import rank
from adept_ray.method.tuning import Tuning
from adept_ray.storage.checkpoints import Checkpoint
from adept_ray.storage.files import list_files
from adept_ray.training.callbacks import Callbacks
from adept_ray.training.dialling import DialledReading, score_reading
from adept_ray.training.learner import prepare_tuning
from adept_ray.training.scoring import measure_held_out
from adept_ray.training.state import TrainState
from adept_ray.training.work import TrainWork


def load_tuning(work: TrainWork, device: torch.device, checkpoint: Path) -> Tuning:
    """What the work trained, with the weights of the folder `checkpoint`."""
    tuning = prepare_tuning(work, device)
    TrainState.load(checkpoint, tuning.model)
    return tuning


def score_and_export(
    work: TrainWork,
    blocks: Mapping[str, Blocks],
    device: torch.device,
    checkpoint: Path,
    about: Mapping[str, object],
    callbacks: Callbacks,
) -> None:
    """Score backbone and trained model on the test splits and export the model, at the dial of its training.

    The report gets the metrics, those of the model as it was trained among them, and, on rank 0, the files
    of ``model/``. `about` goes into adept.json.
    """
    take = borrow_sharded if work.fit.sharded else borrow
    before = measure_held_out(take(work.backbone, device), work, blocks)
    callbacks.progress(1, 3)
    tuning = load_tuning(work, device, checkpoint)
    asked = work.training.dial
    dial = TRAINED if isinstance(asked, str) or not tuning.parameters else asked
    plain = None
    if dial != TRAINED:
        with tuning.use_exported_weights():
            plain = measure_held_out(tuning.model, work, blocks)
    if work.fit.sharded:
        with tuning.use_exported_weights(dial):
            after = measure_held_out(tuning.model, work, blocks)
        # The first rank puts it together, in its machine's memory; the others have nothing to export.
        alone = replace(work, fit=PLAIN)
        model = load_tuning(alone, torch.device("cpu"), checkpoint).merge(dial) if rank() == 0 else None
    else:
        model = tuning.merge(dial)  # the very model that is exported is scored
        after = measure_held_out(model, work, blocks)
    reading = DialledReading(dial, after, after if plain is None else plain)
    metrics = score_reading(
        reading, replace(work, before={name: each.tolist() for name, each in before.items()}), blocks
    )
    callbacks.progress(2, 3)
    with tempfile.TemporaryDirectory() as folder:
        if model is not None and rank() == 0:
            layers = {"added_layers": list(tuning.added), "source_layers": list(work.layers)}
            record = {**layers, "dial": dial, **about}
            export(model, Path(folder) / "model", load_tokenizer(work.backbone), record)
        callbacks.report(metrics, Checkpoint(0, list_files(Path(folder))) if rank() == 0 else None)
