"""Every sentence that a command can end with: what is wrong, where, and what would be right."""

import ast
import re
from functools import cache
from pathlib import Path

import adept_ray

PACKAGE = Path(adept_ray.__file__).parent
KINDS = {"UserError", "BadContent", "UnfinishedRun"}
SETTINGS = "config"  # folder in which pydantic makes a UserError of a ValueError
HOLE = "{}"
# Words that tell nobody what is wrong, or that are ours or Python's alone.
VAGUE = re.compile(
    r"\b((?<!-)bad|illegal|oops|please|sorry|unexpected|failed to|cannot|NoneType|None|True|False|dict|tuple|"
    r"traceback|exception|assert\w*)\b|\w+(Error|Exception)\b"
)
# Signs of what to do: what stands behind a colon or in brackets, a flag, or a word that asks for something.
REMEDY = re.compile(
    r"[:;(] ?[\w`{'-]|--\w|`|"
    r"\b(give|must|at least|at most|needs?|supported|run|use|set|so|only|can be|known|takes|such as|lay|go)\b"
)


def find_texts(node):
    """The texts that an expression can give; what is put into them is a hole."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(part.value if isinstance(part, ast.Constant) else HOLE for part in parts)]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return [one + two for one in find_texts(left) for two in find_texts(right)]
        case ast.BoolOp(values=values):
            return [text for each in values for text in find_texts(each)]
        case ast.IfExp(body=body, orelse=other):
            return find_texts(body) + find_texts(other)
    return [HOLE]  # made elsewhere


@cache
def list_calls():
    """Every call in the package that makes an error, with its file."""
    return [
        (file, node)
        for file in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in KINDS | {"ValueError"}
    ]


@cache
def list_sentences():
    """Place in the code → a sentence that is made there, for all that are written where they are raised."""
    found = []
    for file, node in list_calls():
        name = file.relative_to(PACKAGE).as_posix()
        kinds = KINDS | ({"ValueError"} if name.startswith(SETTINGS) else set())
        if node.func.id in kinds and node.args:
            texts = (" ".join(text.split("\n")) for text in find_texts(node.args[0]))
            found += [(f"{name}:{node.lineno}", text) for text in texts if text.strip("{} :;()-")]
    return found


def list_breaches(is_right, but_for=()):
    """Those that a rule doesn't hold for, with their places, without those in files `but_for`."""
    named = [(place, text) for place, text in list_sentences() if not place.startswith(but_for)]
    return [f"{place}: {text}" for place, text in named if not is_right(text)]


def test_they_are_found():
    """Those of every kind, and each holds more than what is put into it."""
    assert len(list_sentences()) > 200
    assert {place.split("/")[0] for place, _ in list_sentences()} >= {
        "config",
        "data",
        "engine",
        "method",
        "run",
    }


def test_they_stand_behind_the_word_error():
    """They go on behind "error: ", and may be followed by more: no full stop, no break, no doubled space."""
    assert not list_breaches(lambda text: text == text.strip() and "  " not in text)
    assert not list_breaches(lambda text: not text.endswith((".", "!", "?", ":", ";", ",")))
    assert not list_breaches(lambda text: not text[:1].isupper() or text.startswith(("Ray", "ADEPT_RAY_")))


def test_they_use_words_that_say_something():
    """Not that something is bad, but what it is; no words of Python's."""
    assert not list_breaches(lambda text: not VAGUE.search(text))


def test_they_name_a_place():
    """A file, a flag, a setting, or or what the user gave; callers name it for some."""
    named_by_callers = ("config/", "data/row_texts.py", "method/")
    settings = ("ADEPT_RAY_", "placement ")
    assert not list_breaches(
        lambda text: HOLE in text or "--" in text or text.startswith(settings), named_by_callers
    )


def test_they_say_what_would_be_right():
    """By a remedy, a limit, or a need; that something is wrong isn't all."""
    assert not list_breaches(REMEDY.search)


def test_no_type_of_python_is_named():
    """That is for those who call the method from Python: users read what kind of value it is."""
    named = [
        f"{file.name}:{node.lineno}"
        for file, node in list_calls()
        if file.parent.name != "method" and node.func.id in KINDS and "__name__" in ast.unparse(node)
    ]
    assert not named
