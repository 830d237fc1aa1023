"""Documents: the same ones from the same files everywhere; one sentence for what is wrong with a corpus."""

import gzip
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adept_ray.config.errors import UserError
from adept_ray.config.places import default_cache
from adept_ray.data import corpora
from adept_ray.data.corpora import CORPORA, resolve_corpus
from adept_ray.data.corpus_texts import load_generators, parse_hpo
from adept_ray.data.documents import list_matching_files, list_usable_files
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.shards import read_in_order


def texts(corpus) -> list[str]:
    return list(read_in_order(corpus.shards))


def refused(source: Path | str, tmp_path: Path, column: str | TextRecipe = "text") -> str:
    """What the user is told about a corpus that can't be used: one sentence, and nothing is left behind."""
    with pytest.raises(UserError) as caught:
        resolve_corpus(str(source), column, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.parquet"))
    return str(caught.value)


def put(path: Path, *rows: object) -> Path:
    """Write one JSON value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- local corpora --------------------------------------------------------------------------------


def test_every_kind_of_file_in_a_folder_is_read(tmp_path):
    """A folder is searched recursively; other kinds of files and hidden ones are left out, and named."""
    root = tmp_path / "corpus"
    put(root / "a.jsonl", {"text": "eins"}, {"text": " "}, {"text": None}, {"text": "zwei — ü"})
    (root / "b").mkdir()
    with gzip.open(root / "b" / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "drei"}\n\n{"text": "vier"}\n')
    pq.write_table(
        pa.table({"id": [1, 2], "text": pa.array(["fünf", None], pa.large_string())}), root / "c.parquet"
    )
    (root / "d.txt").write_bytes(b"\xef\xbb\xbfsechs\r\nnoch sechs\r\n \r\nsieben\n\n\nacht")
    (root / "README.md").write_text("no")
    put(root / ".ipynb_checkpoints" / "a.jsonl", {"text": "no"})
    corpus = resolve_corpus(str(root), "text", tmp_path / "cache")
    expected = ["eins", "zwei — ü", "drei", "vier", "fünf", "sechs\r\nnoch sechs", "sieben", "acht"]
    assert texts(corpus) == expected
    assert corpus.omitted == "left out: README.md, 1 hidden file"
    assert corpus.name == "corpus" and corpus.index.is_absolute()


def test_the_fingerprint_names_the_content(tmp_path):
    """A renamed corpus keeps its fingerprint; another word, order or text column gives another."""
    cache, rows = tmp_path / "cache", [{"text": "one", "body": "I"}, {"text": "two", "body": "II"}]
    sources = {
        "same": put(tmp_path / "a.jsonl", *rows),
        "renamed": put(tmp_path / "b.jsonl", *rows),
        "order": put(tmp_path / "c.jsonl", *rows[::-1]),
        "word": put(tmp_path / "d.jsonl", rows[0], {"text": "zwo", "body": "II"}),
    }
    prints = {name: resolve_corpus(str(path), "text", cache).fingerprint for name, path in sources.items()}
    prints["column"] = resolve_corpus(str(sources["same"]), "body", cache).fingerprint
    assert prints["same"] == prints.pop("renamed")
    assert len(set(prints.values())) == len(prints)


def test_the_fingerprint_of_a_plain_column_stays(tmp_path):
    """Corpora in caches, and results made from them, are found again by this version."""
    source = put(tmp_path / "a.jsonl", {"text": "one", "body": "two"})
    prints = [
        resolve_corpus(str(source), column, tmp_path / "cache").fingerprint for column in ("text", "body")
    ]
    assert prints == ["8696b0d8220d674d", "8e4115dadb6eb94a"]


ROWS = [
    {"q": "one?", "a": {"text": "yes"}, "lang": "en"},
    {"q": "zwei?", "a": {"text": "ja"}, "lang": "de"},
    {"q": None, "a": None, "lang": "en"},
    {"q": "three?", "a": None, "lang": "en"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_become_text_by_a_template_and_a_filter(kind, tmp_path):
    """Whatever the kind of file: structs are reached into, and rows without text are left out."""
    source = put(tmp_path / "a.jsonl", *ROWS)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), source := tmp_path / "a.parquet")
    recipe = TextRecipe("{q} {a.text}", "lang == 'en'")
    corpus = resolve_corpus(str(source), recipe, tmp_path / "cache")
    assert texts(corpus) == ["one? yes", "three?"]
    assert corpus.fingerprint != resolve_corpus(str(source), recipe.column, tmp_path / "cache").fingerprint


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (TextRecipe("{q} {aa}"), "1: no column 'aa'; did you mean a?"),
        (TextRecipe("q", "score > 1"), "1: no column 'score'; there are: a, lang, q (the filter names it"),
        (TextRecipe("q", "q > 1"), "1: the filter can't compare q = 'one?' (a text) with 1 (a number)"),
        (TextRecipe("q", "lang == 'fr'"), ": no row with text meets the filter lang == 'fr'"),
        (TextRecipe("a"), "1: column 'a' holds a struct; give one of its columns: a.text"),
    ],
    ids=lambda value: value.column + value.filter if isinstance(value, TextRecipe) else "",
)
def test_a_recipe_that_does_not_fit_is_refused(kind, recipe, sentence, tmp_path):
    """The sentence names file and row, and what would be right."""
    source = put(tmp_path / "a.jsonl", *ROWS)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), source := tmp_path / "a.parquet")
    said = refused(source, tmp_path, recipe)
    assert said.startswith(str(source)) and sentence in said


def test_files_without_columns_are_text(tmp_path):
    """A .txt file beside others is read whatever their column is; a filter may look at its text."""
    put(tmp_path / "corpus" / "a.jsonl", {"body": "a body", "text": "of another kind"})
    (tmp_path / "corpus" / "b.txt").write_text("one\n\ntwo")
    cache, root = tmp_path / "cache", str(tmp_path / "corpus")
    assert texts(resolve_corpus(root, "body", cache)) == ["a body", "one", "two"]
    assert texts(resolve_corpus(root, TextRecipe("body", "'o' in text"), cache)) == ["a body", "one", "two"]
    assert texts(resolve_corpus(root, TextRecipe("body", "'w' in text"), cache)) == ["two"]


def test_a_corpus_is_normalised_once(tmp_path, monkeypatch):
    """The second time, the corpus is found by its content and not written again."""
    source = put(tmp_path / "a.jsonl", {"text": "one"})
    first = resolve_corpus(str(source), "text", tmp_path / "cache")
    monkeypatch.setattr(corpora, "write_shards", None)
    assert resolve_corpus(str(source), "text", tmp_path / "cache") == first


GOOD = '{"text": "fine"}\n'
BROKEN = {
    "bytes.jsonl": (
        GOOD.encode() + b'{"text": "caf\xe9"}\n',
        r"bytes.jsonl, line 2: byte 14 \(0xe9\) is not UTF-8",
    ),
    "latin.txt": (b"caf\xe9", r"latin.txt, line 1: byte 4 \(0xe9\) is not UTF-8"),
    "half.jsonl.gz": (gzip.compress(GOOD.encode() * 99)[:-12], r"half.jsonl.gz: truncated or damaged gzip"),
    "not.jsonl.gz": (GOOD.encode(), r"not.jsonl.gz: truncated or damaged gzip"),
    "cut.parquet": (b"PAR1 and then nothing", r"cut.parquet: truncated or damaged Parquet"),
    "cut.jsonl": (
        (GOOD + '{"text": "fi').encode(),
        r"cut.jsonl, line 2: not valid JSON at column 10: Unterminated string",
    ),
    "deep.jsonl": (b"[" * 100_000, r"deep.jsonl, line 1: not readable JSON: nested too deeply"),
    "list.jsonl": (b'["fine"]\n', r"list.jsonl, line 1: must be a JSON object .*not a list"),
    "column.jsonl": (
        GOOD.encode() + b'{"body": "", "id": 1}',
        r"line 2: no column 'text'; there are: body, id",
    ),
    "number.jsonl": (b'{"text": 3}', r"number.jsonl, line 1: column 'text' must hold strings, not int"),
    "half.jsonl": (b'{"text": "\\ud83d"}', r"half.jsonl, line 1: .* surrogate"),
    "empty.jsonl": (b"", r"empty.jsonl: the file is empty"),
    "blank.txt": (b" \n\n\t\n", r"blank.txt: holds no documents"),
    "table.xls": (b"text\nfine\n", r"table.xls: not a supported kind of file; supported: .jsonl, "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(name, tmp_path):
    """The sentence names the file, the line and what is wrong."""
    content, sentence = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    assert re.search(sentence, refused(tmp_path / name, tmp_path))


def test_a_truncated_parquet_file_is_refused(tmp_path):
    """A Parquet file that was valid before it was cut is named as truncated."""
    pq.write_table(pa.table({"text": ["some words"] * 100}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    assert "a.parquet: truncated or damaged Parquet file" in refused(tmp_path / "a.parquet", tmp_path)


def test_parquet_columns_are_checked(tmp_path):
    """A missing column is answered with the ones there are; a column of numbers is refused."""
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet", tmp_path).endswith("no column 'text'; there are: body, id")
    assert refused(tmp_path / "a.parquet", tmp_path, "id").endswith(
        "a.parquet, row 1: column 'id' must hold strings, not int"
    )


def test_a_folder_without_text_is_refused(tmp_path):
    """A folder of other things is answered with the kinds that are supported."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.pdf").write_bytes(b"%PDF")
    assert "holds no file that can be read as text; supported: .jsonl" in refused(
        tmp_path / "corpus", tmp_path
    )


