"""The hub as a process meets it whose environment names it: the client reads that when it is imported."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_stand_in import READER, HubStandIn

WORK = """
import json, sys
from pathlib import Path
from adept_ray.data.corpora import find_corpus, resolve_corpus
from adept_ray.data.hub_corpora import HubSource
from itertools import islice
from adept_ray.data.sampled_sources import sample_source
cache = Path(sys.argv[1])
found = [resolve_corpus(name, "text", cache).fingerprint for name in ("org/rows", "org/table")]
if len(sys.argv) > 2:
    some = sample_source(HubSource("org/rows"), sys.argv[2])
    found.append(len(list(islice(some, 5))))
    some = sample_source(HubSource("org/table"), sys.argv[3])
    found.append(next(some)[1]["text"])
print(json.dumps(found))
"""


def work(folder, environment, *args):
    """What a process found, and what it said beside; it ends well."""
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(folder / "cache"), *args],
        env=plain | {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_a_process_leaves_off_in_the_middle_and_works_offline_afterwards(tmp_path):
    """A partial stream is no abort at Python's end; logs have no bar, no token; the cache is enough later."""
    hub = HubStandIn()
    rows = pa.table({"text": [f"document {at} " + "x" * 500 for at in range(2000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, row_group_size=100)
    content = sink.getvalue().to_pybytes()
    files = {f"data/train-{at:05d}-of-00003.parquet": content for at in range(3)}
    commits = [
        hub.put("org/rows", files, gated=True).commit,
        hub.put("org/table", {"train.csv": b"text\n" + b"a row\n" * 20_000}).commit,
    ]
    hub.fail("GET /dataset/", times=1, status=503)
    here = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": READER}
    (*first, five, row), said = work(tmp_path, here, *commits)
    assert (five, row) == (5, "a row")
    assert said.splitlines() == [f"{hub.cdn.removeprefix('http://')}: answers 503; it is asked again in 1 s"]
    hub.close()
    written = (file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert not any(READER.encode() in each for each in written)
    assert work(tmp_path, here | {"HF_HUB_OFFLINE": "1"}) == (first, "")
