"""Filters on rows: what they take, and that nothing but a filter is one."""

from datetime import date

import pytest

from adept_ray.config.errors import UserError
from adept_ray.data.row_filters import RowFilter

ROW = {
    "lang": "en",
    "score": 0.7,
    "n": 3,
    "gone": False,
    "nothing": None,
    "tags": ["a", "b"],
    "day": date(2024, 7, 1),
    "meta": {"lang": "de", "from": "here"},
    "a-b": "odd",
}


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("lang == 'en' and score > 0.5", True),
        ("lang == 'de' or score > 0.5", True),
        ("not (lang == 'en' and n >= 3)", False),
        ("0.5 < score <= 0.7", True),
        ("0.5 < score < 0.7", False),
        ("n == 3.0 and n != -3", True),
        ("lang in ['de', 'en'] and n not in (1, 2)", True),
        ("'b' in tags and 'c' not in tags", True),
        ("'e' in lang", True),
        ("meta.lang == 'de' and meta['from'] == 'here' and tags[-1] == 'b'", True),
        ("row['a-b'] == 'odd'", True),
        ("not gone", True),
        ("nothing", False),
        ("nothing == None and nothing is None", True),
        ("nothing != 'x' and lang is not None", True),
        ("nothing > 1 or nothing < 1 or 'x' in nothing or nothing in ['x']", False),
        ("day > '2024-06-30' and day < '2024-07-02'", True),
        ("meta.lang != lang", True),
    ],
)
def test_a_filter_takes_what_it_says(text, taken):
    """As Python reads it; a null equals None alone, and a date compares with text."""
    assert RowFilter(text).takes("", ROW) is taken


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "lang.upper() == 'EN'",
        "len(lang) > 1",
        "[x for x in tags]",
        "(lambda: 1)() == 1",
        "n + 1 == 4",
        "9 ** 9 ** 9 > n",
        "f'{lang}' == 'en'",
        "(n := 3) == 3",
        "lang if gone else n",
        "tags[0:1] == 'a'",
        "lang = 'en'",
        "lang == 'en' && n",
        "lang == 'en' or 'de'",
        "lang = = 'en'",
        "x; y",
        "",
        "(" * 1000,
        "-" * 100_000 + "n",
        "\0",
    ],
    ids=lambda text: text[:20],
)
def test_nothing_else_is_a_filter(text):
    """Refused in one sentence before any row is seen: nothing is computed, called or run."""
    with pytest.raises(
        UserError, match="a filter compares columns with constants, such as lang == 'en'"
    ) as told:
        RowFilter(text)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lagn == 'en'", "f, row 1: no column 'lagn'; did you mean lang or"),
        ("meta.lagn == 'en'", "f, row 1: no column 'lagn' in 'meta'; did you mean lang?"),
        ("lang == en", "f, row 1: no column 'en'"),
        ("score > '0.5'", "f, row 1: the filter can't compare score = 0.7 (a number) with '0.5' (a text)"),
        ("lang > 3", "f, row 1: the filter can't compare lang = 'en' (a text) with 3 (a number)"),
        ("lang == 3", "f, row 1: the filter can't compare lang = 'en' (a text) with 3 (a number)"),
        ("n in ['a']", "f, row 1: the filter can't compare n = 3 (a number) with ['a'] (a list)"),
        ("1 in n", "can't compare 1 (a number) with n = 3 (a number)"),
        ("meta < tags", "can't compare meta = {'lang': 'de', 'from': 'here'} (a struct) with tags"),
        ("lang", "f, row 1: the filter compares 'lang' with nothing: it is 'en'"),
    ],
)
def test_a_filter_that_does_not_fit_a_row_is_refused(text, sentence):
    """It names the row, and the nearest column or both values; nothing counts as false in silence."""
    with pytest.raises(UserError) as told:
        RowFilter(text).takes("f, row 1", ROW)
    assert sentence in str(told.value) and "\n" not in str(told.value)


def test_a_text_without_quotes_is_explained():
    """It is taken for a column, which nobody meant."""
    with pytest.raises(UserError, match="a text stands in quotes"):
        RowFilter("lang == en").takes("", ROW)
