"""Chats as text: as the tokenizer writes them, or plainly."""

import pytest
from common import local_backbone, save_tiny_backbone
from transformers import AutoTokenizer

from adept_ray.config.errors import UserError
from adept_ray.data.chats import ChatTemplate, is_chat, join_turns, read_chat_template
from adept_ray.data.row_texts import TextRecipe

TEMPLATE = (
    "{%- for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}"
    "{%- if message.mood is defined %}!{% endif %}{% endfor %}"
)
TURNS = [
    {"role": "system", "content": "Be kind.", "mood": None},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
]
SHARED = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "hi"},
    {"from": "gpt", "value": "hello"},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return save_tiny_backbone(tmp_path_factory.mktemp("chats"))


@pytest.fixture
def written(place):
    """The tokenizer with a chat template or with several; what is read of it."""

    def write(template):
        tokenizer = AutoTokenizer.from_pretrained(place)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(place)
        return tokenizer, local_backbone(place)

    yield write
    (place / "chat_template.jinja").unlink(missing_ok=True)


def test_a_chat_is_what_the_tokenizer_makes_of_it(written):
    """The same characters, special tokens among them, whichever names its turns have; nulls are left out."""
    tokenizer, backbone = written(TEMPLATE)
    recipe = TextRecipe("chat", chat=read_chat_template(backbone))
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert "<|eos|>" in expected and "!" not in expected
    assert recipe.read("", {"chat": TURNS}) == recipe.read("", {"chat": SHARED}) == expected
    assert recipe.read("", {"chat": "a text"}) == "a text" and recipe.read("", {"chat": []}) == ""


def test_a_chat_is_the_same_tomorrow():
    """A template that writes the date writes one that stays, and the rest as ever."""
    template = "\n  {{ DATE }}: {{ messages[0].content }} {% if strftime_now is defined %}!{% endif %}"
    dated, fixed = (template.replace("DATE", date) for date in ("strftime_now('%d %b %Y')", "'26 Jul 2024'"))
    texts = [ChatTemplate(each).write(TURNS, "") for each in (dated, fixed)]
    assert texts == ["\n  26 Jul 2024: Be kind. !"] * 2


def test_a_chat_that_the_template_refuses_is_one_sentence():
    """It names file and row, and the template's own words."""
    strict = ChatTemplate("{{ raise_exception('roles must\nalternate') }}")
    with pytest.raises(
        UserError, match=r"line 2, column 'chat': .*refuses this chat: roles must alternate; leave"
    ):
        TextRecipe("chat", chat=strict).read("a.jsonl, line 2", {"chat": TURNS})


@pytest.mark.parametrize(
    ("template", "sentence"),
    [(None, "has no chat template"), ({"tool_use": TEMPLATE}, "none for usual chats")],
)
def test_a_backbone_without_a_template_is_refused(written, template, sentence):
    """Before any text is read, with what to do."""
    with pytest.raises(UserError, match=sentence) as told:
        read_chat_template(written(template)[1])
    assert "--chat plain" in str(told.value)


def test_turns_are_told_from_other_structs():
    """By the names that turns have; parts of a turn are joined."""
    assert is_chat(TURNS) and is_chat(SHARED) and not is_chat([{"name": "Ada"}]) and not is_chat("hi")
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, "b"]
    assert join_turns([{"role": "user", "content": parts}, {"role": "assistant", "content": None}]) == "ab\n"


@pytest.mark.parametrize(
    "others",
    [
        [{"role": "user", "text": "hello"}],
        [{"from": 0, "to": 5}],
        [{"value": "hello"}],
        [*TURNS, {"role": "user", "text": "hello"}],
    ],
)
def test_what_is_no_turn_is_refused_by_its_names(others):
    """A text under another name is never left out unsaid."""
    assert not is_chat(others)
    with pytest.raises(
        UserError, match=r"column 'chat' holds .*turns? .*role and content, or from and value"
    ):
        TextRecipe("chat").read("a.jsonl, line 2", {"chat": others})


def test_both_ways_read_the_same_text_of_a_turn():
    """Role and content go before what else it has; nulls are none; roles are mapped."""
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    mixed = [
        {"role": "human", "content": "What?", "value": 0.5},
        {"from": "gpt", "value": "The answer.", "role": None, "content": None},
        {"role": "assistant", "content": None, "tool_calls": [1]},
        {"role": "assistant", "tool_calls": [1]},
    ]
    assert is_chat(mixed) and join_turns(mixed) == "What?\nThe answer.\n\n"
    assert template.write(mixed[:2], "") == "user: What?\nassistant: The answer.\n"
