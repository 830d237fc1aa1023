"""Activations of both kinds of text: pooled as plainly computed, no distance where there is none."""

import numpy as np
import pytest
import torch
from common import random_ids, tiny_model

from adept_ray.method.activations import (
    estimate_densities,
    measure_overlap,
    measure_separation,
    pool_activations,
    project_blocks,
)
from adept_ray.report.drawing import save_figure
from adept_ray.report.layer_figures import draw_separation

MODEL = tiny_model("qwen3")
RNG = np.random.default_rng(0)


def test_pooling_leaves_the_first_token_out():
    """Each layer's output, the mean over the other tokens, whatever the batches."""
    ids = random_ids(5, 12)
    kept = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, at=at: kept.__setitem__(at, out))
        for at, layer in enumerate(MODEL.model.layers)
    ]
    with torch.no_grad():
        last = MODEL.model(input_ids=ids).last_hidden_state
    for hook in hooks:
        hook.remove()
    outputs = [kept[at] if torch.is_tensor(kept[at]) else kept[at][0] for at in range(3)] + [last]
    expected = torch.stack([out[:, 1:].mean(1) for out in outputs], 1)
    found = pool_activations(MODEL, [{"input_ids": ids[:2]}, {"input_ids": ids[2:]}])
    assert found.shape == (5, 4, 32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def cloud(blocks, features=100, shift=0.0):
    """Pooled activations of one layer."""
    return RNG.normal(size=(blocks, features)) + shift * (np.arange(features) < 10)


def test_many_features_and_few_blocks_feign_no_distance():
    """Where both kinds are drawn alike they overlap nearly everywhere, with five times more features."""
    found = [measure_overlap(*project_blocks(cloud(20), cloud(20))) for _ in range(20)]
    assert np.mean(found) > 0.75


def test_documents_over_several_blocks_feign_no_distance():
    """Blocks of a document are alike: they don't place each other."""

    def documents():
        return np.repeat(cloud(10), 4, 0) + 0.1 * cloud(40)

    assert np.mean([measure_overlap(*project_blocks(documents(), documents())) for _ in range(20)]) > 0.7


def test_kinds_far_apart_do_not_overlap():
    """Domain text lies to the right, and the further apart, the less do the densities overlap."""
    found = []
    for shift in (1.0, 2.0, 5.0):
        general, domain = project_blocks(cloud(40), cloud(40, shift=shift))
        assert general.mean() < 0 < domain.mean()
        found.append(measure_overlap(general, domain))
    assert found[0] > found[1] > found[2] and found[2] < 0.01


def test_the_scale_of_a_feature_changes_nothing():
    """A feature a thousand times larger than the others doesn't drown them."""
    general, domain = cloud(30), cloud(30, shift=1.0)
    scale = np.where(np.arange(100) == 50, 1000.0, 1.0)
    before, after = project_blocks(general, domain), project_blocks(general * scale, domain * scale)
    for left, right in zip(before, after, strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-3)


def test_overlap_is_the_common_area():
    """1 of a density with itself, near 0 of two far apart, and known of two normal ones a spread apart."""
    values = RNG.normal(size=4000)
    assert measure_overlap(values, values) == pytest.approx(1, abs=0.01)
    assert measure_overlap(values, values + 50) == pytest.approx(0, abs=0.01)
    assert measure_overlap(values, RNG.normal(size=4000) + 1) == pytest.approx(0.617, abs=0.03)  # 2Φ(−½)
    grid, p, q = estimate_densities(values, values + 3)
    assert (p.sum() * (grid[1] - grid[0]), q.sum() * (grid[1] - grid[0])) == pytest.approx((1, 1), abs=0.01)


def test_a_figure_of_models_with_copies_and_without(tmp_path):
    """Every layer has its row; the picture is written."""
    general, domain = RNG.normal(size=(16, 3, 8)), RNG.normal(size=(16, 3, 8)) + 1
    rows = measure_separation(general, domain)
    assert len(rows) == 3 and all(len(row["general"]) == len(row["domain"]) == 16 for row in rows)
    plain = [{"layer": at, "copy": False, **row} for at, row in enumerate(rows)]
    copied = [*plain, {"layer": 2, "copy": True, **rows[0]}]
    path = save_figure(draw_separation({"untouched": plain, "expanded": copied}, [1, 2]), tmp_path / "a.png")
    assert path.stat().st_size > 10_000