@pytest.mark.parametrize(
    "source", ["./medical", "/no/such", "a/b/c", "data/part.jsonl", "missing.txt", "~/nowhere"]
)
def test_a_missing_path_is_not_looked_up_on_the_hub(source, tmp_path):
    """What can only be a path is said to be missing."""
    assert refused(source, tmp_path) == f"{source}: no such file or folder"


@pytest.mark.parametrize(("source", "hint"), [("bolq", "did you mean boolq?"), ("", "known: boolq, math")])
def test_an_unknown_name_gets_the_nearest(source, hint, tmp_path):
    """A misspelt preset is answered with the nearest names."""
    assert f"unknown corpus '{source}': {hint}" in refused(source, tmp_path)


# --- presets --------------------------------------------------------------------------------------


def test_parse_hpo_are_unescaped_and_obsolete_terms_left_out():
    """Quotes come out as written, and only living terms with a definition count."""
    obo = (
        'format-version: 1.2\n\n[Term]\nid: 1\nname: Cough\ndef: "A \\"barking\\" one\\: loud." [x:1]\n\n'
        "[Term]\nid: 2\nname: No definition\n\n"
        '[Term]\nid: 3\nname: Old\ndef: "Gone." []\nis_obsolete: true\n\n'
        '[Term]\nid: 4\nname: Last\ndef: "The last." []\n\n'
        '[Typedef]\nid: t\nname: part\ndef: "Not a term." []\n'
    )
    assert list(parse_hpo(obo)) == ['Cough: A "barking" one: loud.', "Last: The last."]


