"""From a row to its text: by a column, a path, a template; what is no text is one sentence."""

import pickle

import pytest

from adept_ray.config.errors import UserError
from adept_ray.data.chats import ChatTemplate
from adept_ray.data.row_texts import TextRecipe, parse_column
from adept_ray.data.table_readers import choose_columns

ROW = {
    "question": "why?",
    "answer": "so",
    "year": 2024,
    "kept": True,
    "nothing": None,
    "blank": "  ",
    "tags": ["a", "b"],
    "meta": {"abstract": "short", "authors": [{"name": "Ada"}, {"name": "Bo"}]},
    "meta.abstract": None,
    "flat.name": "flat",
    "turns": [{"from": "human", "value": "hi"}, {"role": "assistant", "content": "hello"}],
}


def read(column, row=ROW, **fields):
    return TextRecipe(column, **fields).read("a.jsonl, line 3", row)


def refused(column, row=ROW):
    """What is said of a row, or of a column that can't be read."""
    with pytest.raises(UserError) as told:
        read(column, row)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("question", "why?"),
        ("nothing", ""),
        ("meta.authors[1].name", "Bo"),
        ("meta.authors[-1].name", "Bo"),
        ("meta.authors[7].name", ""),
        ("tags[0]", "a"),
        ("nothing.inside", ""),
        ("flat.name", "flat"),
        ("meta.abstract", ""),
        ("turns", "hi\nhello"),
    ],
)
def test_a_column_or_a_path_finds_its_text(column, text):
    """A null, or the end of a list, is an empty text; a column of exactly that name goes before a path."""
    assert read(column) == text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{question}\n{answer}", "why?\nso"),
        (r"{question}\n\t{answer}", "why?\n\tso"),
        (r"{answer}\\nabla \alpha", r"so\nabla \alpha"),
        ("{{{answer}}}: {year}", "{so}: 2024"),
        ("{meta.authors[0].name}: {answer}", "Ada: so"),
        ("Q: {nothing} A: {answer}", "Q:  A: so"),
        ("Q: {nothing} A: {blank}", ""),
        ("{turns}!", "hi\nhello!"),
    ],
)
def test_a_template_is_filled(template, text):
    """Numbers become text; where no column has any the row has none, whatever the template writes around."""
    assert read(template) == text


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ("questoin", "a.jsonl, line 3: no column 'questoin'; did you mean question?"),
        ("{questoin}", "a.jsonl, line 3: no column 'questoin'; did you mean question?"),
        ("meta.autors", "a.jsonl, line 3: no column 'autors' in 'meta'; did you mean authors?"),
        ("meta.authors[0].nam", "no column 'nam' in 'meta.authors[0]'; did you mean name?"),
        ("answer.text", "no column 'text' in 'answer', which holds a text, no struct"),
        ("answer[0]", "column 'answer' is no list: it holds a text"),
        ("meta", "column 'meta' holds a struct; give one of its columns: meta.abstract, meta.authors"),
        ("{meta}", "column 'meta' holds a struct; give one of its columns: meta.abstract, meta.authors"),
        ("meta.authors", "'meta.authors' holds structs; give one of its columns: meta.authors[0].name"),
        ("tags", "column 'tags' must hold strings, not list"),
        ("year", "column 'year' must hold strings, not int"),
        ("{kept}", "column 'kept' must hold strings, not bool"),
    ],
)
def test_what_is_no_text_is_refused(column, sentence):
    """The sentence names file, row and column, and what would be right: a struct is never printed."""
    assert sentence in refused(column)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{question", "{{ and }} write a brace"),
        ("question}", "{{ and }} write a brace"),
        ("{}", "braces hold a column or a path alone"),
        ("{question!r}", "braces hold a column or a path alone"),
        ("{year:x}", "braces hold a column or a path alone"),
        ("{{question}}", "names a column at least"),
    ],
)
def test_a_template_that_cannot_be_read_is_refused(template, sentence):
    """Known from its text alone; a template formats nothing and calls nothing."""
    with pytest.raises(UserError, match=sentence):
        parse_column(template)


def test_a_path_reaches_into_data_and_not_into_objects():
    """What Python has under such a name is no column."""
    assert "no column '__class__' in 'answer'" in refused("{answer.__class__}")


def test_the_columns_that_must_be_read_are_known():
    """Those of a template's paths and of the filter, each once, with the paths: a column may be named so."""
    recipe = TextRecipe(
        "{meta.abstract} {turns[0].value} {meta.authors[0].name}", "lang == 'en' and meta.x > 1"
    )
    paths = ["meta.abstract", "turns[0].value", "meta.authors[0].name", "lang", "meta.x"]
    assert recipe.columns == paths and choose_columns(["meta", "lang", "turns"], paths) == [
        "meta",
        "turns",
        "lang",
    ]
    assert TextRecipe().columns == ["text"]


def test_only_what_changes_the_text_changes_the_name():
    """A plain column names a corpus as it always did; filter and chat template are part of the name."""
    recipes = [
        TextRecipe(),
        TextRecipe("body"),
        TextRecipe(filter="a == 1"),
        TextRecipe(chat=ChatTemplate("{{ messages }}")),
        TextRecipe(chat=ChatTemplate("{{ messages }}", (("eos_token", "<e>"),))),
    ]
    assert TextRecipe("body").identity == "body"
    assert len({repr(recipe.identity) for recipe in recipes}) == len(recipes)


def test_a_recipe_can_be_sent_to_workers():
    """Also after it was used."""
    recipe = TextRecipe("{question}", "year > 2000")
    assert recipe.takes("", ROW) and recipe.read("", ROW)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
