"""What of a corpus' rows is text, as the flags say; what can't be is refused before anything is read."""

import pytest

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.run import texts
from adept_ray.run.texts import check_text, describe_text


def test_each_side_has_its_own_column():
    """``text_column`` is for the side that has none, as in results from before there were two flags."""
    run = RunSpec(general="a.jsonl", domain="b.jsonl", text_column="body", domain_column="abstract")
    assert [check_text(run, side).column for side in ("general", "domain")] == ["body", "abstract"]
    assert check_text(RunSpec(), "general").column == "text"


def test_filters_stay_on_their_side():
    """A filter of one side takes nothing from the other."""
    run = RunSpec(general="a.jsonl", domain="b.jsonl", domain_filter="lang == 'en'")
    assert [check_text(run, side).filter for side in ("general", "domain")] == ["", "lang == 'en'"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"general_column": "{a"}, "--general-column {a: .*{{ and }} write a brace"),
        ({"text_column": "{a"}, "--text-column {a: "),
        ({"general_filter": "lang = 'en'"}, "--general-filter lang = 'en': .* a filter compares"),
        ({"general": "boolq", "general_column": "a"}, "--general-column a: 'boolq' is a preset"),
        ({"general": "boolq", "general_filter": "a == 1"}, "--general-filter a == 1: 'boolq' is a preset"),
    ],
)
def test_what_cannot_be_is_refused_with_its_flag(fields, sentence):
    """Known without looking at any file."""
    with pytest.raises(UserError, match=sentence):
        check_text(RunSpec(**{"general": "a.jsonl", **fields}), "general")


def test_a_chat_template_is_read_only_where_it_is_asked_for(monkeypatch):
    """Not for a preset, which has no chats, and not without the flag."""
    monkeypatch.setattr(texts, "read_chat_template", lambda backbone: f"of {backbone}")
    run = RunSpec(general="a.jsonl", chat="template")
    assert describe_text(run, "general", "mine").chat == "of mine"
    assert describe_text(run, "domain", "mine").chat is None
    assert describe_text(RunSpec(general="a.jsonl"), "general", "mine").chat is None
    with pytest.raises(UserError, match="no backbone"):
        describe_text(run, "general", None)
