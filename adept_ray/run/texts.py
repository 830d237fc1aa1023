"""What of a corpus' rows is the text of a side, as the flags say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.data.chats import read_chat_template
from adept_ray.data.corpora import CORPORA
from adept_ray.data.loading import Backbone
from adept_ray.data.row_filters import parse_filter
from adept_ray.data.row_texts import TextRecipe, parse_column


def check_text(run: RunSpec, side: str) -> TextRecipe:
    """What of a row is the text of a side, as far as no tokenizer is needed for it.

    Raises :class:`UserError` for a column or filter that can't be read, and for one that a preset can't have.
    """
    column, rows = getattr(run, f"{side}_column"), getattr(run, f"{side}_filter")
    source = getattr(run, side)
    for name, given in (("column", column), ("filter", rows)):
        if given and source in CORPORA:
            raise UserError(
                f"--{side}-{name} {given}: '{source}' is a preset, whose text is fixed: leave that flag out, "
                f"or give --{side} a file, a folder or a hub dataset"
            )
    recipe = TextRecipe(column or run.text_column, rows)
    readers: list[tuple[str, Callable[[str], object], str]] = [
        (f"--{side}-column" if column else "--text-column", parse_column, recipe.column),
        (f"--{side}-filter", parse_filter, rows),
    ]
    for flag, read, given in readers:
        try:
            if given:
                read(given)
        except UserError as problem:
            raise UserError(f"{flag} {given}: {problem}") from None
    return recipe


def describe_text(run: RunSpec, side: str, backbone: Backbone | None) -> TextRecipe:
    """What of a row is the text of a side; with ``--chat template`` chats go by the backbone's template.

    Raises :class:`UserError` as :func:`check_text` does, and for a backbone without a template.
    """
    recipe = check_text(run, side)
    if run.chat == "plain" or getattr(run, side) in CORPORA:
        return recipe
    if backbone is None:
        raise UserError("--chat template: no backbone whose template could be taken")
    return replace(recipe, chat=read_chat_template(backbone))
