"""What the tests of this folder share."""

from types import SimpleNamespace

import pytest

from adept_ray.run import settings


@pytest.fixture
def display():
    """A display that keeps its lines."""
    lines = []
    every = dict.fromkeys(("say", "show", "warn"), lines.append)
    return SimpleNamespace(
        **every,
        emit=lambda *_, **__: None,
        show_plan=lambda *args: lines.append(args[-1]),
        lines=lines,
        listeners=[],
        seconds={},
    )


@pytest.fixture(autouse=True)
def slow_bfloat16(monkeypatch):
    """A CPU without units for bfloat16, whatever this machine has."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(settings, "bfloat16_pays", lambda: False)
