"""One thread, no network and no stopwatch, fixed before torch and transformers are imported."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
)

import torch
from hypothesis import settings

torch.set_num_threads(1)
# How long one example takes says more about the machine than about the code.
settings.register_profile("adept_ray", deadline=None)
settings.load_profile("adept_ray")
