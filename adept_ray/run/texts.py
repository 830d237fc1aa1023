"""The text of a side: its corpora, and what of their rows is text, as the flags say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.data.chats import read_chat_template
from adept_ray.data.corpora import CORPORA, CorpusFiles, find_corpus
from adept_ray.data.loading import Backbone
from adept_ray.data.mixing import MixedCorpus, number_names
from adept_ray.data.near_duplicates import check_near_duplicates
from adept_ray.data.packing import DOMAIN_SPLITS, GENERAL_SPLITS
from adept_ray.data.row_filters import parse_filter
from adept_ray.data.row_texts import TextRecipe, parse_column

BYTES_A_TOKEN = 6  # more than tokenizers of large vocabularies make of any language's prose
STEP_BYTES = 64 * 2**20  # so that runs of about the same size read the same text


def check_text(run: RunSpec, side: str) -> TextRecipe:
    """What of a row is the text of a side, as far as no tokenizer is needed for it.

    Raises :class:`UserError` for a column or filter that can't be read, for one that a preset can't have, and
    for near-duplicates without the package that finds them.
    """
    check_near_duplicates(run.near_duplicates)
    column, rows = getattr(run, f"{side}_column"), getattr(run, f"{side}_filter")
    for name, given in (("column", column), ("filter", rows)):
        if given and has_presets_alone(run, side):
            raise UserError(
                f"--{side}-{name} {given}: '{getattr(run, side)}' is a preset, whose text is fixed: leave "
                f"that flag out, or give --{side} a file, a folder or a hub dataset"
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


def has_presets_alone(run: RunSpec, side: str) -> bool:
    """Whether all corpora of a side are presets, whose text is fixed."""
    return all(part.place in CORPORA for part in run.corpora[side].parts)


def describe_text(run: RunSpec, side: str, backbone: Backbone | None) -> TextRecipe:
    """What of a row is the text of a side; with ``--chat template`` chats go by the backbone's template.

    Raises :class:`UserError` as :func:`check_text` does, and for a backbone without a template.
    """
    recipe = check_text(run, side)
    if run.chat == "plain" or has_presets_alone(run, side):
        return recipe
    if backbone is None:
        raise UserError("--chat template: this command has no backbone with a template, so give --chat plain")
    return replace(recipe, chat=read_chat_template(backbone))


def find_text(
    run: RunSpec, side: str, train_tokens: int, began: Mapping[str, str], backbone: Backbone | None
) -> MixedCorpus:
    """The corpora of a side, those of earlier results if there are some. Raises :class:`UserError`.

    The tokenizer of the `backbone` has the chat template, where one is asked for.
    """
    mixture, text = run.corpora[side], describe_text(run, side, backbone)
    names = number_names(f"{side} corpus", len(mixture.parts))
    found = []
    for what, part, share in zip(names, mixture.parts, mixture.shares, strict=True):
        size = count_text_bytes(run, side, train_tokens, share)
        corpus = find_corpus(
            part.place, text, run.machine.local_cache, size, began.get(what, ""), run.skip_bad
        )
        check_unchanged(what, corpus, began)
        found.append(corpus)
    return MixedCorpus(tuple(found), mixture.shares)


def count_text_bytes(run: RunSpec, side: str, train_tokens: int, part: float = 1.0) -> int:
    """Bytes of text into which a run's tokens of that side go, whatever the tokenizer; whole 64 MiB.

    Of a corpus that gives `part` of them.
    """
    splits = GENERAL_SPLITS if side == "general" else DOMAIN_SPLITS
    wanted = {
        "probe": run.probe_tokens,
        "train": train_tokens,
        "validation": run.validation_tokens,
        "test": run.test_tokens,
    }
    tokens = part * max(wanted[split] / share for split, share in splits.items())
    return STEP_BYTES * math.ceil(tokens * BYTES_A_TOKEN / STEP_BYTES)


def check_unchanged(what: str, source: Backbone | CorpusFiles, began: Mapping[str, str]) -> None:
    """Refuse another backbone or corpus than earlier results were made from. Raises :class:`UserError`."""
    if began.get(what, source.fingerprint) != source.fingerprint:
        raise UserError(
            f"the {what} '{source.name}' has changed since the earlier results were made, so new ones can't "
            "be compared with them: put back what it was, or begin again under another --name"
        )
