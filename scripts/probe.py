"""Stage 1 alone: how much each layer of a model matters on general text.

python scripts/probe.py                                   # two CPUs, no GPU, no model hub
python scripts/probe.py --backbone qwen3-8b --seq-len 4096 --gpus-per-worker 1
"""

from adept_ray.config.specs import ProbeRun
from adept_ray.run.flags import run_command

if __name__ == "__main__":
    run_command(ProbeRun, "probe.probe_layers", __doc__)
