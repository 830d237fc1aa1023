"""The frozen layers below the lowest copy: skipped where what they hand on is kept, bit for bit the same."""

import pytest
import torch
from common import SPECIAL, random_ids, shake, tiny_model

from adept_ray.config.specs import TrainingSpec
from adept_ray.data.blocks import digest_tokens
from adept_ray.method import loss as loss_module
from adept_ray.method import tuning as tuning_module
from adept_ray.method.forwards import answer_at_once
from adept_ray.method.loss import get_compute_policy, next_token_nats
from adept_ray.method.tuning import build_tuning

FAMILIES = [*SPECIAL, "phi3", "olmo2"]


class Kept(dict):
    """A store that has room for all; it counts what it gave."""

    found = 0

    def find(self, key):
        self.found += 1
        return self[key]

    def keep(self, key, stream, for_text):
        self[key] = stream


def named(ids):
    return {"input_ids": ids, "digest": digest_tokens(ids.numpy())}


def tuned(family="llama", layers=(1, 2), tunes="copies", dtype=None):
    """Four layers of which these are copied, and copies that do something."""
    model = tiny_model(family).to(dtype)
    units = dict.fromkeys((name for name, _ in model.named_parameters() if ".layers." in name), 1.0)
    tuning = build_tuning(model, TrainingSpec(k=len(layers), tunes=tunes), layers, units, 0)
    shake(tuning.parameters.values(), 0.1)
    return tuning


def passed(tuning, batch):
    """The losses of a batch, and the gradients of all that is trained."""
    nats = next_token_nats(tuning.model, batch)[0]
    return nats.detach(), torch.autograd.grad(nats.sum(), list(tuning.parameters.values()))


def agree(one, other):
    return torch.equal(one[0], other[0]) and all(map(torch.equal, one[1], other[1]))


def count_runs(monkeypatch, tuning):
    """How often each layer computes, in a list that goes on counting."""
    layers = tuning_module.layers_of(tuning.model)
    runs = [0] * len(layers)
    kind = type(layers[0])
    plain = kind.forward

    def forward(self, *args, **named):
        runs[next(i for i, layer in enumerate(layers) if layer is self)] += 1
        return plain(self, *args, **named)

    monkeypatch.setattr(kind, "forward", forward)
    return runs


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_that_begins_at_a_kept_stream_is_the_whole_pass(family, monkeypatch):
    """Losses and gradients are the same bit for bit, and no layer below the lowest copy is run."""
    tuning, batch = tuned(family), named(random_ids())
    whole = passed(tuning, batch)
    tuning.keep_prefix(Kept(), keeps_text=True)
    assert agree(passed(tuning, batch), whole)  # this one keeps
    runs = count_runs(monkeypatch, tuning)
    assert agree(passed(tuning, batch), whole)
    assert runs == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("policy", ["recomputed", "compiled", "both"])
def test_frozen_layers_are_skipped_whatever_the_policy(policy, monkeypatch):
    """Also where layers are computed again for the gradient, or run by torch.compile, which is left alone."""
    monkeypatch.setattr(loss_module, "compile_forward", lambda kind: kind.forward)
    tuning, batch = tuned(), named(random_ids())
    if policy != "compiled":
        tuning.recompute_activations()
    if policy != "recomputed":
        tuning.compile_layers()
    whole = passed(tuning, batch)
    tuning.keep_prefix(Kept(), keeps_text=True)
    passed(tuning, batch)
    runs = count_runs(monkeypatch, tuning)
    assert agree(passed(tuning, batch), whole)
    assert runs == [0, 0, *[1 if policy == "compiled" else 2] * 4]
    assert not any("forward" in vars(layer) for layer in tuning_module.layers_of(tuning.model))


def test_layers_run_as_before_after_they_were_skipped():
    """What replaced their pass already comes back."""
    layers = [torch.nn.Identity(), torch.nn.Identity()]
    layers[1].forward = lambda x: x + 1
    with answer_at_once(layers, torch.tensor(7)):
        assert [layer(0) for layer in layers] == [7, 7]
    assert [layer(0) for layer in layers] == [0, 1]


def test_types_gradients_and_batches_are_told_apart(monkeypatch):
    """A kept stream serves the same batch in the same types alone; other sizes and masks just miss it."""
    tuning = tuned(dtype=torch.bfloat16)
    kept, ids = Kept(), random_ids(4)
    tuning.keep_prefix(kept, keeps_text=True)
    passed(tuning, named(ids))
    with torch.inference_mode():
        next_token_nats(tuning.model, named(ids))
        with tuning.use_exported_weights():
            next_token_nats(tuning.model, named(ids))
    for other in (ids[:2], ids.reshape(2, -1), ids.flip(0)):
        passed(tuning, named(other))
    assert (len(kept), kept.found) == (6, 0)
    passed(tuning, {"input_ids": ids})
    passed(tuning, named(ids) | {"attention_mask": torch.ones_like(ids)})
    assert (len(kept), kept.found) == (6, 0)
    passed(tuning, named(ids))
    assert (len(kept), kept.found) == (6, 1)
    monkeypatch.setattr(loss_module, "compile_forward", lambda kind: kind.forward)
    tuning.compile_layers()
    passed(tuning, named(ids))
    assert (len(kept), kept.found) == (7, 1)


def test_a_deeper_prefix_begins_where_a_shorter_one_ended(monkeypatch):
    """Another training with a lower copy left the stream half-way."""
    kept, batch = Kept(), named(random_ids())
    low, high = tuned(layers=(0, 3)), tuned(layers=(2,))
    whole = passed(high, batch)
    for tuning in (low, high):
        tuning.keep_prefix(kept, keeps_text=True)
    passed(low, batch)
    runs = count_runs(monkeypatch, high)
    assert agree(passed(high, batch), whole) and runs == [0, 1, 1, 1, 1]
    assert agree(passed(high, batch), whole) and runs == [0, 1, 1, 2, 2]


def test_text_that_does_not_come_again_is_not_kept():
    """Held-out text is, which every reading asks for."""
    tuning, kept = tuned(), Kept()
    tuning.keep_prefix(kept, keeps_text=False)
    passed(tuning, named(random_ids()))
    assert not kept
    with torch.inference_mode():
        next_token_nats(tuning.model, named(random_ids()))
    assert len(kept) == 1


@pytest.mark.parametrize("tunes", ["all", "lora", "tasl", "sharded", "lowest", "nothing"])
def test_what_trains_the_lowest_layer_or_lies_in_pieces_has_no_prefix(tunes, monkeypatch):
    monkeypatch.setattr(tuning_module, "is_sharded", lambda model: tunes == "sharded")
    layers = {"lowest": (0,), "nothing": ()}.get(tunes, (1,))
    own = {"sharded": "copies", "lowest": "originals", "nothing": "copies"}.get(tunes, tunes)
    tuning = tuned(layers=layers, tunes=own)
    tuning.keep_prefix(Kept(), keeps_text=True)
    assert get_compute_policy(tuning.model).prefix is None
