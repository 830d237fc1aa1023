"""Chats as text: their turns one after the other, or by a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from adept_ray.config.errors import UserError, shorten_error
from adept_ray.data.loading import Backbone, load_tokenizer

Turn = Mapping[str, object]
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}  # as ShareGPT has them
NAMES = ("role", "content"), ("from", "value")
"""How turns name their speaker and their text."""
FORMER = NAMES[1]
TURN = "turns of a chat have role and content, or from and value"
# Some templates write today's date. With this one a corpus has the same text tomorrow.
DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro %}\n"


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template."""

    text: str
    """In Jinja."""
    tokens: tuple[tuple[str, str], ...] = ()
    """Special tokens by the names that it knows them by."""

    def write(self, turns: Sequence[Turn], where: str) -> str:
        """A chat as the tokenizer writes it. Raises :class:`UserError` for one that the template refuses."""
        from transformers.utils.chat_template_utils import render_jinja_template

        # its own types are wrong
        render = cast("Callable[..., tuple[list[str], object]]", render_jinja_template)
        template = DATE + self.text if "strftime_now" in self.text else self.text
        chat = [name_speaker(turn) for turn in turns]
        try:
            texts, _ = render([chat], chat_template=template, **dict(self.tokens))
        except Exception as problem:  # whatever someone else's template raises
            raise UserError(
                f"{where}: the tokenizer's chat template refuses this chat: {shorten_error(problem)}; leave "
                "such rows out by a filter, or give --chat plain"
            ) from None
        return texts[0]


def name_speaker(turn: Turn) -> dict[str, object]:
    """A turn with role and content, as templates take it; nulls are left out, which many of them write."""
    speaker, content = find_names(turn) or NAMES[0]
    others = {str(key): value for key, value in turn.items() if value is not None and key not in FORMER}
    role = turn.get(speaker)
    named = {"role": ROLES.get(str(role), role), "content": turn.get(content)}
    return others | {key: value for key, value in named.items() if value is not None}


def find_names(turn: object) -> tuple[str, str] | None:
    """The names of a turn's speaker and of its text; None for what is no turn.

    A turn that calls tools may have no text.
    """
    if not isinstance(turn, Mapping):
        return None
    there = [names for names in NAMES if set(names) <= set(turn)]
    if not there and turn.get("tool_calls") and "role" in turn:
        return NAMES[0]
    return next((names for names in there if turn[names[0]] is not None), there[0] if there else None)


def is_chat(value: object) -> bool:
    """Whether it is a list of turns."""
    return isinstance(value, list) and all(map(find_names, value))


def join_turns(turns: Sequence[Turn]) -> str:
    """The texts of the turns, a line each."""
    return "\n".join(read_content(name_speaker(turn).get("content")) for turn in turns)


def read_content(content: object) -> str:
    """The text of a turn, which may come in parts."""
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        return "".join(str(part) for part in parts if part)
    return "" if content is None else str(content)


def read_chat_template(backbone: Backbone) -> ChatTemplate:
    """The chat template of a backbone's tokenizer. Raises :class:`UserError` if it has none."""
    tokenizer = load_tokenizer(backbone)
    if not tokenizer.chat_template:
        raise UserError(
            f"--chat template: the tokenizer of {backbone.name} has no chat template: take --chat plain, or "
            "a backbone whose tokenizer has one, as those trained on instructions have"
        )
    try:
        text = tokenizer.get_chat_template()
    except ValueError:
        raise UserError(
            f"--chat template: the tokenizer of {backbone.name} has several chat templates and none for "
            "usual chats: take --chat plain"
        ) from None
    return ChatTemplate(text, tuple(tokenizer.special_tokens_map.items()))
