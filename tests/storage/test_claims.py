"""One command at a time writes a results folder; whoever comes second is told, and a kill frees it."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import timedelta

import pytest

from adept_ray.config.errors import UserError
from adept_ray.storage import claims
from adept_ray.storage.claims import LOCK, VOID_S, claim_folder, claim_place, describe_process
from adept_ray.storage.files import open_filesystem
from adept_ray.storage.results import Results

# A command that opens a results folder as soon as all of them are there, and keeps it until its input ends.
COMMAND = """
import pathlib, sys, time
from adept_ray.config.errors import UserError
from adept_ray.storage.results import Results
storage, room, others = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
results = Results(storage, "run")
(room / str(time.monotonic_ns())).touch()
while len(list(room.iterdir())) < others:
    time.sleep(0.0005)
try:
    results.open(resume=False)
except UserError as problem:
    print("refused", problem, flush=True)
else:
    print("opened", flush=True)
    sys.stdin.read()
"""


def start(storage, room, others=1):
    """Start a command; its answer is its first line."""
    room.mkdir(exist_ok=True)
    command = [sys.executable, "-c", COMMAND, storage, str(room), str(others)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(params=["path", "file"])
def place(request, tmp_path):
    """A storage with locks and one without."""
    folder = tmp_path / "storage"
    return str(folder) if request.param == "path" else folder.as_uri()


@pytest.mark.slow
def test_whoever_comes_second_is_told(place, tmp_path):
    """In a sentence that names the first one's process; its death frees the folder, and so does its end."""
    first = start(place, tmp_path / "room")
    assert first.stdout.readline() == "opened\n"
    with pytest.raises(UserError, match=rf"run is being written by process {first.pid} on .*another --name$"):
        Results(place, "run").open(resume=False)
    Results(place, "other").open(resume=False)
    first.kill()
    first.communicate()
    second = Results(place, "run")
    second.open(resume=False)
    third = start(place, tmp_path / "room", others=2)
    assert third.communicate()[0].startswith("refused") and str(os.getpid()) not in place
    second.publish()
    fourth = start(place, tmp_path / "room", others=3)
    assert fourth.communicate()[0] == "opened\n"


@pytest.mark.slow
def test_of_many_that_begin_together_one_has_the_folder(place, tmp_path):
    """None is beside another, whoever is first."""
    commands = [start(place, tmp_path / "room", others=4) for _ in range(4)]
    answers = [command.stdout.readline() for command in commands]
    for command in commands:
        command.communicate()
    assert sum(answer == "opened\n" for answer in answers) <= 1
    assert all(answer == "opened\n" or "is being written by" in answer for answer in answers)
    if not place.startswith("file:"):  # those that can't lock may all step back
        assert "opened\n" in answers


def test_a_process_may_open_what_it_has(place):
    """A notebook goes on with a run that failed in it."""
    first, second = Results(place, "run"), Results(place, "run")
    first.open(resume=False)
    second.open(resume=False)
    second.publish()
    first.publish()
    assert not [name for name in os.listdir(first.folder.parent) if name.startswith(LOCK)]


