"""One thread, no network and no stopwatch, fixed before torch is imported."""

import os
import tempfile
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HOME=str(Path(tempfile.gettempdir()) / "adept_ray-tests"),  # what this machine has doesn't matter
)

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# How long one example takes says more about the machine than about the code.
settings.register_profile("adept_ray", deadline=None)
settings.load_profile("adept_ray")

RAY = {"test_corpus", "test_crew", "test_end_to_end"}


def pytest_collection_modifyitems(items):
    """What starts Ray stays in one process, one test after the other; else a file does."""
    for item in items:
        name = Path(item.path).stem
        item.add_marker(pytest.mark.xdist_group("ray" if name in RAY else name))
