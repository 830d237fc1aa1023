"""Compare ADEPT with its rivals at equal tokens: train, score, and say who wins.

python scripts/compare.py                                             # all methods, two CPUs, an hour or two
python scripts/compare.py --methods adept full lora --seeds 2 --rate-trials 3
python scripts/compare.py --methods adept adept:placement=stratified adept:normalization=minmax
python scripts/compare.py --name NAME --resume                        # after Ctrl-C or a crash
"""

from adept_ray.commands.main import call_command

if __name__ == "__main__":
    call_command("compare")