def test_nothing_is_left_of_a_claim(tmp_path):
    """Neither the file that was locked nor the object."""
    claim_folder(tmp_path).release()
    claim_place(*open_filesystem(str(tmp_path)), "place").release()
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_lock_writes_objects(tmp_path, monkeypatch):
    """A file system without locks has the claims of a store; another error of it is one."""
    monkeypatch.setattr(claims.fcntl, "flock", lambda file, how: (_ for _ in ()).throw(OSError(95, "none")))
    results = Results(str(tmp_path), "run")
    results.open(resume=False)
    (claim,) = [file for file in (tmp_path / "run").iterdir() if file.name.startswith(LOCK)]
    assert json.loads(claim.read_text()) == asdict(describe_process())
    results.publish()
    monkeypatch.setattr(claims.fcntl, "flock", lambda file, how: (_ for _ in ()).throw(OSError(5, "broken")))
    with pytest.raises(UserError, match="run can't be written: its disk fails"):
        Results(str(tmp_path), "run").open(resume=False)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The claim of another machine; gives its file and the number of seconds that were waited."""
    file = tmp_path / f"{LOCK}-of-another"
    file.write_text(json.dumps(asdict(replace(describe_process(), host="there", machine="there", pid=7))))
    waited = []
    monkeypatch.setattr(claims.time, "sleep", waited.append)
    return file, waited


def test_another_machines_claim_is_void_once_nobody_writes_it(elsewhere, tmp_path):
    """That takes a while of looking, which is said; an old one is void at once."""
    file, waited = elsewhere
    said = []
    claim = claim_place(*open_filesystem(str(tmp_path)), "place", said.append)
    assert sum(waited) == round(VOID_S) and not file.exists()
    looking = f"looking for up to {VOID_S:.0f} s if it still runs"
    assert said == [f"process 7 on there claimed the results folder: {looking}"]
    claim.release()
    file.write_text("{}")
    old = time.time() - timedelta(minutes=5).total_seconds()
    os.utime(file, (old, old))
    waited.clear()
    claim_place(*open_filesystem(str(tmp_path)), "place").release()
    assert sum(waited) == 0


def test_another_machine_that_still_writes_keeps_the_folder(elsewhere, tmp_path, monkeypatch):
    """It is named, however often this one tries."""
    file, _ = elsewhere
    beats = iter(range(1, 1000))

    def sleep(seconds):
        later = time.time() + next(beats)
        os.utime(file, (later, later))

    monkeypatch.setattr(claims.time, "sleep", sleep)
    with pytest.raises(UserError, match=r"^place is being written by process 7 on there: wait for its end"):
        claim_place(*open_filesystem(str(tmp_path)), "place")
    assert list(tmp_path.iterdir()) == [file]


def test_a_holder_that_lost_its_claim_stops(tmp_path):
    """Its object was removed while it was silent: it isn't written back, and nothing is written any more."""
    stopped = []
    filesystem, folder = open_filesystem(str(tmp_path))
    claim = claims.WrittenObject(filesystem, f"{folder}/{LOCK}-own", "s3://b/run", lambda: stopped.append(1))
    claim.settle()
    claim.beat()
    claim.check()
    taker = replace(describe_process(), host="there", machine="there", pid=7)
    (tmp_path / f"{LOCK}-own").unlink()
    (tmp_path / f"{LOCK}-taker").write_text(json.dumps(asdict(taker)))
    claim.beat()
    results = Results(str(tmp_path), "run")
    results._claim = claim
    for write in (lambda: results.write("a", ""), results.publish):
        with pytest.raises(
            UserError, match=r"^s3://b/run: .* process 7 on there may write .*: this one stops"
        ):
            write()
    assert stopped == [1] and not (tmp_path / f"{LOCK}-own").exists()
    claim.release()
    assert [file.name for file in tmp_path.iterdir()] == [f"{LOCK}-taker"]


def test_a_holder_that_wrote_its_object_back_sees_who_took_the_folder(tmp_path):
    """It was removed between a look and a write; who only looks for a folder takes none."""
    stopped = []
    filesystem, folder = open_filesystem(str(tmp_path))
    claim = claims.WrittenObject(filesystem, f"{folder}/{LOCK}-own", "s3://b/run", lambda: stopped.append(1))
    claim.settle()
    other = replace(describe_process(), host="there", machine="there", pid=7, is_settled=False)
    file = tmp_path / f"{LOCK}-taker"
    file.write_text(json.dumps(asdict(other)))
    claim.beat()
    assert stopped == []
    file.write_text(json.dumps(asdict(replace(other, is_settled=True))))
    claim.beat()
    assert stopped == [1] and [each.name for each in tmp_path.iterdir()] == [file.name]
    claim.release()
