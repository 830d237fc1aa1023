"""Look for what stands in the way of a search, on every node, and say how long it will take.

python scripts/doctor.py                                                      # what tune_k.py would do
python scripts/doctor.py --backbone qwen3-8b --domain medical-paper --workers 4   # takes its flags
python scripts/doctor.py --train-tokens 1000000                               # and the training after it
"""

from adept_ray.commands.main import call_command

if __name__ == "__main__":
    call_command("doctor")
