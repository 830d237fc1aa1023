"""Choose anew among the trials of a finished search, by other weights; nothing is trained.

python scripts/pick.py results/NAME --general 0.7
python scripts/pick.py results/NAME --general 0.7 --min-gain-per-layer 0.5
"""

from adept_ray.commands.main import call_command

if __name__ == "__main__":
    call_command("pick")
