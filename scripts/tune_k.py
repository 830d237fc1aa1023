"""Find how many layers to add: probe, search, choose, export.

python scripts/tune_k.py                                              # two CPUs, no GPU, no model hub
python scripts/tune_k.py --backbone qwen3-8b --domain medical-paper   # sizes for one GPU of 80 GB
python scripts/tune_k.py --name NAME --resume                         # after Ctrl-C or a crash
python scripts/tune_k.py --name NAME --report-only                    # its report and model card again
"""

from adept_ray.config.specs import SearchRun
from adept_ray.run.flags import run_command

if __name__ == "__main__":
    run_command(SearchRun, "tune_k.find_k", __doc__)
