"""Find how many layers to add: probe, search, choose, export.

python scripts/tune_k.py                                              # two CPUs, no GPU, no model hub
python scripts/tune_k.py --backbone qwen3-8b --domain medical-paper --seq-len 4096 --gpus-per-worker 1
python scripts/tune_k.py --name NAME --resume                         # after Ctrl-C or a crash
"""

from adept_ray.cli import main
from adept_ray.config import SearchRun

if __name__ == "__main__":
    main(SearchRun, "commands.find_k", __doc__)
