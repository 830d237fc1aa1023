"""What a user gets who gives no backbone and no corpora: the real ones."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.timeout(600)
def test_the_default_backbone_and_corpora_learn_medicine(tmp_path):
    """A short trial on the real default assets: the domain's bits per byte fall on the test split."""
    (tmp_path / "space.yaml").write_text("parameters: {k: {int: [1, 2]}, base_lr: {log: [0.002, 0.004]}}\n")
    flags = {
        "search-space": "space.yaml",
        "trials": 1,
        "tokens-per-trial": 2048,
        "reports": 1,
        "probe-tokens": 128,
    }
    flags |= {"validation-tokens": 512, "test-tokens": 512, "remeasure-tokens": 128, "name": "real"}
    command = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
    script = str(ROOT / "scripts" / "tune_k.py")
    done = subprocess.run([sys.executable, script, *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    best = yaml.safe_load((tmp_path / "results" / "real" / "best.yaml").read_text())
    assert best["test"]["domain"]["delta"] > 3
