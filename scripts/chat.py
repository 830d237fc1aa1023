"""Ask the untouched backbone and the trained model the same questions, side by side.

python scripts/chat.py results/NAME                                 # one question after another
python scripts/chat.py results/NAME --prompt "What is a stroke?"
cat questions.txt | python scripts/chat.py results/NAME --max-new-tokens 64
"""

from adept_ray.commands.main import call_command

if __name__ == "__main__":
    call_command("chat")
