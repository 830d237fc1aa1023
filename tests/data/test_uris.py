"""Text behind a URI is a sample of its files, known by their versions; what is wrong is one sentence."""

import functools
import json
import re
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from adept_ray.config.errors import UserError
from adept_ray.data import hub_client
from adept_ray.data.corpora import fill_corpus, find_corpus, resolve_corpus
from adept_ray.data.shards import read_in_order
from adept_ray.data.uri_corpora import UriSource
from adept_ray.data.uris import explain_uri_error, find_passing_fault, list_files, name_version, parse_uri

TEXTS = [f"document {at} " + "of words " * 20 for at in range(40)]


def lines(documents):
    return "".join(json.dumps({"text": text, "lang": "en"}) + "\n" for text in documents).encode()


def texts(corpus):
    return list(read_in_order(corpus.shards))


def parquet(documents, path):
    pq.write_table(pa.table({"text": documents}), path, row_group_size=5)
    return path.read_bytes()


def disconnected():
    """What the web's driver makes of a server that hangs up when it is asked about a file."""
    missing = FileNotFoundError("a")
    missing.__cause__ = aiohttp.ServerDisconnectedError()
    return missing


def refused(place, tmp_path):
    """What is said of a place that can't be used: one line, before anything is written."""
    with pytest.raises(UserError) as told:
        find_corpus(place, "text", tmp_path / "cache")
    assert "\n" not in str(told.value) and not list((tmp_path / "cache").rglob("*.parquet"))
    return str(told.value)


@pytest.fixture
def bucket(s3, request):
    """A bucket with text in several formats."""
    name = re.sub(r"\W", "-", request.node.name.lower().replace("_", "-"))[:60].strip("-")
    s3.create_bucket(Bucket=name)
    put = functools.partial(s3.put_object, Bucket=name)
    return SimpleNamespace(put=lambda key, body: put(Key=key, Body=body), place=f"s3://{name}", name=name)


@pytest.fixture
def web(tmp_path):
    """A folder that a web server on this machine serves, without ranges; nobody may read its secrets."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

        def send_head(self):
            if faults:
                return self.send_error(faults.pop())
            return self.send_error(403) if "secret" in self.path else super().send_head()

    root, faults = tmp_path / "web", []
    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield SimpleNamespace(root=root, faults=faults, place=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


# --- buckets ------------------------------------------------------------------------------------------


def test_a_bucket_is_read_whatever_lies_in_it(bucket, tmp_path):
    """A folder, one file, a glob; what isn't text is named once it is read, and so are packed members."""
    bucket.put("d/a.jsonl", lines(TEXTS[:10]))
    bucket.put("d/b/c.parquet", parquet(TEXTS[10:30], tmp_path / "c.parquet"))
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for at, text in enumerate(TEXTS[30:]):
            archive.writestr(f"{at}.txt", text)
    bucket.put("d/d.zip", (tmp_path / "d.zip").read_bytes())
    bucket.put("d/e.pdf", b"%PDF")
    cache = tmp_path / "cache"
    whole = resolve_corpus(f"{bucket.place}/d", "text", cache)
    assert sorted(texts(whole)) == sorted(text.strip() for text in TEXTS)
    assert whole.omitted == "left out: e.pdf" and f"{bucket.place}/d@" in whole.note
    one = resolve_corpus(f"{bucket.place}/d/a.jsonl", "text", cache)
    assert texts(one) == [text.strip() for text in TEXTS[:10]] and one.omitted == ""
    found = resolve_corpus(f"{bucket.place}/d/**/*.parquet", "text", cache)
    assert sorted(texts(found)) == sorted(text.strip() for text in TEXTS[10:30])


def test_a_sample_is_as_large_as_asked_for(bucket, tmp_path):
    """A smaller one is the beginning of a larger one, over several files; another seed has no say in it."""
    for shard in range(4):
        documents = [f"{shard} {text}" for text in TEXTS]
        bucket.put(f"{shard}.parquet", parquet(documents, tmp_path / "shard"))
    few, more = (resolve_corpus(bucket.place, "text", tmp_path / "cache", size) for size in (3000, 9000))
    assert 3000 <= sum(map(len, texts(few))) < 3500 and texts(more)[: len(texts(few))] == texts(few)
    assert len({text[0] for text in texts(few)}) > 1 and len(texts(more)) < 4 * len(TEXTS)


