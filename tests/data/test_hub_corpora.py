"""Corpora on the hub: a sample is read where it lies, in few requests; what is wrong is one sentence."""

import gzip
import io
import json
import random
import zipfile
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_stand_in import STRANGER

from adept_ray.config.errors import UserError
from adept_ray.data import corpora, hub_corpora, sampled_sources
from adept_ray.data.archives import Members, ZipReader
from adept_ray.data.corpora import SampleOrder, fill_corpus, find_corpus, name_content, resolve_corpus
from adept_ray.data.corpus_presets import CORPORA
from adept_ray.data.documents import read_texts
from adept_ray.data.hub_corpora import HubSource
from adept_ray.data.opening import locate_content
from adept_ray.data.row_texts import TextRecipe
from adept_ray.data.rows import sample_rows
from adept_ray.data.sampled_sources import sample_source
from adept_ray.data.shards import read_in_order

MEDICINE = "BAAI/IndustryInstruction_Health-Medicine"


def zipped(members):
    """An archive of these texts, compressed."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows, group=20):
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content, row_group_size=group)
    return content.getvalue()


def noise(number, size=200):
    """So many characters of which a compressed file has to keep at least half."""
    return random.Random(number).randbytes(size // 2).hex()


def texts(corpus):
    return list(read_in_order(corpus.shards))


def take(source, revision, count=10**6):
    return list(islice(read_texts(sample_source(source, revision), source.recipe), count))


def refused(source, tmp_path, column="text"):
    """What is said of a corpus that can't be used: one line, before anything is written."""
    with pytest.raises(UserError) as told:
        find_corpus(source, column, tmp_path / "cache")
    assert "\n" not in str(told.value) and not list((tmp_path / "cache").rglob("*.parquet"))
    return str(told.value)


@pytest.fixture
def medicine(hub):
    """The paper's medical corpora in their layouts, a thousandth as large."""
    folders = {"books": 400, "papers": 200, "cultural_filtered_data_used": 60}
    english = {
        f"English/{folder}/{at}.txt": f"{folder} {at}: {noise(at, 2000)}"
        for folder, count in folders.items()
        for at in range(count)
    }
    hub.put("Henrychur/MMedC", {"English.zip": zipped(english | {"__MACOSX/English/books/._0.txt": "junk"})})
    turns = [
        {
            "instruction": "",
            "id": at,
            "conversations": [{"from": "human", "value": f"ask {at}"}, {"from": "gpt", "value": "tell"}],
            "lang": "zh" if at % 2 else "en",
        }
        for at in range(60)
    ]
    hub.put(MEDICINE, {"train.jsonl": lines(turns), "README.md": b"---\nlicense: apache-2.0\n---\n"})
    question = {
        "question": "Why?",
        "options": {"A": "so", "B": "not"},
        "answer": "so",
        "answer_idx": "A",
        "rationale": "Because.",
    }
    members = {
        "MMedBench/Train/English.jsonl": lines([question]).decode(),
        "MMedBench/Train/Chinese.jsonl": "x",
    }
    hub.put("Henrychur/MMedBench", {"MMedBench.zip": zipped(members)})
    return hub


@pytest.fixture
def maths(hub):
    """The paper's corpora of mathematics in their layouts: many shards, of which each has row groups."""
    shards = {
        f"data/train-{shard:05d}-of-00020.parquet": parquet(
            [{"url": noise(at, 70), "text": f"page {shard} {at} {noise(at, 2000)}"} for at in range(60)]
        )
        for shard in range(20)
    }
    hub.put("open-web-math/open-web-math", shards)
    sums = [{"problem": f"{at} + 1", "answer": str(at + 1)} for at in range(30)]
    hub.put("nvidia/AceReason-Math", {"math.jsonl": lines(sums)})
    return hub


# --- the paper's corpora --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parity"), [("medical-paper", 0), ("medical-paper:zh", 1)])
def test_the_papers_medicine_is_read_as_it_lies(medicine, tmp_path, name, parity):
    """Each folder of MMedC has its share but those that are no text; one language; questions with options."""
    found = texts(resolve_corpus(name, "ignored", tmp_path, text_bytes=400_000))
    kinds = [text.split()[0] for text in found]
    assert 100 < kinds.count("books") < 150 and 50 < kinds.count("papers") < 100
    assert not {"cultural_filtered_data_used", "junk"} & set(kinds)
    assert [f"ask {at}\ntell" for at in range(parity, 60, 2)] == [t for t in found if t.startswith("ask")]
    assert found[0] == "Why?\nA. so\nB. not\nso\nBecause."


