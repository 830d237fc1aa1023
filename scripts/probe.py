"""Stage 1 alone: how much each layer of a model matters on general text.

python scripts/probe.py                                   # two CPUs, no GPU, no model hub
python scripts/probe.py --backbone qwen3-8b --seq-len 4096 --gpus-per-worker 1
"""

from adept_ray.commands.main import call_command

if __name__ == "__main__":
    call_command("probe")