def test_another_version_is_another_corpus(bucket, tmp_path):
    """A file that has changed changes the name; a run goes on with the text that it began with."""
    bucket.put("a.jsonl", lines(["old"]))
    first = resolve_corpus(bucket.place, "text", tmp_path)
    assert resolve_corpus(bucket.place, "text", tmp_path) == first
    bucket.put("a.jsonl", lines(["newer"]))
    second = resolve_corpus(bucket.place, "text", tmp_path)
    assert second.fingerprint != first.fingerprint and texts(second) == ["newer"]
    again = find_corpus(bucket.place, "text", tmp_path, made_from=first.fingerprint)
    assert again == first and texts(again) == ["old"]


def test_a_bucket_that_changes_under_way_is_refused(bucket, tmp_path):
    """What was planned with isn't what would be read."""
    bucket.put("a.jsonl", lines(["old"]))
    found = find_corpus(bucket.place, "text", tmp_path)
    bucket.put("b.jsonl", lines(["new"]))
    with pytest.raises(UserError, match="its files have changed since this command looked: run it again"):
        fill_corpus(found)


def test_a_bucket_out_of_reach_does_not_stop_a_run(bucket, tmp_path, monkeypatch):
    """Its text is in the cache, with the version of the last time."""
    bucket.put("a.jsonl", lines(TEXTS[:2]))
    first = resolve_corpus(bucket.place, "text", tmp_path)
    monkeypatch.setattr(
        "adept_ray.data.uris.open_filesystem", lambda place: (_ for _ in ()).throw(OSError("no route"))
    )
    assert find_corpus(bucket.place, "text", tmp_path) == first
    with pytest.raises(UserError, match=r"s3://other: can't be reached: no route"):
        find_corpus("s3://other", "text", tmp_path)


def test_what_is_wrong_in_a_bucket_names_the_file(bucket, tmp_path):
    """No such file, none that is text, an empty one, a column that isn't there, JSON that isn't any."""
    assert refused(f"{bucket.place}/no.jsonl", tmp_path).endswith("no.jsonl: there is no such file or folder")
    assert "there is no such file or folder" in refused("s3://no-such-bucket-here/a", tmp_path)
    bucket.put("x/a.pdf", b"%PDF")
    assert "holds no file that can be read as text; supported: .jsonl" in refused(
        f"{bucket.place}/x", tmp_path
    )
    bucket.put("y/a.jsonl", b"")
    assert (
        refused(f"{bucket.place}/y", tmp_path)
        == f"{bucket.place}/y/a.jsonl: the file is empty: put text into it, or take it away"
    )
    bucket.put("z/a.csv", b"id,body\n1,x\n")
    said = refused(f"{bucket.place}/z", tmp_path)
    assert said == f"{bucket.place}/z/a.csv, row 1: no column 'text'; there are: body, id"
    bucket.put("w/a.json", b"{")
    assert f"{bucket.place}/w/a.json, row 1: not valid JSON" in refused(f"{bucket.place}/w", tmp_path)


def test_a_bucket_without_the_right_is_told_as_that(s3, bucket, tmp_path):
    """Neither as missing nor as out of reach."""
    bucket.put("a.jsonl", lines(TEXTS[:2]))
    control = f"{s3.meta.endpoint_url}/moto-api/reset-auth"
    requests.post(control, data=b"0", timeout=10)
    try:
        said = refused(f"{bucket.place}/a.jsonl", tmp_path)
    finally:
        requests.post(control, data=b"inf", timeout=10)
    assert "whoever runs this may not read it (" in said and "AWS_ACCESS_KEY_ID" in said


@pytest.mark.parametrize(
    ("place", "root", "path", "query"),
    [
        ("s3://b/dir/a@v1.jsonl", "s3://b", "b/dir/a@v1.jsonl", ""),
        ("s3://b/d?region=r&scheme=http", "s3://b", "b/d", "region=r&scheme=http"),
        ("s3://b/a?.jsonl", "s3://b", "b/a?.jsonl", ""),
        ("s3://key@b/*/a?c=1", "s3://key@b", "b/*/a", "c=1"),
        ("hdfs://host:8020/dir/x", "hdfs://host:8020", "/dir/x", ""),
        ("hdfs:///dir", "hdfs:///", "/dir", ""),
    ],
)
def test_a_uri_has_parts(place, root, path, query):
    """What opens its file system, a path on that, and a query; of that path the URI is made again."""
    uri = parse_uri(place)
    assert (uri.root, uri.path_on_filesystem, uri.query) == (root, path, query)
    assert uri.name_file(path) == place


