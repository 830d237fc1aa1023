"""chat.py: one question after another, to the untouched backbone and to the trained model."""

from __future__ import annotations

from adept_ray.config.model_specs import ChatRun
from adept_ray.run.chatting import ask_both, list_questions, load_pair, show_answers
from adept_ray.run.terminal import Display


def chat_with_both(run: ChatRun) -> None:
    """Have each question answered by both models, side by side. Raises :class:`UserError` for bad input."""
    display = Display(run.json_lines)
    pair = load_pair(run, display)
    for question in list_questions(run, display):
        answers = ask_both(pair, question, run)
        show_answers(display, question, answers)