def test_generators_are_loaded_without_the_package(tmp_path):
    """Only these files run, an installed package of that name is left alone, bad templates are left out."""
    (tmp_path / "utils.py").write_text("def format_number(n):\n    return str(n)\n")
    template = "def generate_{}(rng, difficulty):\n    return format_number({})\n"
    body = "from reasoning_gym.utils import format_number\n" + "".join(
        template.format(n, n) for n in (32, 4, 31)
    )
    (tmp_path / "some.py").write_text(body)
    installed = sys.modules.setdefault("reasoning_gym", SimpleNamespace())
    try:
        generators = load_generators(tmp_path / "utils.py", tmp_path / "some.py")
        assert [generate(None, 1.0) for generate in generators] == ["4", "31"]
        assert sys.modules["reasoning_gym"] is installed and "reasoning_gym.utils" not in sys.modules
    finally:
        del sys.modules["reasoning_gym"]


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "documents", "size", "start"),
    [
        ("boolq", 12_271, 7_228_159, "Home Run Derby -- "),
        ("medical", 16_949, 3_431_863, "Abnormality of body height: "),
        ("math", 8_000, 3_924_343, "Isabella can peel 4 mushrooms a minute"),
    ],
)
def test_a_preset_is_the_same_corpus_everywhere(name, documents, size, start):
    """The pinned packages give the same documents, byte for byte in number, on every machine."""
    corpus = resolve_corpus(name, "ignored", default_cache())
    found = texts(corpus)
    assert (len(found), sum(len(text.encode()) for text in found)) == (documents, size)
    assert len(set(found)) == len(found) and found[0].startswith(start)
    assert "Context (1)" not in "".join(found) and corpus.note == CORPORA[name].note


# --- the hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["owner/name", "owner/name:config", "medical-paper"])
def test_without_the_hub_the_sentence_says_so(source, tmp_path):
    """A hub dataset without network is one sentence, soon."""
    assert re.match(
        r"not all of '\w+/\w+' is in this machine's cache, and HF_HUB_OFFLINE ", refused(source, tmp_path)
    )


