"""Corpora by name, path or hub id, made readable once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adept_ray.config.errors import UserError, suggest_names
from adept_ray.config.validation import fingerprint
from adept_ray.data.assets import fetch_asset, hash_file, show_progress
from adept_ray.data.corpus_presets import CORPORA
from adept_ray.data.documents import (
    EXTENSIONS,
    find_extension,
    list_usable_files,
    read_documents,
    write_corpus,
)
from adept_ray.data.hub import HUB_ID
from adept_ray.data.hub_corpora import (
    HubSource,
    check_source,
    find_revisions,
    keep_revisions,
    sample_documents,
)
from adept_ray.data.row_texts import TextRecipe

BUILDER_VERSION = 1  # part of every corpus fingerprint: raise it when documents would come out differently
HUB_VERSION = 2  # the same of corpora from the hub
HUB_MARK = "hf:"
TEXT_BYTES = 256 * 2**20  # of a hub corpus of which nobody says how much is needed


@dataclass(frozen=True)
class HubOrder:
    """Text that is to be read from the hub."""

    sources: tuple[HubSource, ...]
    revisions: tuple[str, ...]
    """The commit of each."""
    text_bytes: int
    """How much is wanted of them all together, bytes of UTF-8."""
    kept: Path
    """File in which the commits are kept for a day without the hub."""


@dataclass(frozen=True)
class CorpusFiles:
    """A corpus: Parquet files with one string column ``text``."""

    files: tuple[Path, ...]
    fingerprint: str
    name: str
    note: str
    """Source, version and licence."""
    order: HubOrder | None = field(default=None, compare=False)
    """What :func:`fill_corpus` makes the file of, if it comes from the hub."""

    @property
    def is_to_be_filled(self) -> bool:
        """Whether its text is still on the hub."""
        return self.order is not None and not self.files[0].exists()


def resolve_corpus(
    source: str, text: str | TextRecipe, cache: Path, text_bytes: int = TEXT_BYTES, made_from: str = ""
) -> CorpusFiles:
    """Make `source` readable, checking all of it, and say where it lies: :func:`find_corpus`, then filled."""
    fill_corpus(found := find_corpus(source, text, cache, text_bytes, made_from))
    return found


def find_corpus(
    source: str, text: str | TextRecipe, cache: Path, text_bytes: int = TEXT_BYTES, made_from: str = ""
) -> CorpusFiles:
    """Find `source`, check as much of it as is at hand, and say where it lies.

    `source` is a name of :data:`CORPORA`; else an existing file or folder (searched recursively) of
    .jsonl, .jsonl.gz, .parquet and .txt, where blank lines separate the documents of a .txt file;
    else a hub dataset ``owner/name`` or ``owner/name:config``, with ``hf:`` before it also where there is a
    folder of that name. `text` says what of a row is its text in .jsonl, .parquet and hub datasets: a column
    or template, or all that a recipe holds. Blank documents are left out. A corpus is made once, and found
    again by its content. Of the hub a sample of about `text_bytes` is taken from the ``train`` split, by
    :func:`fill_corpus`; here its first document is read. A sample in the cache whose fingerprint is
    `made_from`, that of earlier results, is taken unasked.

    Raises :class:`UserError` for an unknown source and for the first thing wrong inside it.
    """
    path, cache = Path(source).expanduser(), cache.absolute()  # other processes read it from elsewhere
    recipe = text if isinstance(text, TextRecipe) else TextRecipe(text)
    if source in CORPORA:
        preset = CORPORA[source]
        if recipe.filter:
            raise UserError(
                f"the corpus '{source}' takes no filter such as {recipe.filter}: filters are for files and "
                "hub datasets"
            )
        if preset.build is None:
            order = _order_from_hub(source, preset.hub, cache, text_bytes, made_from)
            return _name_order(source, order, cache, preset.note)
        return _build_preset(source, cache)
    forced = source.startswith(HUB_MARK) and "://" not in source
    if source and not forced and path.exists():
        return _build_from_files(path, recipe, cache)
    if forced:
        source = source.removeprefix(HUB_MARK)
    elif source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(EXTENSIONS):
        raise UserError(f"{source}: no such file or folder")
    if HUB_ID.fullmatch(source):
        dataset, _, config = source.partition(":")
        sources = (HubSource(dataset, (recipe.column,), config or None, given=recipe),)
        return _name_order(source, _order_from_hub(source, sources, cache, text_bytes, made_from), cache)
    raise UserError(
        f"unknown corpus '{source}': {suggest_names(source, CORPORA)} (a file, a folder or a hub dataset "
        "owner/name will do as well)"
    )


def _build_preset(name: str, cache: Path) -> CorpusFiles:
    preset = CORPORA[name]
    assert preset.build is not None
    made_of = fingerprint(name, BUILDER_VERSION, [asset.member_sha256 for asset in preset.assets])
    path = cache / "corpora" / f"{name}-{made_of}.parquet"
    if not path.exists():
        paths = [fetch_asset(asset, cache) for asset in preset.assets]
        write_corpus(show_progress(preset.build(paths), f"building corpus {name}"), path, f"corpus {name}")
    return CorpusFiles((path,), made_of, name, preset.note)


def _build_from_files(root: Path, recipe: TextRecipe, cache: Path) -> CorpusFiles:
    files = list_usable_files(root)
    digests = [hash_file(file) for file in show_progress(files, f"reading {root}", len(files))]
    # without file names: a moved or renamed corpus is still the same corpus
    kinds = [find_extension(file) for file in files]
    made_of = fingerprint("files", BUILDER_VERSION, recipe.identity, digests, kinds)
    path = cache / "corpora" / f"{made_of}.parquet"
    if not path.exists():
        documents = (text for file in files for text in read_documents(file, recipe))
        write_corpus(show_progress(documents, f"reading {root}"), path, str(root), recipe.refusal)
    return CorpusFiles(
        (path,), made_of, root.name or str(root), f"{root} ({len(files)} file{'s' * (len(files) > 1)})"
    )


def _order_from_hub(
    name: str, sources: tuple[HubSource, ...], cache: Path, text_bytes: int, made_from: str
) -> HubOrder:
    """What is to be read of hub datasets: at the commits of earlier results, else at their last ones."""
    asked = fingerprint("revisions", HUB_VERSION, text_bytes, *(source.identity for source in sources))
    kept, earlier = (cache / "corpora" / f"{each}.json" for each in (asked, made_from or asked))
    if made_from and earlier.exists() and earlier.with_suffix(".parquet").exists():
        order = HubOrder(sources, tuple(json.loads(earlier.read_text())), text_bytes, kept)
        if name_content(order) == made_from:
            return order
    return HubOrder(sources, tuple(find_revisions(sources, kept)), text_bytes, kept)


def name_content(order: HubOrder) -> str:
    """The fingerprint of the text that an order makes."""
    sources = (source.identity for source in order.sources)
    return fingerprint("hub", HUB_VERSION, order.text_bytes, *sources, *order.revisions)


def _name_order(name: str, order: HubOrder, cache: Path, note: str = "") -> CorpusFiles:
    """The corpus that an order makes; its first documents are read now, unless it is there."""
    made_of = name_content(order)
    path = cache / "corpora" / f"{made_of}.parquet"
    versions = ", ".join(
        f"{source.dataset}@{sha[:12]}" for source, sha in zip(order.sources, order.revisions, strict=True)
    )
    if not path.exists():
        for source, revision in zip(order.sources, order.revisions, strict=True):
            check_source(source, revision)
    return CorpusFiles((path,), made_of, name, f"{note}; {versions}" if note else versions, order)


def fill_corpus(corpus: CorpusFiles, update: Callable[[int, int], None] = lambda done, of: None) -> None:
    """Read a corpus from the hub, unless it is there or comes from elsewhere.

    Each of its datasets gives an equal share of the text; what one lacks, those named before it give.
    `update` hears of the bytes that are there, and of those that were ordered. Raises :class:`UserError` for
    what can't be had or read.
    """
    if not corpus.is_to_be_filled:
        return
    (path,), order = corpus.files, corpus.order
    assert order is not None
    write_corpus(_take_texts(order, update), path, f"hub dataset {corpus.name}")
    for kept in (path.with_suffix(".json"), order.kept):
        keep_revisions(order.revisions, kept)


def _take_texts(order: HubOrder, update: Callable[[int, int], None]) -> Iterator[str]:
    """Documents of all sources, the last source's first, until there is as much text as was ordered."""
    left = order.text_bytes
    for number in reversed(range(len(order.sources))):
        share = left // (number + 1)
        for text in sample_documents(order.sources[number], order.revisions[number]):
            yield text
            size = len(text.encode())
            share, left = share - size, left - size
            update(min(order.text_bytes, order.text_bytes - left), order.text_bytes)
            if share <= 0:
                break
