"""Draw where models keep general and domain text apart: untouched, tuned without expansion, expanded.

python scripts/activations.py --config results/NAME/best.yaml
python scripts/activations.py --config results/NAME/best.yaml --test-tokens 16384 --originals-lr 0.0003
"""

from adept_ray.commands.main import call_command

if __name__ == "__main__":
    call_command("activations")
