"""Corpora by name, path or hub id, made readable once."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adept_ray.config.errors import UserError, suggest_names
from adept_ray.config.places import split_query, suggest_weight
from adept_ray.config.validation import fingerprint
from adept_ray.data.assets import fetch_asset, hash_file, show_progress
from adept_ray.data.corpus_presets import CORPORA
from adept_ray.data.documents import LocalFiles, list_matching_files, list_usable_files, read_documents
from adept_ray.data.formats import find_ending
from adept_ray.data.hub_corpora import HubSource
from adept_ray.data.local_corpora import LocalSource
from adept_ray.data.reading import FEW_BYTES, ReadingJob, Taken, read_source
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import Omissions, list_names
from adept_ray.data.sampled_sources import SampledSource, find_versions, keep_versions
from adept_ray.data.shards import CorpusIndex, TextShard, load_index, store_index, write_shards
from adept_ray.data.uri_corpora import UriSource

BUILDER_VERSION = 1  # part of every corpus fingerprint: raise it when documents would come out differently
HUB_VERSION = 3  # the same of corpora from the hub and from other places elsewhere
HUB_MARK = "hf:"
TEXT_BYTES = 256 * 2**20  # of a sample of which nobody says how much is needed
HUB_TEXT = re.compile(
    r"(?P<dataset>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(\[(?P<split>.+)\])?"
)
SPLIT = re.compile(r"[\w.-]+")
HERE = "file://"


@dataclass(frozen=True)
class SampleOrder:
    """Text of which a sample is to be read."""

    sources: tuple[SampledSource, ...]
    versions: tuple[str, ...]
    """The commit of each, or what else names what it holds."""
    text_bytes: int
    """How much is wanted of them all together, bytes of UTF-8."""
    kept: Path
    """File in which the versions are kept for a day on which nobody answers. Its folder's is the cache."""
    skip_bad: bool = False
    """Leave out members of archives that can't be read."""


@dataclass(frozen=True)
class CorpusFiles:
    """A corpus, whose documents are in files as :mod:`adept_ray.data.shards` writes them."""

    index: Path
    """File that lists these, once they are there."""
    fingerprint: str
    name: str
    note: str
    """Source, version and licence."""
    order: SampleOrder | None = field(default=None, compare=False)
    """What :func:`fill_corpus` makes the files of, if it is a sample."""
    left_out: tuple[str, ...] = field(default=(), compare=False)
    """Files in a folder of this machine that aren't read as text."""

    @property
    def is_to_be_filled(self) -> bool:
        """Whether its text is still elsewhere."""
        return self.order is not None and load_index(self.index) is None

    @property
    def shards(self) -> tuple[TextShard, ...]:
        """Its documents. Raises :class:`UserError` where they were deleted."""
        if index := load_index(self.index):
            return index.shards
        raise UserError(
            f"the text of '{self.name}' isn't whole any more: give the command again, and it is read anew"
        )

    @property
    def omitted(self) -> str:
        """What of it isn't read, in words; of a sample that is known once it is there."""
        beside = f"left out: {list_names(self.left_out)}" if self.left_out else ""
        index = load_index(self.index)
        return "; ".join(filter(None, (beside, *((index.omitted, index.used) if index else ()))))


def resolve_corpus(
    source: str, text: str | TextRecipe, cache: Path, text_bytes: int = TEXT_BYTES, made_from: str = ""
) -> CorpusFiles:
    """Make `source` readable, checking all of it, and say where it lies: :func:`find_corpus`, then filled."""
    fill_corpus(found := find_corpus(source, text, cache, text_bytes, made_from))
    return found


def find_corpus(
    source: str,
    text: str | TextRecipe,
    cache: Path,
    text_bytes: int = TEXT_BYTES,
    made_from: str = "",
    skip_bad: bool = False,
) -> CorpusFiles:
    """Find `source`, check as much of it as is at hand, and say where it lies.

    `source` is a name of :data:`CORPORA`; else a file, a folder (searched recursively) or a glob of this
    machine, of files of :data:`~adept_ray.data.formats.FORMATS`; else the URI of such; else a hub dataset
    ``owner/name:config@revision[split]``, of which all but the name may be missing, with ``hf:`` before it
    also where there is a folder of that name. `text` says what of a row of a table is its text: a column or
    template, or all that a recipe holds. Blank documents are left out, and with `skip_bad` members of
    archives that can't be read. A corpus is made once, and found again by its content. Of what lies
    elsewhere, and of files of more than FEW_BYTES, a sample of about `text_bytes` is taken, by
    :func:`fill_corpus`; here its first document is read. A sample in the cache whose fingerprint is
    `made_from`, that of earlier results, is taken unasked.

    Raises :class:`UserError` for an unknown source and for the first thing wrong inside it.
    """
    cache = cache.absolute()  # other processes read it from elsewhere
    recipe = text if isinstance(text, TextRecipe) else TextRecipe(text)
    if source in CORPORA and recipe.filter:
        raise UserError(
            f"the corpus '{source}' takes no filter such as {recipe.filter}: filters are for files and "
            "hub datasets"
        )
    if source in CORPORA and CORPORA[source].build:
        return _build_preset(source, cache)
    forced = source.startswith(HUB_MARK) and "://" not in source
    if not forced and source not in CORPORA and (found := _find_local(source)):
        root, files = found
        if sum(file.stat().st_size for file in files.usable) <= FEW_BYTES:
            return _build_from_files(root, files, recipe, cache, skip_bad)
        local = LocalSource(root, files, recipe)
        order = _order_text((local,), text_bytes, skip_bad, cache, made_from)
        return replace(_name_order(root.name or str(root), order), left_out=files.left_out)
    sources, note = _find_dataset(source, recipe) if forced else _find_elsewhere(source, recipe)
    return _name_order(source, _order_text(sources, text_bytes, skip_bad, cache, made_from), note)


