"""Score a model on benchmarks: accuracy on lm-eval tasks, beside what guessing gives.

python scripts/evaluate.py results/NAME/model                       # all tasks that need no hub
python scripts/evaluate.py qwen3-1.7b --tasks mmlu,cmmlu,gsm8k --items 500
python scripts/evaluate.py smollm2-135m --tasks offline_piqa --output piqa.json
"""

from adept_ray.commands.main import call_command

if __name__ == "__main__":
    call_command("evaluate")
