"""What a worker keeps of streams changes no training by a bit, in memory and on a disk."""

import os
import tempfile
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from trainings import CPU, Run, changed, same
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from adept_ray.method import expansion
from adept_ray.method.fit import Fit
from adept_ray.method.loss import get_compute_policy
from adept_ray.method.prefix import StreamKey
from adept_ray.training import streams as streams_module
from adept_ray.training.learner import prepare_tuning
from adept_ray.training.streams import (
    MOST_READ,
    DiskStreams,
    MemoryStreams,
    StreamBudget,
    drop_store,
    lend_store,
)

MIB = 2**20


@pytest.fixture(autouse=True)
def alone():
    """No test finds what another one kept."""
    drop_store()
    yield
    drop_store()


@pytest.fixture
def runs(monkeypatch):
    """How often layer 0 of any model has computed."""
    count, plain = [0], LlamaDecoderLayer.forward

    def forward(self, *args, **named):
        count[0] += self.self_attn.layer_idx == 0
        return plain(self, *args, **named)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    # The two passes by which an expansion is proven are none of a training's.
    monkeypatch.setattr(expansion, "compare_logits", lambda model: nullcontext())
    return count


def keeping(work, fit=None, **fields):
    """A short training of copies above two frozen layers, which may keep streams, and one that may not."""
    fields = {"layers": (1, 2), "text_returns": True, "tokens": work.count_tokens(4), "reports": 2, **fields}
    plain = changed(work, fit=fit or Fit(), **fields)
    return replace(plain, fit=replace(plain.fit, stream_bytes=MIB)), plain


def key(number, grad=True):
    return StreamKey(bytes([number]), 2, (grad,))


@pytest.mark.parametrize(
    "how",
    [{}, {"fit": Fit(recompute=True)}, {"replay": 0.5}, {"dtype": "bfloat16"}, {"micro_batch": 5}],
    ids=str,
)
def test_two_trainings_of_a_process_end_as_without_what_is_kept(work, tmp_path, monkeypatch, runs, how):
    """Weights, losses and readings are equal bit for bit; the second one runs no frozen layer at all."""
    both = [keeping(work, base_lr=rate, **how) for rate in (1e-2, 3e-3)]
    expected = [Run(tmp_path / f"plain-{i}", plain) for i, (_, plain) in enumerate(both)]
    for kind in (MemoryStreams, DiskStreams):
        monkeypatch.setitem(streams_module.KINDS, "cpu", kind)
        drop_store()
        frozen = []
        for i, ((kept, _), plain) in enumerate(zip(both, expected, strict=True)):
            before = runs[0]
            run = Run(tmp_path / f"{kind.__name__}-{i}", kept)
            frozen.append(runs[0] - before)
            assert same(run.weights(), plain.weights()) and run.metrics == plain.metrics
        assert frozen[0] > 0 and frozen[1] == 0


def test_within_a_training_held_out_text_passes_frozen_layers_once(work, tmp_path, runs):
    """Whether its own text comes again or not; another depth begins where a lower copy's ended."""
    kept, _ = keeping(work, text_returns=False)
    Run(tmp_path / "first", kept)
    once = runs[0]
    Run(tmp_path / "more", changed(kept, reports=4))
    readings = 3 + 2  # batches of two sides
    assert runs[0] - once == once - readings


@pytest.mark.parametrize(
    "fields", [{"tunes": "all", "layers": ()}, {"tunes": "lora"}, {"tunes": "originals"}]
)
def test_other_methods_let_go_of_what_is_kept(work, fields):
    """They change the layers themselves, or need the memory."""
    kept, plain = keeping(work)
    for other in (
        changed(kept, **fields),
        plain,
        changed(kept, backbone=replace(kept.backbone, random=True)),
    ):
        assert get_compute_policy(prepare_tuning(kept, CPU).model).prefix is not None
        assert get_compute_policy(prepare_tuning(other, CPU).model).prefix is None
        assert streams_module._HELD.store is None


def test_one_store_serves_one_backbone(work):
    """Another backbone, device or size begins a new one."""
    store = lend_store(work.backbone, CPU, MIB)
    assert lend_store(replace(work.backbone), CPU, MIB) is store
    for other in (replace(work.backbone, fingerprint="x"), replace(work.backbone, dtype="bfloat16")):
        assert lend_store(other, CPU, MIB) is not store
    assert lend_store(work.backbone, CPU, 2 * MIB) is not lend_store(work.backbone, CPU, MIB)


