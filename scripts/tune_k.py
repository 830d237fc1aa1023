"""Find how many layers to add: probe, search, choose, export.

python scripts/tune_k.py                                              # two CPUs, no GPU, no model hub
python scripts/tune_k.py --backbone qwen3-8b --domain medical-paper   # sizes for one GPU of 80 GB
python scripts/tune_k.py --name NAME --resume                         # after Ctrl-C or a crash
python scripts/tune_k.py --name NAME --report-only                    # its report and model card again
"""

from adept_ray.commands.main import call_command

if __name__ == "__main__":
    call_command("tune-k")
