"""What transformers says of a model's config.json that it refuses, in plain words.

Its configs are strict dataclasses of huggingface_hub, whose errors name types of Python.
"""

from __future__ import annotations

import ast
import json
import re

FIELD = re.compile(r"Validation error for field '(\w+)'")
RULE = "Class validation error"  # of what several fields together break
VALUE = re.compile(r"\(value: (.*)\)|with value (.*?) doesn't match", re.DOTALL)
WANTED = re.compile(r"any type in \((.*?)\)\. Errors|expected (?!one of)(.*?), got", re.DOTALL)
CHOICES = re.compile(r"expected one of \((.*?),?\), got")
PARAMETERS = re.compile(r"\[[^\[\]]*\]")  # as those of list[int]
# Type of Python → what somebody writes into a JSON file.
WORDS = {
    "bool": "true or false without quotes",
    "int": "a whole number such as 4",
    "float": "a number with a decimal point such as 1.0",
    "str": "a text in quotes",
    "list": "a list in [ ]",
    "tuple": "a list in [ ]",
    "Sequence": "a list in [ ]",
    "dict": "a mapping in { }",
    "NoneType": "null",
}


def explain_config_fault(problem: BaseException) -> str:
    """Which setting of a config has which value and what it must be; empty for other errors."""
    text = str(problem)
    if text.startswith(RULE):
        return f"config.json breaks a rule: {problem.__cause__ or text}".rstrip(".")
    if not (field := FIELD.search(text)):
        return ""
    value = VALUE.search(text)
    held = f"is {format_value(value[1] or value[2])}, but it " if value else ""
    wanted = list_wanted(text)
    return f"{field[1]} of config.json {held}must be {' or '.join(wanted) or 'of another kind'}"


def list_wanted(text: str) -> list[str]:
    """What a strict dataclass takes for a field, in plain words, by what it says of a wrong value."""
    found = WANTED.search(text)
    kinds = PARAMETERS.sub("", found[1] or found[2]) if found else ""
    choices = [f"one of {each[1]}" for each in CHOICES.finditer(text)]
    named = re.findall(r"\w+", kinds)
    return choices + list(dict.fromkeys(WORDS[name] for name in named if name in WORDS))


def format_value(written: str) -> str:
    """A value that Python wrote, as JSON writes it."""
    try:
        return json.dumps(ast.literal_eval(written), ensure_ascii=False)
    except (ValueError, SyntaxError, TypeError):  # it is no literal
        return written
