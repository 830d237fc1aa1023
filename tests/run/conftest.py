"""What the tests of this folder share."""

from types import SimpleNamespace

import pytest


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