def test_the_papers_medicine_keeps_its_budget(medicine, tmp_path):
    """An archive's list is read once, and a request brings many documents; then nothing is read any more."""
    corpus = find_corpus("medical-paper", "ignored", tmp_path, text_bytes=250_000)
    assert len(medicine.log) <= 30 and medicine.sent < 150_000
    medicine.clear()
    fill_corpus(corpus)
    assert medicine.count("MMedC") <= 26 and len(medicine.log) <= 32 and medicine.sent < 300_000
    medicine.clear()
    assert find_corpus("medical-paper", "ignored", tmp_path, text_bytes=250_000) == corpus
    fill_corpus(corpus)
    assert len(medicine.log) == 3  # whether there are newer commits


def test_the_papers_mathematics_keeps_its_budget(maths, tmp_path):
    """A few row groups of a few shards are read, and of them the text alone."""
    corpus = resolve_corpus("math-paper", "ignored", tmp_path, text_bytes=400_000)
    found = texts(corpus)
    shards = {text.split()[1] for text in found if text.startswith("page")}
    assert len(shards) == 8 and "29 + 1\n30" in found
    assert maths.count("GET /dataset/open-web") <= 28 and len(maths.log) <= 66
    whole = sum(map(len, maths.repositories["dataset", "open-web-math/open-web-math"].files.values()))
    assert maths.sent < whole / 2


def test_every_preset_says_where_its_text_comes_from(medicine, maths, tmp_path):
    """The note of a hub corpus has the licences, the commits, and what isn't known of the paper's."""
    note = find_corpus("medical-paper", "ignored", tmp_path).note
    commit = medicine.repositories["dataset", "Henrychur/MMedC"].commit
    assert f"Henrychur/MMedC@{commit[:12]}" in note and "CC BY-NC-SA 4.0" in note
    assert "which language the paper took isn't known" in note and "rows in 'en'" in note
    assert "rows in 'zh'" in CORPORA["medical-paper:zh"].note


# --- samples --------------------------------------------------------------------------------------


def test_the_list_of_a_large_archive_is_read_once(hub):
    """500 of 5,000 small files take few requests, of which one brings the list, and few bytes."""
    members = {f"{at % 5}/{at}.txt": noise(at) for at in range(5_000)}
    repository = hub.put("o/n", {"all.zip": zipped(dict(sorted(members.items())))})
    source = HubSource("o/n", archive="all.zip")
    found = take(source, repository.commit, 500)
    assert len(set(found)) == 500 and hub.count("GET /dataset/") <= 8
    assert hub.sent < len(repository.files["all.zip"]) * 0.6


def test_a_larger_sample_begins_with_the_smaller_one(maths):
    """The order depends neither on how much is wanted nor on the commit; all of it is everything once."""
    repository = maths.repositories["dataset", "open-web-math/open-web-math"]
    source = HubSource("open-web-math/open-web-math")
    some, more = (take(source, repository.commit, count) for count in (30, 300))
    assert more[:30] == some
    every = take(source, repository.commit)
    assert every[:300] == more and len(set(every)) == len(every) == 1200
    earlier = repository.commit
    repository.push(**{"README.md": b"changed"})
    assert take(source, repository.commit, 30) == some and earlier != repository.commit


def test_lines_are_read_whole_whatever_the_files(hub, tmp_path):
    """Gzipped files and several of them; a file of another kind is read by datasets."""
    rows = [{"text": f"ü {at}"} for at in range(9)]
    hub.put("o/n", {"train-0.jsonl": lines(rows[:5]), "train-1.jsonl.gz": gzip.compress(lines(rows[5:]))})
    assert sorted(texts(resolve_corpus("o/n", "text", tmp_path))) == [row["text"] for row in rows]
    hub.put("o/table", {"train.csv": b"text,other\none,1\ntwo,2\n"})
    assert texts(resolve_corpus("o/table", "text", tmp_path)) == ["one", "two"]


def test_a_local_archive_is_read_by_the_same_reader(tmp_path):
    """Where a file lies is the business of whoever opens it; members larger than a request come whole."""
    long = noise(0, 6 * 2**20)
    (tmp_path / "a.zip").write_bytes(
        zipped({"a/long.txt": long, "a/rows.jsonl": '{"text": "row"}', "b.md": "no"})
    )
    content = locate_content(str(tmp_path / "a.zip"))
    reader = ZipReader(content, members=Members("a/*"))
    assert sorted(row["text"] for _, row in sample_rows([reader], ["text"], "0")) == sorted([long, "row"])
    with content.open_sequential() as file:
        assert file.read(2) == b"PK"


def test_chat_turns_and_answer_options_become_text():
    """Questions, options and conversations read like text, null options left out."""
    row = {
        "options": {"A": "so", "B": None},
        "turns": [{"from": "human", "value": "hi"}, {"role": "assistant", "content": "hello"}],
    }
    assert HubSource("o/n", ("options",)).recipe.read("", row) == "A. so"
    assert HubSource("o/n", ("turns", "options")).recipe.read("", row) == "hi\nhello\nA. so"