def test_an_at_in_a_key_is_a_part_of_it(bucket, tmp_path):
    """Alone and in its folder; so is a query of the driver's, on every file of the folder."""
    bucket.put("d/a@v1.jsonl", lines(TEXTS[:2]))
    for place in ("d/a@v1.jsonl", "d", "d?region=us-east-1"):
        found = resolve_corpus(f"{bucket.place}/{place}", "text", tmp_path / place[-3:])
        assert texts(found) == [text.strip() for text in TEXTS[:2]]
    assert found.name == f"{bucket.place}/d" and "?" not in found.note


def test_a_signature_is_never_told(web, tmp_path):
    """Neither in what names the corpus nor in an error; signed anew it is the same corpus."""
    (web.root / "a.jsonl").write_bytes(lines(TEXTS[:2]))
    first, second = (
        resolve_corpus(f"{web.place}/a.jsonl?id=1&X-Amz-Signature={secret}", "text", tmp_path / "cache")
        for secret in ("c0ffee", "decaf")
    )
    assert first.fingerprint == second.fingerprint
    said = [first.name, first.note]
    for place in (f"{web.place}/no.jsonl", f"{web.place}/secret.jsonl", "http://127.0.0.1:9/a.jsonl"):
        with pytest.raises(UserError) as told:
            find_corpus(f"{place}?X-Amz-Signature=c0ffee", "text", tmp_path / "cache")
        said.append(str(told.value))
    assert not any("c0ffee" in each for each in said)


def test_a_secret_in_a_uri_is_refused(tmp_path):
    """It would be printed and written down."""
    said = refused("s3://key:c0ffee@bucket/a.jsonl", tmp_path)
    assert "a secret in a URI would be printed" in said and "c0ffee" not in said


# --- the web, the hub and other schemes -----------------------------------------------------------------


def test_a_file_on_the_web_is_read(web, tmp_path):
    """Packed or laid out by column, though this server gives no ranges; a page of links is a folder."""
    (web.root / "a.jsonl").write_bytes(lines(TEXTS[:3]))
    (web.root / "b.parquet").write_bytes(parquet(TEXTS[3:9], tmp_path / "b"))
    cache = tmp_path / "cache"
    assert texts(resolve_corpus(f"{web.place}/a.jsonl?download=1", "text", cache)) == [
        t.strip() for t in TEXTS[:3]
    ]
    assert sorted(texts(resolve_corpus(f"{web.place}/b.parquet", "text", cache))) == sorted(
        text.strip() for text in TEXTS[3:9]
    )
    assert len(texts(resolve_corpus(f"{web.place}/", "text", cache))) == 9


def test_the_web_is_asked_again_while_faults_pass(web, tmp_path, monkeypatch):
    """As the hub is, with a line on the terminal; one that lasts is a sentence, and no missing file."""
    said = []
    monkeypatch.setattr(hub_client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(hub_client.PATIENCE, "say", said.append)
    (web.root / "a.jsonl").write_bytes(lines(TEXTS[:2]))
    web.faults += [503] * 3
    assert texts(resolve_corpus(f"{web.place}/a.jsonl", "text", tmp_path / "cache")) == [
        text.strip() for text in TEXTS[:2]
    ]
    assert not web.faults and "answers 503; it is asked again in 0 s" in said[0]
    monkeypatch.setattr(hub_client, "PATIENCE_S", 0.02)
    web.faults += [503] * 99
    assert "can't be reached (answers 503" in refused(f"{web.place}/a.jsonl?x=1", tmp_path / "new")


@pytest.mark.parametrize(
    ("problem", "passes"),
    [
        (TimeoutError("late"), True),
        (ConnectionResetError(), True),
        (ConnectionRefusedError(), False),
        (FileNotFoundError("a"), False),
        (disconnected(), True),
    ],
)
def test_a_refused_connection_does_not_pass(problem, passes):
    """Nor does a missing file, unless its driver had no answer when it looked."""
    assert bool(find_passing_fault(problem)) == passes


def test_what_is_wrong_on_the_web_is_one_sentence(web, tmp_path):
    """Missing, forbidden, and nobody there."""
    assert refused(f"{web.place}/no.jsonl", tmp_path).endswith("no.jsonl: there is no such file or folder")
    assert "whoever runs this may not read it" in refused(f"{web.place}/secret.jsonl", tmp_path)
    assert "can't be reached" in refused("http://127.0.0.1:9/a.jsonl", tmp_path)


@pytest.mark.parametrize("place", ["hf://datasets/o/n/b", "hf://datasets/o/n@main/**/*.csv"])
def test_files_of_a_hub_repository_are_read_by_their_path(hub, place, tmp_path):
    """Whatever its card says of splits."""
    hub.put("o/n", {"a.jsonl": lines(["no"]), "b/c.csv": b"text\none\n", "b/d.csv": b"text\ntwo\n"})
    assert sorted(texts(resolve_corpus(place, "text", tmp_path))) == ["one", "two"]


def test_a_gated_repository_is_told_as_that(hub, tmp_path):
    """By its path as by its name."""
    hub.put("o/n", {"a.jsonl": lines(["no"])}, gated=True)
    assert "may read it" in refused("hf://datasets/o/n/a.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("sftp://host/a.jsonl", "sftp:// is reached by the package 'paramiko', .*: pip install paramiko"),
        ("oss://bucket/a", "oss:// is reached by the package 'ossfs', .*: pip install ossfs"),
        ("s4://bucket/a", "nothing is known of s4://; did you mean s3"),
        ("s4://bucket/a?X-Amz-Signature=c0ffee", "nothing is known of s4://"),
    ],
)
def test_a_scheme_without_its_driver_says_what_to_install(place, sentence, tmp_path):
    """And one that nobody knows gets the nearest."""
    assert re.match(f"{re.escape(place.partition('?')[0])}: {sentence}", refused(place, tmp_path))


