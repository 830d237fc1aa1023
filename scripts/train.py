"""Train at full length with what a search found, and export the model.

python scripts/train.py --config results/NAME/best.yaml --tokens 1000000
python scripts/train.py --config results/NAME/best.yaml --tokens 1000000000 --workers 8 --gpus-per-worker 1
"""

from adept_ray.commands.main import call_command

if __name__ == "__main__":
    call_command("train")