@pytest.mark.parametrize("kind", [MemoryStreams, DiskStreams])
def test_training_text_leaves_room_for_held_out_text(kind):
    """It takes half at most, whichever came first; what doesn't fit isn't kept."""
    store, quarter = kind(1024, CPU), torch.zeros(64)
    for number in range(3):
        store.keep(key(number), quarter, for_text=True)
    for number in range(3, 6):
        store.keep(key(number), quarter, for_text=False)
    settle(store)
    assert [key(number) in store for number in range(6)] == [True, True, False, True, True, False]


def settle(store):
    """Wait until all is written."""
    if isinstance(store, DiskStreams):
        store._writer.submit(int).result()


def filled(*streams):
    """A store on a disk that holds these, and has been asked for none."""
    store = DiskStreams(MIB, CPU)
    for number, stream in enumerate(streams):
        store.keep(key(number), stream, for_text=False)
        settle(store)
    return store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_disk_gives_back_every_bit(dtype):
    """And in a type, shape and mode that a gradient can use, wherever reading began."""
    streams = [torch.randn(2, 3, 5).to(dtype), torch.full((1, 7), torch.nan, dtype=dtype)]
    store = filled(*streams)
    with torch.inference_mode():
        for number, stream in enumerate(streams):
            found = store.find(key(number))
            assert found.dtype == dtype and torch.equal(found.view(torch.uint8), stream.view(torch.uint8))
            assert not found.is_inference()


def test_the_files_of_a_store_go_with_its_process(monkeypatch, tmp_path):
    """They have no name, so nothing is left of a worker that is killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = filled(torch.ones(100))
    assert key(0) in store and os.fstat(store._file.fileno()).st_size == 400
    assert not [*tmp_path.iterdir()]


def test_what_came_next_is_read_ahead():
    """While a stream is used, those that came after it the last time are on their way."""
    store = filled(*torch.arange(8.0).split(1))
    assert not store._reads
    store.find(key(2))
    assert list(store._reads) == [key(number) for number in (3, 4, 5, 6)]
    reading = store._reads[key(3)]
    assert store.find(key(3)) is reading.result() and float(reading.result()) == 3
    assert list(store._reads) == [key(number) for number in (4, 5, 6, 7)]


def test_what_is_read_ahead_in_vain_does_not_pile_up():
    """In ever other orders some streams are read and never asked for: a few stay in memory."""
    store = filled(*torch.arange(64.0).split(1))
    for number in range(0, 64, 5):
        assert float(store.find(key(number))) == number
        assert len(store._reads) <= MOST_READ
    assert float(store.find(key(1))) == 1


def test_a_full_disk_keeps_no_more(monkeypatch):
    """Neither where room gets short, nor where a write fails; what is there stays."""
    store = filled(torch.ones(3))
    monkeypatch.setattr(store, "_measure_room", lambda: 0)
    store.keep(key(1), torch.ones(3), for_text=False)
    monkeypatch.undo()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    store.keep(key(2), torch.ones(3), for_text=False)
    settle(store)
    assert [key(number) in store for number in range(3)] == [True, False, False]
    assert torch.equal(store.find(key(0)), torch.ones(3))


def test_a_slow_disk_is_not_waited_for(monkeypatch):
    """A stream that is late is computed; a disk that always is late is given up."""
    store = filled(torch.ones(3))
    monkeypatch.setattr(store._reader, "submit", lambda *_: Future())
    monkeypatch.setattr(Future, "result", late)
    for time in range(streams_module.LATE):
        assert key(0) in store, time
        assert store.find(key(0)) is None
    assert key(0) not in store
    store.keep(key(1), torch.ones(3), for_text=False)
    assert not store._writes


def late(future, timeout=None):
    assert 1 <= timeout < 2
    raise TimeoutError


def test_a_budget_is_never_overdrawn():
    """Of 10 bytes training text gets 5, and all together get 10."""
    budget = StreamBudget(10)
    assert [budget.take(size, True) for size in (3, 3, 2, 1)] == [True, False, True, False]
    assert [budget.take(size, False) for size in (4, 2, 1, 1)] == [True, False, True, False]
