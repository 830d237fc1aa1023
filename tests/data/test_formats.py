"""Formats: the same documents from every one of them, packed or not; one sentence for a file that is none."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import sys
import tarfile
import zipfile

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from adept_ray.config.errors import UserError
from adept_ray.data import text_readers
from adept_ray.data.archives import ZipReader, open_reader
from adept_ray.data.corpora import find_corpus, resolve_corpus
from adept_ray.data.documents import list_matching_files, list_usable_files
from adept_ray.data.formats import FORMATS, find_ending, select_files
from adept_ray.data.opening import COMPRESSIONS, locate_content
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import Omissions, iterate_pieces, read_all, sample_pieces, sample_rows
from adept_ray.data.shards import read_in_order

TEXTS = ['one "quoted", ü', "two\nlines"]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
TABLE = pa.Table.from_pylist(ROWS)
PARAGRAPH = "Some words of the main text stand here, in a paragraph that is long enough to be one."
MAIN = "\n".join(f"{PARAGRAPH} It is number {number}." for number in range(6))
PAGE = "<html><body><nav><ul><li><a href='/'>menu</a></li></ul></nav><article>"
PAGE += "".join(f"<p>{line}</p>" for line in MAIN.split("\n")) + "</article></body></html>"


def in_memory(write):
    content = io.BytesIO()
    write(content)
    return content.getvalue()


def arrow_stream(file):
    with pa.ipc.new_stream(file, TABLE.schema) as writer:
        writer.write_table(TABLE)


def table(delimiter):
    quoted = [[str(row["id"]), '"' + row["text"].replace('"', '""') + '"'] for row in ROWS]
    return "".join(delimiter.join(fields) + "\n" for fields in [["id", "text"], *quoted]).encode()


def warc(kind):
    """A file of one page and of what isn't read, as ``warcio`` writes it."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    def write(file):
        writer = WARCWriter(file, gzip=False)
        add(writer, "http://a/robots", "text/plain", b"User-agent: *", "resource")
        if kind == ".wet":
            add(writer, "http://a", "text/plain", MAIN.encode(), "conversion")
        else:
            add(writer, "http://a", "text/html", PAGE.encode(), "response")

    def add(writer, url, form, payload, record):
        headers = StatusAndHeaders("200 OK", [("Content-Type", form)], protocol="HTTP/1.0")
        writer.write_record(
            writer.create_warc_record(
                url, record, io.BytesIO(payload), http_headers=headers if record == "response" else None
            )
        )

    return in_memory(write)


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FILES = {  # name → its content and the documents in it
    "a.jsonl": (LINES, TEXTS),
    "a.ndjson": (LINES, TEXTS),
    "array.json": (json.dumps(ROWS, indent=1).encode(), TEXTS),
    "object.json": (json.dumps(ROWS[1]).encode(), TEXTS[1:]),
    "lines.json": (LINES, TEXTS),
    "a.csv": (b"\xef\xbb\xbf" + table(","), TEXTS),
    "a.tsv": (table("\t"), TEXTS),
    "a.parquet": (in_memory(lambda file: pq.write_table(TABLE, file)), TEXTS),
    "a.feather": (in_memory(lambda file: pyarrow.feather.write_feather(TABLE, file)), TEXTS),
    "stream.arrow": (in_memory(arrow_stream), TEXTS),
    "a.txt": ("one\nstill one\n\ntwo ü".encode(), ["one\nstill one", "two ü"]),
    "a.md": (b"# Title\n\nwords", ["# Title\n\nwords"]),
    "a.html": (PAGE.encode(), [MAIN]),
    "a.htm": (PAGE.encode(), [MAIN]),
    "a.warc": (warc, [MAIN]),
    "a.wet": (warc, [MAIN]),
}
OPTIONAL = {".html": "trafilatura", ".htm": "trafilatura", ".warc": "warcio", ".wet": "warcio"}
PACK = {
    "": bytes,
    ".gz": lambda raw: b"".join(
        map(gzip.compress, (raw[:9], raw[9:]))
    ),  # of several parts, as WARC files are
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
}


def content_of(name):
    """The content of one of FILES, and its documents; skips the test where its reader isn't installed."""
    ending = find_ending(name)
    if ending in OPTIONAL:
        pytest.importorskip(OPTIONAL[ending])
        pytest.importorskip("trafilatura")
    content, documents = FILES[name]
    return (content(ending) if callable(content) else content), documents


def texts(corpus):
    return list(read_in_order(corpus.shards))