def write_line(path):
    """A file with one document, in a folder that is made."""
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"text": "a document"}\n')


def test_links_are_followed_once_or_named(tmp_path):
    """Files and folders behind links are read; what leads nowhere, in a circle or is no file is named."""
    write_line(tmp_path / "elsewhere" / "b.jsonl")
    write_line(tmp_path / "c.jsonl")
    root = tmp_path / "root"
    write_line(root / "a.jsonl")
    (root / "there").symlink_to(tmp_path / "elsewhere")
    (root / "file.jsonl").symlink_to(tmp_path / "c.jsonl")
    (root / "up").symlink_to(root)
    (root / "round").symlink_to(root / "round")
    (root / "gone.jsonl").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "pipe.jsonl")
    found = list_usable_files(root)
    assert [str(file.relative_to(root)) for file in found.usable] == [
        "a.jsonl",
        "file.jsonl",
        "there/b.jsonl",
    ]
    assert list(found.left_out) == [
        "gone.jsonl (a link to nothing)",
        "pipe.jsonl (no regular file)",
        "round (a link in a circle)",
        "up (a link to a folder read already)",
    ]
    globbed = list_matching_files(f"{root}/*.jsonl")
    assert "gone.jsonl (a link to nothing)" in globbed.left_out


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    """Its files would be missing without a word."""
    write_line(tmp_path / "a.jsonl")
    write_line(tmp_path / "locked" / "b.jsonl")
    listed = Path.iterdir

    def deny(folder):
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", deny)
    with pytest.raises(UserError, match="locked: there is no permission"):
        list_usable_files(tmp_path)


def test_large_files_of_one_size_and_time_are_different_corpora(tmp_path, monkeypatch):
    """As from reproducible archives, whose files are all of one time: neither gets the other's text."""
    monkeypatch.setattr(corpora, "FEW_BYTES", 0)
    found = []
    for name in ("general", "domain"):
        rows = [{"text": f"{number} {name:>7}"} for number in range(5000)]
        rows[2500:] = [{"text": f"{number} {'same':>7}"} for number in range(2500, 5000)]
        os.utime(put(tmp_path / name / "a.jsonl", *rows), (0, 0))
        found.append(resolve_corpus(str(tmp_path / name), "text", tmp_path / "cache", 10**6))
    assert found[0].fingerprint != found[1].fingerprint
    assert texts(found[0])[0] == "0 general" and texts(found[1])[0] == "0  domain"
    moved = (tmp_path / "general").rename(tmp_path / "moved")
    assert resolve_corpus(str(moved), "text", tmp_path / "cache", 10**6).fingerprint == found[0].fingerprint


@pytest.mark.parametrize("harm", ["deleted", "cut off"])
def test_lost_text_is_read_anew(tmp_path, monkeypatch, harm):
    """A file of documents that a cleaner took, or cut off: the same command heals it, records or not."""
    monkeypatch.setattr(corpora, "FEW_BYTES", 0)
    source = put(tmp_path / "a.jsonl", *({"text": f"{number} words"} for number in range(50)))
    made = resolve_corpus(str(source), "text", tmp_path / "cache", 10**6)
    lost, before = Path(made.shards[0].place), texts(made)
    lost.unlink() if harm == "deleted" else lost.write_bytes(lost.read_bytes()[:-1])
    with pytest.raises(UserError, match="give the command again"):
        _ = made.shards
    again = resolve_corpus(str(source), "text", tmp_path / "cache", 10**6)
    assert again == made and texts(again) == before


def test_text_lost_with_its_bucket_is_read_into_another(tmp_path, monkeypatch):
    """An index of this machine may name files of a place that is gone: noticed before anything is packed."""
    monkeypatch.setattr(corpora, "FEW_BYTES", 0)
    source = put(tmp_path / "a.jsonl", *({"text": f"{number} words"} for number in range(50)))
    corpus = corpora.find_corpus(str(source), "text", tmp_path / "cache", 10**6)
    for name in ("first", "second"):
        assert corpus.is_to_be_filled
        corpora.fill_corpus(corpus, shared=f"file://{tmp_path}/{name}")
        assert not corpus.is_to_be_filled and all(f"/{name}/" in shard.place for shard in corpus.shards)
        (tmp_path / name).rename(tmp_path / f"{name} gone")