def _find_local(source: str) -> tuple[Path, LocalFiles] | None:
    """A file, a folder or a glob of this machine, and its files; None for what isn't there."""
    path = Path(source.removeprefix(HERE)).expanduser()
    if source and path.exists():
        return path, list_usable_files(path)
    if glob.has_magic(str(path)) and any(glob.iglob(str(path), recursive=True)):
        return path, list_matching_files(str(path))
    return None


def _find_dataset(source: str, recipe: TextRecipe) -> tuple[tuple[SampledSource, ...], str]:
    """The hub dataset that is meant whatever lies here. Raises :class:`UserError`."""
    if asked := HUB_TEXT.fullmatch(source.removeprefix(HUB_MARK)):
        return (_name_dataset(asked, recipe),), ""
    raise UserError(f"{source}: a hub dataset is written hf:owner/name:config@revision[split]")


def _find_elsewhere(source: str, recipe: TextRecipe) -> tuple[tuple[SampledSource, ...], str]:
    """What a text names that isn't of this machine, and the note of a preset. Raises :class:`UserError`."""
    if source in CORPORA:
        return CORPORA[source].hub, CORPORA[source].note
    if "://" in source and not source.startswith(HERE):
        return (UriSource(source, recipe),), ""
    asked = HUB_TEXT.fullmatch(source)
    if asked and not source.startswith((".", "/", "~")) and not find_ending(source):
        return (_name_dataset(asked, recipe),), ""
    if (
        source.startswith((".", "/", "~", HERE))
        or "/" in source
        or find_ending(source)
        or glob.has_magic(source)
    ):
        raise UserError(f"{source}: no such file or folder{suggest_weight(source)}")
    raise UserError(
        f"unknown corpus '{source}': {suggest_names(source, CORPORA)} (a file, a folder, a glob, a URI or a "
        "hub dataset owner/name will do as well)"
    )


def _name_dataset(asked: re.Match[str], recipe: TextRecipe) -> HubSource:
    """The hub dataset that a text names. Raises :class:`UserError` for a part of a split."""
    split = asked["split"] or "train"
    if not SPLIT.fullmatch(split):
        first = SPLIT.match(split)
        whole = f"{asked[0].removesuffix(f'[{split}]')}[{first[0] if first else 'train'}]"
        raise UserError(
            f"{asked[0]}: neither a part of a split nor several can be asked for: write {whole}, of which a "
            "sample is read, as much as is needed"
        )
    revision = asked["revision"] or ""
    return HubSource(
        asked["dataset"], (recipe.column,), asked["config"], split, given=recipe, revision=revision
    )


def _build_preset(name: str, cache: Path) -> CorpusFiles:
    preset = CORPORA[name]
    assert preset.build is not None
    made_of = fingerprint(name, BUILDER_VERSION, [asset.member_sha256 for asset in preset.assets])
    corpus = CorpusFiles(_locate_index(cache, f"{name}-{made_of}"), made_of, name, preset.note)
    if load_index(corpus.index) is None:
        paths = [fetch_asset(asset, cache) for asset in preset.assets]
        _write_corpus(show_progress(preset.build(paths), f"building corpus {name}"), corpus.index)
    return corpus


def _build_from_files(
    root: Path, found: LocalFiles, recipe: TextRecipe, cache: Path, skip_bad: bool
) -> CorpusFiles:
    files = found.usable
    digests = [hash_file(file) for file in show_progress(files, f"reading {root}", len(files))]
    # without file names: a moved or renamed corpus is still the same corpus
    kinds = [find_ending(file.name) for file in files]
    asked = (recipe.identity, digests, kinds, *name_skipping(skip_bad))
    made_of = fingerprint("files", BUILDER_VERSION, *asked, *name_containers(kinds))
    note = f"{root} ({len(files)} file{'s' * (len(files) > 1)})"
    index = _locate_index(cache, made_of)
    corpus = CorpusFiles(index, made_of, root.name or str(root), note, left_out=found.left_out)
    if load_index(index) is None:
        omissions = Omissions(skip_bad)
        documents = show_progress(read_documents(files, recipe, omissions), f"reading {root}")
        if not _write_corpus(documents, index, omissions):
            raise UserError(f"{root}: {recipe.refusal}")
    return corpus