def test_a_version_names_files_sizes_and_marks(tmp_path):
    """Each of them; not where they lie."""
    (tmp_path / "a.jsonl").write_bytes(lines(["one"]))
    place = f"local://{tmp_path}"
    found = list_files(place)
    assert name_version(place, found) == name_version(place, list_files(place))
    (tmp_path / "b.jsonl").write_bytes(lines(["one"]))
    assert name_version(place, list_files(place)) != name_version(place, found)


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (PermissionError("no"), "may not read it"),
        (
            OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
            "may not read it",
        ),
        (OSError("google::cloud::Status(PERMISSION_DENIED: caller lacks access)"), "may not read it"),
        (FileNotFoundError("a"), "there is no such file or folder"),
        (
            OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation"),
            "there is no such file or folder",
        ),
        (TimeoutError("too late"), "can't be reached: too late"),
    ],
    ids=str,
)
def test_a_missing_right_is_no_missing_file(problem, sentence):
    """As the drivers of clouds tell them apart."""
    said = explain_uri_error("gs://bucket/a=3", problem)
    assert sentence in said and ("gs://bucket/a/=3" in said) == ("no such" in sentence)


# --- names of hub datasets ------------------------------------------------------------------------------


def test_a_hub_dataset_has_a_revision_and_splits(hub, tmp_path):
    """Each part may be left out; what isn't there is named with what is."""
    repository = hub.put("o/n", {"train.jsonl": lines(["old"]), "test.jsonl": lines(["held"])})
    earlier = repository.commit
    repository.push(**{"train.jsonl": lines(["new"])})
    cache = tmp_path / "cache"
    assert texts(resolve_corpus("o/n", "text", cache)) == ["new"]
    assert texts(resolve_corpus(f"o/n@{earlier}", "text", cache)) == ["old"]
    assert texts(resolve_corpus("o/n[test]", "text", cache)) == ["held"]
    assert texts(resolve_corpus(f"o/n:default@{earlier}[test]", "text", cache)) == ["held"]
    with pytest.raises(UserError, match="no branch, tag or commit 'next'"):
        find_corpus("o/n@next", "text", cache)
    with pytest.raises(UserError, match=r"no split 'dev'; there are: "):
        find_corpus("o/n[dev]", "text", cache)
    with pytest.raises(UserError, match=r"can be asked for: write o/n:default\[train\], of which a sample"):
        find_corpus("o/n:default[train[:10%]]", "text", cache)
    for several in ("[train+test]", "[train[5:]+test]"):
        with pytest.raises(UserError, match=r"can be asked for: write o/n\[train\], of which a sample"):
            find_corpus(f"o/n{several}", "text", cache)


def test_an_azure_address_signed_anew_is_the_same_corpus():
    """Also with a user's delegation key, whose times are in it."""
    key = "skoid=a&sktid=b&skt=2{0}&ske=3{0}&sks=b&skv=4"
    place = f"https://a.blob.core.windows.net/c/a.jsonl?sv=1&{key}&se=4{{0}}&sig=5{{0}}"
    first, second = (UriSource(place.format(number)) for number in (1, 2))
    assert first.identity == second.identity and first.seed == second.seed