def read(path, tmp_path, **how):
    return resolve_corpus(str(path), "text", tmp_path / "cache", **how)


def refused(path, tmp_path):
    """What is said of a corpus that can't be used: one line, and nothing is written."""
    with pytest.raises(UserError) as told:
        find_corpus(str(path), "text", tmp_path / "cache")
    assert "\n" not in str(told.value) and not list((tmp_path / "cache").rglob("*.parquet"))
    return str(told.value)


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path, members):
    with tarfile.open(path, "w:" + path.suffix[1:].replace("tar", "")) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


# --- every format, packed or not --------------------------------------------------------------------


def test_every_format_has_its_case():
    """A reader that is added is tested here, in all compressions."""
    assert {find_ending(name) for name in FILES} == set(FORMATS) and set(PACK) - {""} == set(COMPRESSIONS)


@pytest.mark.parametrize("name", FILES)
def test_a_format_is_read_packed_or_not(name, tmp_path):
    """The same documents, whatever the compression."""
    content, documents = content_of(name)
    for ending, pack in PACK.items():
        (tmp_path / f"{name}{ending}").write_bytes(pack(content))
        reader = open_reader(locate_content(str(tmp_path / f"{name}{ending}")), Omissions())
        assert [row["text"].strip() for _, row in read_all(reader, ["text"])] == documents


