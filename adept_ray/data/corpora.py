"""Corpora by name, path or hub id, made readable once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adept_ray.config.errors import UserError, suggest_names
from adept_ray.config.validation import fingerprint
from adept_ray.data.assets import Asset, fetch_asset, hash_file, show_progress
from adept_ray.data.corpus_texts import (
    BOOLQ,
    GSM_00_49,
    GSM_50_99,
    GSM_UTILS,
    HPO,
    PUBMEDQA,
    build_boolq,
    build_math,
    build_medical,
    describe_assets,
)
from adept_ray.data.documents import (
    EXTENSIONS,
    find_extension,
    list_usable_files,
    read_documents,
    write_corpus,
)
from adept_ray.data.hub import HUB_ID
from adept_ray.data.hub_corpora import HubSource, find_revisions, stream_documents

BUILDER_VERSION = 1  # part of every corpus fingerprint: raise it when documents would come out differently


@dataclass(frozen=True)
class CorpusFiles:
    """A corpus ready to read: Parquet files with one string column ``text``."""

    files: tuple[Path, ...]
    fingerprint: str
    name: str
    note: str
    """Source, version and licence."""


@dataclass(frozen=True)
class CorpusPreset:
    """A corpus with a name: built from pinned assets, or streamed from the hub."""

    note: str
    assets: tuple[Asset, ...] = ()
    build: Callable[[list[Path]], Iterator[str]] | None = None
    hub: tuple[HubSource, ...] = ()


def resolve_corpus(source: str, text_column: str, cache: Path, max_documents: int = 200_000) -> CorpusFiles:
    """Make `source` readable, checking all of it, and say where it lies.

    `source` is a name of :data:`CORPORA`; else an existing file or folder (searched recursively) of
    .jsonl, .jsonl.gz, .parquet and .txt, where blank lines separate the documents of a .txt file;
    else a hub dataset ``owner/name`` or ``owner/name:config``, of whose ``train`` split the first
    `max_documents` are taken. `text_column` names the text in .jsonl, .parquet and hub datasets.
    Blank documents are left out. A corpus is made once, and found again by its content.

    Raises :class:`UserError` for an unknown source and for the first thing wrong inside it.
    """
    path, cache = Path(source).expanduser(), cache.absolute()  # other processes read it from elsewhere
    if source in CORPORA:
        return _build_preset(source, cache, max_documents)
    if source and path.exists():
        return _build_from_files(path, text_column, cache)
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(EXTENSIONS):
        raise UserError(f"{source}: no such file or folder")
    if HUB_ID.fullmatch(source):
        dataset, _, config = source.partition(":")
        return _build_from_hub(
            source, (HubSource(dataset, (text_column,), config or None),), cache, max_documents
        )
    raise UserError(
        f"unknown corpus '{source}': {suggest_names(source, CORPORA)} (a file, a folder or a hub dataset "
        "owner/name will do as well)"
    )


def _build_preset(name: str, cache: Path, max_documents: int) -> CorpusFiles:
    preset = CORPORA[name]
    if preset.build is None:
        return _build_from_hub(name, preset.hub, cache, max_documents, preset.note)
    build = preset.build
    made_of = fingerprint(name, BUILDER_VERSION, [asset.member_sha256 for asset in preset.assets])
    path = cache / "corpora" / f"{name}-{made_of}.parquet"
    if not path.exists():
        paths = [fetch_asset(asset, cache) for asset in preset.assets]
        write_corpus(show_progress(build(paths), f"building corpus {name}"), path, f"corpus {name}")
    return CorpusFiles((path,), made_of, name, preset.note)


def _build_from_files(root: Path, column: str, cache: Path) -> CorpusFiles:
    files = list_usable_files(root)
    digests = [hash_file(file) for file in show_progress(files, f"reading {root}", len(files))]
    # without file names: a moved or renamed corpus is still the same corpus
    made_of = fingerprint("files", BUILDER_VERSION, column, digests, [find_extension(file) for file in files])
    path = cache / "corpora" / f"{made_of}.parquet"
    if not path.exists():
        documents = (text for file in files for text in read_documents(file, column))
        write_corpus(show_progress(documents, f"reading {root}"), path, str(root))
    return CorpusFiles(
        (path,), made_of, root.name or str(root), f"{root} ({len(files)} file{'s' * (len(files) > 1)})"
    )


CORPORA: dict[str, CorpusPreset] = {
    "boolq": CorpusPreset(describe_assets(BOOLQ), (BOOLQ,), build_boolq),
    "medical": CorpusPreset(describe_assets(HPO, PUBMEDQA), (HPO, PUBMEDQA), build_medical),
    "math": CorpusPreset(describe_assets(GSM_UTILS), (GSM_UTILS, GSM_00_49, GSM_50_99), build_math),
    # The paper's corpora. Ids, files and columns were read from the dataset cards and from public
    # code that reads them; how English.zip is laid out inside, and whether the health part of
    # IndustryInstruction marks its (mixed English and Chinese) rows by language, could not be checked.
    "medical-paper": CorpusPreset(
        "MMedC (English, CC BY-NC-SA 4.0), IndustryInstruction (health and medicine, Apache-2.0), "
        "MMedBench (English training questions, CC BY-NC 4.0)",
        hub=(
            HubSource("Henrychur/MMedC", member="**/*.txt::English.zip"),
            HubSource("BAAI/IndustryInstruction_Health-Medicine", ("conversations",)),
            HubSource(
                "Henrychur/MMedBench",
                ("question", "options", "answer", "rationale"),
                member="MMedBench/Train/English.jsonl::MMedBench.zip",
            ),
        ),
    ),
    "math-paper": CorpusPreset(
        "OpenWebMath (ODC-By 1.0), AceReason-Math (CC BY 4.0)",
        hub=(
            HubSource("open-web-math/open-web-math"),
            HubSource("nvidia/AceReason-Math", ("problem", "answer")),
        ),
    ),
}


def _build_from_hub(
    name: str, sources: tuple[HubSource, ...], cache: Path, max_documents: int, note: str = ""
) -> CorpusFiles:
    asked = fingerprint("revisions", BUILDER_VERSION, max_documents, *map(repr, sources))
    revisions = find_revisions(sources, cache / "corpora" / f"{asked}.json")
    made_of = fingerprint("hub", BUILDER_VERSION, max_documents, *map(repr, sources), *revisions)
    path = cache / "corpora" / f"{made_of}.parquet"
    if not path.exists():
        share = max(1, max_documents // len(sources))
        texts = (
            t
            for s, revision in zip(sources, revisions, strict=True)
            for t in stream_documents(s, revision, share)
        )
        write_corpus(
            show_progress(texts, f"streaming {name}", share * len(sources)), path, f"hub dataset {name}"
        )
    versions = ", ".join(f"{s.dataset}@{sha[:12]}" for s, sha in zip(sources, revisions, strict=True))
    return CorpusFiles((path,), made_of, name, f"{note}; {versions}" if note else versions)
