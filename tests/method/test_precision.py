"""The faster type of a CPU: by the clock, and only if it is clearly faster."""

import time

import pytest
import torch

from adept_ray.method import precision
from adept_ray.method.precision import bfloat16_pays, time_product


@pytest.mark.parametrize(("seconds", "pays"), [(0.2, True), (0.6, True), (0.7, False), (50.0, False)])
def test_bfloat16_has_to_be_clearly_faster(monkeypatch, seconds, pays):
    """Half as fast again as float32, which takes one second here."""
    times = {torch.float32: 1.0, torch.bfloat16: seconds}
    monkeypatch.setattr(precision, "time_product", times.get)
    assert bfloat16_pays() is pays


def test_the_first_product_does_not_count(monkeypatch):
    """In it memory is taken and threads are started; of the others it is the median."""
    ticks = iter([0.0, 9.0, 10.0, 10.5, 20.0, 20.1, 30.0, 30.9])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert time_product(torch.float32) == pytest.approx(0.5)