@pytest.mark.parametrize("archive", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_an_archive_is_read_by_the_readers_of_what_is_in_it(archive, tmp_path):
    """Members in their order, packed ones too; a .txt is one document there; others are named."""
    members = {
        "b/a.jsonl": LINES,
        "b/two.txt": b"one\n\nstill one",
        "c.parquet": FILES["a.parquet"][0],
        "d.csv.gz": gzip.compress(table(",")),
        "d.pdf": b"%PDF",
    }
    path = (zipped if archive == "a.zip" else tarred)(tmp_path / archive, members)
    corpus = read(path, tmp_path)
    assert texts(corpus) == [*TEXTS, "one\n\nstill one", *TEXTS, *TEXTS]
    assert corpus.omitted == f"left out: {path}, d.pdf"


def test_packed_tars_have_short_endings():
    """And endings are small letters or not."""
    assert [find_ending(name) for name in ("A.TGZ", "b.Jsonl.ZST", "c.zip.gz", "d.pdf", ".csv")] == [
        ".tar.gz",
        ".jsonl.zst",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize("splits", [["train", "test"], ["train"], ["a", "b"], []])
def test_what_save_to_disk_wrote_is_read(splits, tmp_path):
    """Its rows, of several splits the one for training; without one the folders to choose from are named."""
    rows = datasets.Dataset.from_list(ROWS)
    saved = datasets.DatasetDict(dict.fromkeys(splits, rows)) if splits else rows
    saved.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / ("train" if "train" in splits else "") / "cache-0.arrow").write_bytes(b"old")
    if splits == ["a", "b"]:
        assert "no split 'train'; give the folder of one: a, b" in refused(tmp_path / "saved", tmp_path)
        return
    corpus = read(tmp_path / "saved", tmp_path)
    assert texts(corpus) == TEXTS and "cache-0.arrow" in corpus.omitted
    assert ("split test" in corpus.omitted) == ("test" in splits)


# --- which files of a folder --------------------------------------------------------------------------


def test_no_file_is_passed_over_in_silence():
    """Those that aren't read are named; what describes a corpus is none of it."""
    found = select_files(["README.md", "a.jsonl", "b/c.pdf", "b/d.md", ".git/x.json", "b/_SUCCESS"])
    assert found.usable == ("a.jsonl", "b/d.md")
    assert found.left_out == ("README.md", "b/c.pdf", "b/_SUCCESS", "1 hidden file")


def test_a_glob_names_files(tmp_path):
    """Through folders, in their order; what it matches and isn't text is named; nothing is one sentence."""
    for name in ("b/1.jsonl.zst", "b/c/2.jsonl.zst", "b/3.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PACK[".zst" * name.endswith(".zst")](LINES))
    (tmp_path / "b" / "x.doc").write_text("no")
    assert texts(read(tmp_path / "**" / "*.jsonl.zst", tmp_path)) == TEXTS * 2
    assert texts(read(f"file://{tmp_path}/b/*", tmp_path)) == TEXTS * 3
    corpus = read(tmp_path / "b" / "*.*", tmp_path)
    assert texts(corpus) == TEXTS * 2 and corpus.omitted == "left out: x.doc"
    with pytest.raises(UserError, match=r"\*\.csv: no such file or folder"):
        read(tmp_path / "*.csv", tmp_path)


def test_a_glob_chooses_as_a_folder_does(tmp_path):
    """Each file once; what describes a corpus, hidden copies and what lies beside saved rows are left out."""
    for name in ("a.jsonl", "b/c.jsonl", "README.md", "b/.d.jsonl", "s/data.arrow", "s/state.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    read_once = [tmp_path / "a.jsonl", tmp_path / "b/c.jsonl", tmp_path / "s/data.arrow"]
    for found in (
        list_usable_files(tmp_path),
        *(list_matching_files(f"{tmp_path}/{pattern}") for pattern in ("*", "**/*", "**")),
    ):
        assert sorted(file.resolve() for file in found.usable) == read_once and "README.md" in found.left_out


def test_a_state_of_ones_own_is_text():
    """Only beside saved rows it says something about them."""
    names = ["a/state.json", "a/dataset_info.json", "b/state.json", "b/x.arrow", "c/dataset_dict.json"]
    found = select_files(names)
    assert found.usable == ("a/state.json", "a/dataset_info.json", "b/x.arrow", "c/dataset_dict.json")


# --- refusals -----------------------------------------------------------------------------------------

BROKEN = {
    "cut.json": (b'[{"text": "a"}, {"text": "b', r"cut.json, row 2: not valid JSON: Unterminated string"),
    "open.json": (b'[{"text": "a"}, ', r"open.json: breaks off after row 1, within the array"),
    "bad.json": (b'[{"text": "a"}, {"text": oh, "and": "more that follows"}]', r"bad.json, row 2: not valid"),
    "values.json": (b"[1, 2]", r"values.json, row 1: must be a JSON object .*, not a number"),
    "latin.json": (b'{"text": "caf\xe9"}', r"latin.json: holds bytes that are not UTF-8"),
    "long.csv": (b"id,text\n1,a\n2,b,c\n", r"long.csv, row 2: 3 fields where the first line names 2"),
    "open.csv": (b'id,text\n1,"a\n', r"open.csv, row 1: no valid table: unexpected end of data"),
    "twice.csv": (b"text,text\na,b\n", r"twice.csv: its first line names a column twice: text, text"),
    "cut.arrow": (FILES["stream.arrow"][0][:-60], r"cut.arrow: truncated or damaged Arrow file"),
    "cut.feather": (FILES["a.feather"][0][:-9], r"cut.feather: truncated or damaged Arrow file"),
    "cut.parquet.gz": (gzip.compress(FILES["a.parquet"][0])[:-9], r"parquet.gz: truncated or damaged gzip"),
    "cut.txt.zst": (PACK[".zst"](b"words " * 99)[:-9], r"cut.txt.zst: truncated or damaged zstd file"),
    "cut.txt.xz": (lzma.compress(b"words " * 99)[:-9], r"cut.txt.xz: truncated or damaged xz file"),
    "cut.txt.bz2": (bz2.compress(b"words " * 99)[:-9], r"cut.txt.bz2: truncated or damaged bz2 file"),
    "not.zip": (b"PK no", r"not.zip: truncated or damaged zip file"),
    "not.tar": (b"no" * 600, r"not.tar: truncated or damaged tar file"),
    "not.md": (b"caf\xe9", r"not.md: byte 4 \(0xe9\) is not UTF-8"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(name, tmp_path):
    """The sentence names the file, the row and what is wrong."""
    content, sentence = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / name, tmp_path)


def test_the_same_column_is_asked_of_every_file(tmp_path):
    """Where files of a folder differ, the sentence names the file, the row and the columns that it has."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.jsonl").write_bytes(LINES)
    (tmp_path / "c" / "b.csv").write_text("id,body\n1,words\n")
    assert refused(tmp_path / "c", tmp_path).endswith("b.csv, row 1: no column 'text'; there are: body, id")


@pytest.mark.parametrize("kind", [zipped, tarred])
def test_a_bad_member_is_refused_or_skipped_and_counted(kind, tmp_path):
    """By its name and by the flag that skips it; what it lacks is said ever after."""
    members = {"a.jsonl": LINES, "b.txt": b"caf\xe9", "c.csv.gz": b"no gzip", "d.txt": b"words"}
    path = kind(tmp_path / ("a.zip" if kind is zipped else "a.tar"), members)
    said = refused(path, tmp_path)
    assert f"{path}, b.txt: byte 4 (0xe9) is not UTF-8 (--skip-bad" in said
    for _ in range(2):  # the second time it is in the cache
        corpus = find_corpus(str(path), "text", tmp_path / "cache", skip_bad=True)
        assert texts(corpus) == [*TEXTS, "words"]
        assert (
            "2 bad members of archives skipped, the first: " in corpus.omitted and "b.txt" in corpus.omitted
        )
    good = find_corpus(str(kind(path, {"a.jsonl": LINES})), "text", tmp_path / "cache")
    assert good.omitted == ""


@pytest.mark.parametrize("kind", [zipped, tarred])
def test_only_bad_content_is_skipped(kind, tmp_path, monkeypatch):
    """A package that isn't installed is asked for, and a place that fails is told; neither goes i."""
    path = kind(tmp_path / ("a.zip" if kind is zipped else "a.tar"), {"a.html": b"x", "b.txt": b"words"})
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(UserError, match=r"pip install trafilatura$"):
        find_corpus(str(path), "text", tmp_path / "cache", skip_bad=True)
    omissions = Omissions(skip_bad=True)

    def fail():
        raise UserError("s3://b/a.zip: can't be reached: timed out")
        yield

    with pytest.raises(UserError, match=r"timed out$"):
        list(omissions.guard(fail()))
    assert omissions.bad == [] and not list((tmp_path / "cache").rglob("*.parquet"))


@pytest.mark.parametrize("byte", [29, 31, 33])
def test_a_list_of_members_that_hides_some_is_damaged(byte, tmp_path):
    """A length that is too large, of a name, an addition or a comment, swallows other members."""
    path = zipped(tmp_path / "a.zip", {f"{at}.txt": b"words" for at in range(4)})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + byte - 1] += 51  # an entry takes so many bytes
    path.write_bytes(raw)
    assert "a.zip: truncated or damaged zip file" in refused(path, tmp_path)


def test_no_part_of_an_xz_file_is_passed_over(tmp_path):
    """What follows its first part is read, zeros between parts left out; or the file is damaged."""
    first, second = (lzma.compress(line + b"\n") for line in LINES.splitlines())
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(first + bytes(4) + second)
    assert texts(read(path, tmp_path)) == TEXTS
    path.write_bytes(first + b"X" + second)
    with pytest.raises(UserError, match="truncated or damaged xz file"):
        read(path, tmp_path)


def test_a_damaged_member_of_a_zip_is_named(tmp_path):
    """Its checksum tells; so does a password that it wants."""
    path = zipped(tmp_path / "a.zip", {"a.txt": random.Random(0).randbytes(99).hex()})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"a.txt") + 20
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    assert "a.zip, a.txt: truncated or damaged" in refused(path, tmp_path)
    path = zipped(tmp_path / "b.zip", {"b.txt": b"words"})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    assert "b.zip, b.txt: can't be unpacked without a password" in refused(path, tmp_path)


def test_a_damaged_tar_is_never_taken_for_a_shorter_one(tmp_path):
    """A header with a wrong byte, an end in or before a header, or more behind the end: none goes unsaid."""
    whole = tarred(tmp_path / "a.tar", {f"{at}.txt": b"words" for at in range(4)}).read_bytes()
    path, second = tmp_path / "b.tar", 1024  # a header and a block of content come before
    joined = whole.rstrip(b"\0") + bytes(2048) + whole
    flipped = whole[:second] + b"X" + whole[second + 1 :]
    for damaged in (flipped, whole[: second + 100], whole[:second], whole[: 4 * second], joined):
        path.write_bytes(damaged)
        said = refused(path, tmp_path)
        assert "truncated or damaged tar file" in said or "goes on behind its end" in said
    packed = tmp_path / "c.tar.gz"
    packed.write_bytes(gzip.compress(whole)[:-8] + bytes(8))
    assert "truncated or damaged gzip file" in refused(packed, tmp_path)


@pytest.mark.parametrize("kind", [zipped, tarred])
def test_an_archive_without_text_is_refused(kind, tmp_path):
    """With the formats that there are."""
    path = kind(tmp_path / ("a.zip" if kind is zipped else "a.tar"), {"a.pdf": b"%PDF", "b.zip": b"PK"})
    assert "holds no file that can be read as text; supported: .jsonl" in refused(path, tmp_path)


@pytest.mark.parametrize(("name", "package"), [("a.html", "trafilatura"), ("a.warc.gz", "warcio")])
def test_a_reader_that_is_not_installed_is_one_command_away(name, package, tmp_path, monkeypatch):
    """The sentence names the file and what pip has to install."""
    (tmp_path / name).write_bytes(b"x")
    for module in (package, "warcio.archiveiterator"):
        monkeypatch.setitem(sys.modules, module, None)
    said = refused(tmp_path / name, tmp_path)
    assert said.startswith(str(tmp_path / name)) and said.endswith(f"pip install {package}")


# --- sizes --------------------------------------------------------------------------------------------


def test_json_is_never_held_as_a_whole(tmp_path, monkeypatch):
    """An array is read a little at a time, wherever the pieces end; an object may be larger than a piece."""
    rows = [{"text": "wörter [ , ] { } " * (at % 7), "id": at} for at in range(200)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    for size in (1, 7, 64, 10**6):
        monkeypatch.setattr(text_readers, "READ_AT_ONCE", size)
        reader = open_reader(locate_content(str(tmp_path / "a.json")), Omissions())
        assert [row for _, row in read_all(reader, ["text"])] == rows


def test_pieces_of_an_arrow_file_are_its_batches(tmp_path):
    """Read in any order, they are all rows once, and each says where it lies."""
    with pa.ipc.new_file(tmp_path / "a.arrow", TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=1)
    reader = open_reader(locate_content(str(tmp_path / "a.arrow")), Omissions())
    found = [each for piece in iterate_pieces(reader, "7") for each in reader.read(piece, ["text"])]
    assert sorted(row["text"] for _, row in found) == sorted(TEXTS)
    assert {where.partition(", ")[2] for where, _ in found} == {
        "record batch 1, row 1",
        "record batch 2, row 1",
    }


def test_a_zip_of_zips_is_not_unpacked(tmp_path):
    """Archives in archives are named as what isn't read."""
    omissions = Omissions()
    path = zipped(tmp_path / "a.zip", {"a.txt": b"words", "b.tar": b"", "__MACOSX/._a.txt": b"x"})
    ZipReader(locate_content(str(path)), omissions).list_pieces()
    assert [name.rpartition(", ")[2] for name in omissions.other] == ["b.tar", "__MACOSX/._a.txt"]


def test_a_column_that_looks_like_a_path_is_read_from_every_format(tmp_path):
    """It goes before the path, in the text and in a filter."""
    rows = [{"meta": {"text": "nested", "score": 1}, "meta.text": "flat", "meta.score": 3}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), tmp_path / "c.feather")
    recipe = TextRecipe("meta.text", "meta.score == 3")
    for name in ("a.jsonl", "b.parquet", "c.feather"):
        found = resolve_corpus(str(tmp_path / name), recipe, tmp_path / "cache")
        assert texts(found) == ["flat"]


def test_half_a_page_of_a_web_archive_is_none(tmp_path):
    """A file that isn't packed names the length of each page."""
    pytest.importorskip("warcio")
    (tmp_path / "a.wet").write_bytes(warc(".wet")[:-200])
    with pytest.raises(UserError, match=r"a.wet, record 2: breaks off before its end"):
        read(tmp_path / "a.wet", tmp_path)


def test_an_array_is_not_copied_for_each_of_its_objects(tmp_path):
    """What is decoded is the text that was read, from the next object on."""
    seen = []

    class Counted(str):
        def __getitem__(self, at):
            seen.append(at)
            return str.__getitem__(self, at)

    pieces = iter([Counted(json.dumps([{"text": "a"}] * 1000))])
    reader = text_readers.JsonReader(locate_content("a.json"))
    assert len(list(reader._decode(lambda size: next(pieces, "")))) == 1000 and len(seen) < 10


@pytest.mark.parametrize("ending", ["parquet", "parquet.gz", "arrow", "zip"])
def test_a_folder_of_many_files_keeps_few_open(tmp_path, ending):
    """Whoever lists all their pieces, as for tasks, holds no file for each, nor what was unpacked."""
    table = pa.table({"text": ["a document"]})
    pq.write_table(table, made := tmp_path / "made")
    if ending == "arrow":
        with pa.ipc.new_file(made, table.schema) as writer:
            writer.write_table(table)
    raw = gzip.compress(made.read_bytes()) if ending.endswith("gz") else made.read_bytes()
    if ending == "zip":
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("a.txt", "a document")
        raw = made.read_bytes()
    readers = []
    for number in range(40):
        (file := tmp_path / f"{number}.{ending}").write_bytes(raw)
        readers.append(open_reader(locate_content(str(file)), Omissions()))
    before = len(os.listdir("/proc/self/fd"))
    assert len(list(sample_pieces(readers, "seed"))) == 40
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert [row["text"] for _, row in sample_rows(readers, ["text"], "seed")] == 40 * ["a document"]
