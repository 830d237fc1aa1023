"""A stand-in for the board."""

import pytest


class RecordingBoard:
    """Keeps what is said to it: (method, arguments)."""

    def __init__(self):
        self.heard = []

    def __getattr__(self, method):
        return lambda *given: self.heard.append((method, *given))

    def list_calls(self, method):
        return [given for name, *given in self.heard if name == method]


@pytest.fixture
def board():
    return RecordingBoard()