def _locate_index(cache: Path, made_of: str) -> Path:
    """Where the list of a corpus's files lies."""
    return cache / "corpora" / f"{made_of}.json"


def _write_corpus(documents: Iterable[str], path: Path, omissions: Omissions | None = None) -> int:
    """Write documents that this process reads, and their index last; returns how many aren't blank."""
    folder = path.with_suffix("")
    shards, _ = write_shards(documents, lambda number: f"{folder}/{number:06d}.parquet")
    if shards:
        store_index(CorpusIndex(tuple(shards), omissions.describe() if omissions else ""), path)
    return len(shards)


def name_containers(kinds: Sequence[str]) -> list[str]:
    """What names corpora of containers, of which an earlier version may have lost damaged parts unsaid."""
    parts = {part for kind in kinds for part in kind.split(".")}
    return ["whole"] if parts & {"tar", "zip", "xz", "wet", "warc"} else []


def name_skipping(skip_bad: bool) -> list[str]:
    """What names a corpus, besides what it is made of, where bad members of archives are skipped."""
    return ["skip bad"] if skip_bad else []


def _order_text(
    sources: tuple[SampledSource, ...], text_bytes: int, skip_bad: bool, cache: Path, made_from: str
) -> SampleOrder:
    """What is to be read of some places: in the versions of earlier results, else in their last ones."""
    asked = fingerprint("revisions", HUB_VERSION, text_bytes, *(source.identity for source in sources))
    how = text_bytes, cache / "corpora" / f"{asked}.json", skip_bad
    if made_from and (earlier := load_index(_locate_index(cache, made_from))):
        order = SampleOrder(sources, earlier.versions, *how)
        if name_content(order) == made_from:
            return order
    return SampleOrder(sources, tuple(find_versions(sources, how[1])), *how)


def name_content(order: SampleOrder) -> str:
    """The fingerprint of the text that an order makes."""
    sources = (source.identity for source in order.sources)
    asked = (order.text_bytes, *sources, *order.versions, *name_skipping(order.skip_bad))
    return fingerprint("hub", HUB_VERSION, *asked)


def _name_order(name: str, order: SampleOrder, note: str = "") -> CorpusFiles:
    """The corpus that an order makes; its first documents are read now, unless it is there."""
    made_of = name_content(order)
    each = list(zip(order.sources, order.versions, strict=True))
    versions = ", ".join(f"{split_query(source.place)[0]}@{version[:12]}" for source, version in each)
    index = order.kept.with_name(f"{made_of}.json")
    note = f"{note}; {versions}" if note else versions
    corpus = CorpusFiles(index, made_of, split_query(name)[0], note, order)
    if corpus.is_to_be_filled:
        for source, version in each:
            source.check(version)
    return corpus


def fill_corpus(
    corpus: CorpusFiles, update: Callable[[int, int], None] = lambda done, of: None, shared: str = ""
) -> None:
    """Read a sample, unless it is there. Much of it is read by Ray, which must run then, on all nodes.

    Each of its sources gives an equal share of the text; what one lacks, those named before it give. Its text
    is kept behind a URI, `shared`, or else in the cache, and a larger sample begins with what is there.
    `update` hears of the bytes that are there, and of those that were ordered. Raises :class:`UserError` for
    what can't be had or read.
    """
    if not corpus.is_to_be_filled:
        return
    order = corpus.order
    assert order is not None
    taken = list(_take_text(order, shared or str(order.kept.parent.parent), update))
    shards = [shard for each in taken for shard in each.shards]
    if not shards:
        raise UserError(f"{order.sources[0].name}: holds no documents, only blank text: give other text")
    omitted = "; ".join(filter(None, (each.omissions.describe() for each in taken)))
    used = "; ".join(filter(None, (each.describe() for each in taken)))
    store_index(CorpusIndex(tuple(shards), omitted, used, order.versions), corpus.index)
    if corpus.is_to_be_filled:
        raise UserError(
            f"the text of '{corpus.name}' isn't whole though it was just read: give a --cache that all nodes "
            "reach, a shared folder or a URI"
        )
    keep_versions(order.versions, order.kept)


def _take_text(order: SampleOrder, place: str, update: Callable[[int, int], None]) -> Iterator[Taken]:
    """What is read of each source, of the last one first, until there is as much text as was ordered."""
    left = order.text_bytes
    for number in reversed(range(len(order.sources))):
        source, version = order.sources[number], order.versions[number]
        omissions = Omissions(order.skip_bad)
        if (limit := left // (number + 1)) <= 0:
            continue
        made_of = source.identity, version, order.skip_bad
        folder = f"{place}/text/{fingerprint('text', HUB_VERSION, *made_of)}"
        with source.explain_errors():
            readers = source.open_readers(version, omissions)
        job = ReadingJob(source, readers, omissions, folder, limit)

        def hear(size: int, before: int = order.text_bytes - left) -> None:
            update(min(order.text_bytes, before + size), order.text_bytes)

        taken = read_source(job, hear)
        left -= taken.bytes
        yield taken
