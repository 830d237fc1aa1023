"""Train at full length with what a search found, and export the model.

python scripts/train.py --config results/NAME/best.yaml --tokens 1000000
python scripts/train.py --config results/NAME/best.yaml --tokens 1000000000 --workers 8 --gpus-per-worker 1
"""

from adept_ray.config.specs import TrainRun
from adept_ray.run.flags import run_command

if __name__ == "__main__":
    run_command(TrainRun, "train.train_model", __doc__)