ROWS = [
    {"chat": [{"from": "human", "value": f"hi {at}"}], "meta": {"lang": "de" if at % 2 else "en"}, "at": at}
    for at in range(60)
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dataset_is_read_as_somebody_asks(hub, kind, tmp_path):
    """By a template and a filter, of which only the columns are read; they are part of its name."""
    hub.put("o/n", {f"train.{kind}": lines(ROWS) if kind == "jsonl" else parquet(ROWS)})
    recipe = TextRecipe("{at}: {chat[0].value}", "meta.lang == 'en' and at < 10")
    found = resolve_corpus("o/n", recipe, tmp_path)
    assert sorted(texts(found)) == [f"{at}: hi {at}" for at in range(0, 10, 2)]
    chats = resolve_corpus("o/n", "chat", tmp_path)
    assert sorted(texts(chats)) == sorted(f"hi {at}" for at in range(60))
    assert found.fingerprint != chats.fingerprint


def test_the_name_of_a_hub_corpus_stays(tmp_path):
    """Results that were made from a plain column, or from a preset, go on with their text."""
    sources = [
        (HubSource("o/n", ("text",), given=TextRecipe()),),
        (HubSource("o/n", ("text",), given=TextRecipe(filter="a == 1")),),
        CORPORA["medical-paper"].hub,
    ]
    names = [
        name_content(SampleOrder(each, ("a", "b", "c")[: len(each)], 1000, tmp_path)) for each in sources
    ]
    assert names[0] == "d0fec9687a3db5f3" and names[2] == "4c99f04b3e140b85" and names[1] != names[0]


def test_a_struct_of_somebody_elses_is_not_printed(hub, tmp_path):
    """Answer options are lines of a preset; anyone else says which column is meant."""
    hub.put("o/n", {"train.jsonl": lines([{"options": {"A": "so", "B": "not"}}])})
    assert refused("o/n", tmp_path, "options") == (
        "hub dataset o/n, line 1: column 'options' holds a struct; give one of its columns: options.A, "
        "options.B"
    )


def test_a_rare_filter_is_not_waited_for_in_the_check(hub, tmp_path, monkeypatch):
    """Only the first rows are looked at before the plan is known; what is wrong with them is said there."""
    hub.put("o/n", {"train.jsonl": lines([*ROWS, {**ROWS[0], "at": 60}])})
    monkeypatch.setattr(sampled_sources, "CHECKED_ROWS", 5)
    corpus = find_corpus("o/n", TextRecipe("{at}", "at == 60"), tmp_path)
    fill_corpus(corpus)
    assert texts(corpus) == ["60"]
    with pytest.raises(UserError, match="no row with text meets the filter at == 61"):
        fill_corpus(find_corpus("o/n", TextRecipe("{at}", "at == 61"), tmp_path))


# --- without the hub, and with a hub out of order ---------------------------------------------------


def test_a_corpus_in_the_cache_needs_no_hub(hub, tmp_path, silence):
    """The commit of the last time will do where the hub doesn't answer; one it doesn't know is refused."""
    hub.put("o/n", {"train.jsonl": lines([{"text": "a document"}])})
    first = resolve_corpus("o/n", "text", tmp_path)
    silence()
    again = resolve_corpus("o/n", "text", tmp_path)
    assert again == first and hub.said == []


def test_a_run_goes_on_with_its_own_text(hub, tmp_path):
    """Its sample is in the cache, so nobody asks whether there is a newer one; a new run takes that."""
    repository = hub.put("o/n", {"train.jsonl": lines([{"text": "old"}])})
    first = resolve_corpus("o/n", "text", tmp_path)
    repository.push(**{"train.jsonl": lines([{"text": "new"}])})
    hub.clear()
    assert find_corpus("o/n", "text", tmp_path, made_from=first.fingerprint) == first and hub.log == []
    assert texts(resolve_corpus("o/n", "text", tmp_path)) == ["new"]
    assert find_corpus("o/n", "text", tmp_path, made_from=first.fingerprint) == first
    assert texts(first) == ["old"]


def test_a_stream_that_breaks_goes_on_where_it_was(maths):
    """Cut ranges, a busy CDN and a busy hub change nothing of what is read; each pause is a line."""
    repository = maths.repositories["dataset", "open-web-math/open-web-math"]
    source = HubSource("open-web-math/open-web-math")
    plain = take(source, repository.commit, 300)
    hub_corpora.list_data_files.cache_clear()
    maths.fail("GET /dataset/", times=2, cut=1000)
    maths.fail("GET /dataset/", times=2, status=503)
    maths.fail("/resolve/", times=2, status=429)
    assert take(source, repository.commit, 300) == plain and len(maths.said) >= 2


def test_a_stream_that_stays_broken_is_one_sentence(hub, tmp_path):
    """The CDN is named, not the traceback of five libraries."""
    hub.put("o/n", {"train-0.parquet": parquet([{"text": "a"}])})
    hub.fail("GET /dataset/", status=500)
    assert "where the Hugging Face hub keeps its files, answers 500 for 'o/n'" in refused("o/n", tmp_path)
    hub.clear()
    hub.fail("GET /dataset/", cut=3)
    assert "is cut off again and again" in refused("o/n", tmp_path)


# --- refusals -------------------------------------------------------------------------------------


def test_a_gated_corpus_names_its_page(medicine, tmp_path, monkeypatch):
    """Known before anything is read: for a file, and for an archive."""
    page = f"{medicine.endpoint}/datasets/"
    medicine.repositories["dataset", MEDICINE].gated = True
    said = refused("medical-paper", tmp_path)
    assert f"'{MEDICINE}' only to who may read it" in said and page + MEDICINE in said
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    medicine.repositories["dataset", "Henrychur/MMedC"].gated = True
    assert f"may not read 'Henrychur/MMedC': ask for access on {page}" in refused("medical-paper", tmp_path)


def test_what_is_wrong_with_a_dataset_is_said_of_its_first_row(hub, tmp_path):
    """No such dataset, column, split; a column that isn't text; lines that aren't JSON; no file at all."""
    assert "no local path and no dataset on the Hugging Face hub is called 'o/gone'" in refused(
        "o/gone", tmp_path
    )
    hub.put("o/n", {"train.jsonl": lines([{"id": 1, "body": "x"}])})
    assert refused("o/n", tmp_path) == "hub dataset o/n, line 1: no column 'text'; there are: body, id"
    assert refused("o/n", tmp_path, "id").endswith("line 1: column 'id' must hold strings, not int")
    hub.put("o/p", {"train.parquet": parquet([{"id": 1, "body": "x"}])})
    assert refused("o/p", tmp_path) == "hub dataset o/p, row 1: no column 'text'; there are: body, id"
    hub.put("o/test", {"test.jsonl": lines([{"text": "x"}])})
    assert "no split 'train'; there are: test" in refused("o/test", tmp_path)
    hub.put("o/bad", {"train.jsonl": b"{\n"})
    assert refused("o/bad", tmp_path).startswith("hub dataset o/bad, line 1: not valid JSON at column 1: ")
    hub.put("o/empty", {"README.md": b"nothing"})
    assert refused("o/empty", tmp_path).startswith("hub dataset o/empty: can't be streamed: ")


def test_a_filter_that_leaves_nothing_is_refused(hub, tmp_path):
    """It names the filter; a column that isn't there is named with those that are."""
    commit = hub.put("o/n", {"train.jsonl": lines([{"text": "x", "lang": "zh"}])}).commit
    with pytest.raises(UserError, match="o/n: no row with text meets the filter lang == 'en'"):
        resolve_corpus("o/n", TextRecipe("text", "lang == 'en'"), tmp_path)
    with pytest.raises(UserError, match="no column 'tongue'; there are: lang, text"):
        take(HubSource("o/n", keep=(("tongue", "en"),)), commit)


def test_a_bad_archive_is_one_sentence(hub):
    """No zip at all, and a member that isn't UTF-8, which is named."""
    commit = hub.put("o/n", {"no.zip": b"no archive", "bad.zip": zipped({"a.txt": b"\xff"})}).commit
    with pytest.raises(UserError, match=r"hub dataset o/n, no\.zip: truncated or damaged zip file"):
        take(HubSource("o/n", archive="no.zip"), commit)
    with pytest.raises(UserError, match=r"hub dataset o/n, bad\.zip, a\.txt: byte 1 \(0xff\) is not UTF-8"):
        take(HubSource("o/n", archive="bad.zip"), commit)


def test_a_mark_means_the_hub_where_a_folder_has_the_name(tmp_path, monkeypatch):
    """A folder here comes before a dataset of its name, unless hf: stands before it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "a.txt").write_text("one\n\ntwo\n")
    asked = []
    monkeypatch.setattr(corpora, "_order_text", lambda sources, *_: asked.append(sources))
    monkeypatch.setattr(corpora, "_name_order", lambda *_: None)
    assert corpora.find_corpus("owner/name", "text", tmp_path / "cache").name == "name"
    corpora.find_corpus("hf:owner/name:part", "text", tmp_path / "cache")
    assert [repr(each) for each in asked] == [repr((HubSource("owner/name", ("text",), "part"),))]
    with pytest.raises(UserError, match=r"hf:boolq: a hub dataset is written hf:owner/name:config"):
        corpora.find_corpus("hf:boolq", "text", tmp_path / "cache")
