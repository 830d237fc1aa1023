"""What a worker says of its job, and what it is told: by the first worker alone, and once; without Ray."""

import pytest
import torch

from adept_ray.engine import voice as voice_module
from adept_ray.engine.crew import CrewSettings
from adept_ray.engine.voice import PROGRESS_EVERY_S, JobVoice

CPU = torch.device("cpu")


def test_progress_is_said_now_and_then_and_at_the_end(board, monkeypatch):
    """So often that one sees it move, and no step waits for it."""
    now = 100.0
    monkeypatch.setattr(voice_module.time, "monotonic", lambda: now)
    voice = JobVoice(board, 3, True, CPU)
    for step in range(1, 12):
        voice.show_progress("trial-001", step, 11)
        now += PROGRESS_EVERY_S / 4.5
    assert board.list_calls("record_progress") == [["trial-001", step, 11] for step in (1, 6, 11)]


def test_a_training_runs_until_it_ends_however_it_does(board):
    voice = JobVoice(board, 3, True, CPU)
    with pytest.raises(FloatingPointError), voice.show_running("trial-001", 4):
        raise FloatingPointError
    said = [{"k": 4, "running": True}, {"running": False}]
    assert board.list_calls("record_numbers") == [["trial-001", numbers] for numbers in said]


def test_only_the_first_worker_asks_for_the_verdict(board, monkeypatch):
    """The others hear its answer, so there is one clock for it, which begins when the report was made."""
    asked, said = [], []
    board.wait_for_verdict = lambda *given: bool(asked.append(given)) or True
    monkeypatch.setattr(JobVoice, "agree_on_largest", lambda _, number: said.append(number) or 1)
    assert all(JobVoice(board, 3, first, CPU).ask_for_stop("trial-001", 2) for first in (False, True))
    assert asked == [("trial-001", 2)] and said == [0, 1]


def test_the_token_is_in_no_text(board):
    """Ray keeps what a worker is told as text, for its dashboard."""
    settings = CrewSettings(None, 0, 1, 1, 1, token="hf_secret")
    assert "hf_secret" not in f"{settings} {settings!r} { {'settings': settings} }"
