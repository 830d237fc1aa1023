"""What the tests of a training share: its blocks, a run that keeps what is reported, a plain measure."""

import json
import math
from dataclasses import replace

import numpy as np
import torch
from common import (
    of_one_document,
    one_document_each,
    write_files,
)
from safetensors.torch import load_file

from adept_ray.data.blocks import Blocks
from adept_ray.data.loading import borrow
from adept_ray.training import learner as learner_module
from adept_ray.training.callbacks import Callbacks, ResumePoint
from adept_ray.training.stage2 import train
from adept_ray.training.state import STATE, WEIGHTS

CPU = torch.device("cpu")


SEQ_LEN, PER_STEP, STEPS = 16, 3, 8


LAYERS = (0, 2)


def stories(number, seed, stride):
    """Blocks that count upwards by `stride`: easy to learn; 3 bytes a token."""
    start = np.random.default_rng(seed).integers(0, 300, (number, 1))
    return of_one_document(3 + (start + stride * np.arange(SEQ_LEN)) % 300)


BLOCKS = {
    "probe": stories(5, 1, 2),
    "remeasure": stories(3, 1, 2),
    "general": stories(5, 2, 2),
    "domain": stories(4, 3, 1),
    "train": stories(10, 4, 1),
    "replay": stories(6, 5, 2),
}


BLOCKS |= {side: one_document_each(BLOCKS[side].tokens) for side in ("general", "domain")}


def changed(work, **fields):
    """`work` with other fields, of itself, of its training or, `dtype`, of its backbone."""
    if dtype := fields.pop("dtype", None):
        work = replace(work, backbone=replace(work.backbone, dtype=dtype))
    own = {name: fields.pop(name) for name in list(fields) if hasattr(work, name)}
    return replace(work, training=work.training.model_copy(update=fields), **own)


def keeping(folder):
    """A report that keeps what comes with it in `folder`."""
    return lambda _, saved: write_files(saved, folder)


def split_options(report, options):
    """What train() takes: the callbacks, and where it begins (`resume` is the folder of a checkpoint)."""
    start = ResumePoint(options.pop("resume", None), options.pop("grown_from", None))
    return Callbacks(report, **options), start


class Run:
    """A training and all that it reported: the metrics, and a checkpoint folder for each report."""

    def __init__(self, folder, work, **options):
        self.metrics, self.folders, self.resumable = [], [], []
        self._folder = folder
        train(work, BLOCKS, CPU, *split_options(self.report, options))

    def report(self, metrics, checkpoint):
        self.metrics.append({name: value for name, value in metrics.items() if "second" not in name})
        self.resumable.append(checkpoint.resumable)
        self.folders.append(write_files(checkpoint, self._folder / str(len(self.folders))))

    def weights(self, at=-1):
        return load_file(self.folders[at] / WEIGHTS)

    def state(self, at=-1):
        return json.loads((self.folders[at] / STATE).read_text())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def caught(monkeypatch, spoil=lambda model: None):
    """Have train() borrow through here: returns the list in which its models are found."""
    models = []

    def lend(*args, **_):
        models.append(borrow(*args, alone=True))
        spoil(models[-1])
        return models[-1]

    monkeypatch.setattr(learner_module, "borrow", lend)
    return models


def taken(blocks, ids):
    return Blocks(blocks.tokens[ids], blocks.bytes[ids], blocks.starts[ids])


def plain_bpb(model, blocks):
    """Bits per byte by a forward pass over all blocks at once."""
    ids = torch.from_numpy(blocks.tokens.astype(np.int64))
    with torch.no_grad():
        log_p = model(input_ids=ids).logits.double().log_softmax(-1)
    nats = -log_p[:, :-1].gather(2, ids[:, 1:, None]).sum().item()
    return nats / math.log(2) / blocks.bytes.sum()
