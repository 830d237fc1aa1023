"""Losses without whole logits: those of whole logits, and so is their gradient; where that can't be."""

import pytest
import torch
from common import local_backbone, padded, random_ids, save_backbone_with_code, tiny_model
from torch import nn

from adept_ray.data.loading import load_model
from adept_ray.method import head, loss
from adept_ray.method.expansion import expand
from adept_ray.method.families import FAMILIES
from adept_ray.method.loss import ComputePolicy, set_compute_policy, token_nats

CHANGED = {"gemma2", "granite"}  # their logits are capped or scaled, as tests/common.py has them
BATCH = {
    **padded([random_ids(1, n, seed=n)[0] for n in (20, 9, 14)]),
    "counts": torch.tensor([True, True, False]),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces of 7 rows of logits, which become losses 3 at a time."""
    monkeypatch.setattr(head, "CPU_LOGITS", 7 * 4 * 128)
    monkeypatch.setattr(head, "CPU_PIECE", 3 * 4 * 128)


@pytest.fixture
def whole(monkeypatch):
    """Calls a function while logits are made whole."""

    def call(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(loss, "find_plain_head", lambda model: None)
            return function(*args)

    return call


def take_gradient(model, batch):
    """Losses of all places, and the gradient of their sum, each place with a weight of its own."""
    nats = token_nats(model, batch)[0]
    weights = torch.linspace(0.5, 2, nats.numel()).view_as(nats)
    return nats, torch.autograd.grad(
        (nats * weights).sum(), [p for p in model.parameters() if p.requires_grad]
    )


def made_ready(family, tunes):
    """A model of which copies of two layers are trained, all parameters, or the head with a bias."""
    model = tiny_model(family)
    if tunes == "all":
        return model.requires_grad_(True)
    expand(model, (0, 2))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.01)
    if tunes == "head":
        model.requires_grad_(False)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, 128))
    return model


@pytest.mark.parametrize("tunes", ["copies", "all", "head"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_losses_are_those_of_whole_logits(family, tunes, whole):
    """Bit for bit, with a gradient or without, padding and all; the gradient is to rounding."""
    model = made_ready(family, tunes)
    nats, slopes = take_gradient(model, BATCH)
    expected, expected_slopes = whole(take_gradient, model, BATCH)
    assert torch.equal(nats, expected) and nats.count_nonzero() == 19 + 8
    with torch.inference_mode():
        assert torch.equal(token_nats(model, BATCH)[0], expected)
    for slope, other in zip(slopes, expected_slopes, strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    assert "forward" not in vars(model.get_output_embeddings())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_that_are_changed_behind_the_head_are_made_whole(family, tmp_path):
    """Where they are capped or scaled, or may be, by code that came with the model; a scale of 1 is none."""
    assert (head.find_plain_head(tiny_model(family)) is None) == (family in CHANGED)
    plain = {"gemma2": {"final_logit_softcapping": None}, "granite": {"logits_scaling": 1.0}}.get(family, {})
    model = tiny_model(family, **plain)
    assert head.find_plain_head(model) is model.lm_head
    if family == "gemma3_text":
        assert head.find_plain_head(tiny_model(family, final_logit_softcapping=30.0)) is None


def test_code_that_came_with_a_model_gets_its_own_logits(tmp_path):
    """It doubles them, so its losses are those of doubled logits."""
    save_backbone_with_code(tmp_path / "own", tmp_path / "ran")
    model = load_model(local_backbone(tmp_path / "own", trusted=True))
    ids = random_ids()
    assert head.find_plain_head(model) is None
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        found = token_nats(model, {"input_ids": ids})[0][:, :-1]
    torch.testing.assert_close(found, -log_p.gather(2, ids[:, 1:, None])[..., 0])


def test_a_head_that_is_no_linear_map_makes_its_logits():
    class Own(nn.Linear):
        def forward(self, stream):
            return 2 * super().forward(stream)

    model = tiny_model()
    model.lm_head = Own(32, 128)
    assert head.find_plain_head(model) is None


@pytest.mark.parametrize("tunes", ["copies", "all"])
def test_fewer_bits_are_as_exact(tunes, whole):
    """In bfloat16 under autocast losses are the same bits, and the gradient is rounded once more at most.

    A second rounding of that size doubles the expected square of the distance to the exact gradient.
    """
    model = made_ready("llama", tunes)
    exact = made_ready("llama", tunes)
    for each in (model, exact):
        for parameter in each.parameters():
            frozen = not parameter.requires_grad
            parameter.data = parameter.data.bfloat16() if frozen else parameter.data.bfloat16().float()
    exact.float()
    set_compute_policy(model, ComputePolicy(autocast=torch.bfloat16))
    (nats, slopes), (expected, others) = take_gradient(model, BATCH), whole(take_gradient, model, BATCH)
    assert torch.equal(nats, expected) and nats.dtype == torch.float32
    ours, theirs = (
        sum(float((a - b).square().sum()) for a, b in zip(each, take_gradient(exact, BATCH)[1], strict=True))
        for each in (slopes, others)
    )
    assert 0 < ours < 2 * theirs


def test_what_is_kept_of_logits():
    """Nothing of a vocabulary's width, or where the head is trained one such row a token."""
    for train, expected in (
        ((lambda model: expand(model, (1,))), 0),
        (lambda model: model.requires_grad_(True), 40),
    ):
        model, kept = tiny_model(), []
        train(model)

        def note(each, kept=kept, weight=model.lm_head.weight):
            kept.append(each.numel() // 128 if 128 in each.shape and each.shape != weight.shape else 0)
            return each

        with torch.autograd.graph.saved_tensors_hooks(note, lambda each: each):
            token_nats(model, {"input_ids": random_ids()})
        assert sum(kept) == expected


@pytest.mark.parametrize("tunes", ["copies", "all"])
def test_a_gradient_can_be_taken_twice(tunes):
    """What is kept stays as it is."""
    model = made_ready("llama", tunes)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    nats = token_nats(model, BATCH)[0].sum()
    first, second = (torch.autograd.grad(nats, parameters, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_pieces_go_by_the_device(monkeypatch):
    """A card takes other pieces than a CPU; torch's device without memory stands for it."""
    away = torch.empty(10, 4, device="meta")
    assert head.count_rows(torch.empty(3, 10), 80, 160) == 2
    assert head.count_rows(torch.empty(3, 10, device="meta"), 80, 160) == 4
    monkeypatch.setattr(head, "GPU_LOGITS", 4 * 10 * 5)
    monkeypatch.setattr(head, "GPU_PIECE", 4 * 4 * 2)
    goals = torch.zeros(12, dtype=torch.long, device="meta")
    pieces = list(head._split_rows(torch.empty(12, 4, device="meta"), goals, away))
    assert [len(rows) for rows, _ in pieces] == [5, 5, 2] == [len(wanted) for _, wanted in pieces]
    assert head._turn_into_slopes(away, goals[:10]).shape == (10,)
    assert head.measure_losses(away, goals[:10]).shape == (10,)
