"""A crew of warm workers does job after job: a failure ends one job, and all workers take part in each.

Who watches a run from outside sees it: in the metrics, in Ray's dashboard, in the Grafana dashboard.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pytest
import ray
from common import local_backbone, one_document_each, save_backbone_with_code, save_tiny_backbone
from prometheus_client.parser import text_string_to_metric_families
from test_monitoring import GRAFANA, PREFIX

from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec
from adept_ray.engine import cluster as launch
from adept_ray.engine.client import follow_job, run_job
from adept_ray.engine.crew import start_crews
from adept_ray.engine.job import Job, JobFailed
from adept_ray.engine.metrics import SERIES
from adept_ray.training.work import ProbeWork, TrainWork

SEQ_LEN, STEPS = 16, 150
RUN = RunSpec(name="watched", workers=2)
TRIAL, TITLE = "trial-007", "trial-007 k=1 lr=3e-4"


def blocks(number, seed):
    return one_document_each(3 + np.random.default_rng(seed).integers(0, 300, (number, SEQ_LEN)))


BLOCKS = {
    name: blocks(4, seed) for seed, name in enumerate(("probe", "remeasure", "general", "domain", "train"))
}


@pytest.fixture(scope="module")
def dashboard():
    """The address of the dashboard of a cluster here that serves its metrics every second.

    On it torch.compile does nothing, for what it makes would take minutes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.delenv("RAY_AUTH_MODE", raising=False)
        with launch.connect_cluster(RUN) as address:
            yield address


@pytest.fixture(scope="module")
def board(dashboard, tmp_path_factory):
    """A crew of two."""
    with start_crews(RUN, str(tmp_path_factory.mktemp("ray"))) as board:
        yield board


def test_workers_share_the_memory_of_their_machine(board):
    """Half of it for each of two, whatever Ray keeps for its objects left out."""
    (node,) = ray.nodes()
    alone, two = (launch.measure_worker_memory(RunSpec(workers=n)) for n in (1, 2))
    assert alone == int(node["Resources"]["memory"]) and two == alone // 2


@pytest.fixture(scope="module")
def work(board, tmp_path_factory):
    """A training of many short steps on what the crew measured."""
    backbone = local_backbone(save_tiny_backbone(tmp_path_factory.mktemp("backbone"), layers=3))
    asked = ProbeWork(backbone, 4, held_out=("general", "domain"))
    measured = run_job(board, Job("probe", "probe", asked, ray.put(BLOCKS)))
    return TrainWork(
        backbone=backbone,
        training=TrainingSpec(
            k=1, base_lr=1e-3, tokens=STEPS * SEQ_LEN, tokens_per_step=SEQ_LEN, reports=5, recompute_every=40
        ),
        layers=(1,),
        units=measured["importance"]["units"],
        before=measured["nats"],
        weights=ScoreWeights(),
        seq_len=SEQ_LEN,
        micro_batch=4,
        seed=0,
    )


def workers():
    """Process ids of the workers that are alive."""
    actors = ray._private.state.actors().values()
    return [a["Pid"] for a in actors if a["ActorClassName"] == "RayTrainWorker" and a["State"] == "ALIVE"]


def test_no_process_shares_out_datasets(board, work):
    """Workers read blocks from files, so of what Ray Train starts for a worker group that is left out."""
    started = {actor["ActorClassName"] for actor in ray._private.state.actors().values()}
    assert "SynchronizationActor" in started and "DatasetManager" not in started


def test_a_diverged_training_says_why_and_the_workers_stay(board, work, tmp_path):
    """It fails on all workers alike, so none of them has to start anew for the next job."""
    before = workers()
    hot = replace(work, training=work.training.model_copy(update={"base_lr": 1e38}))
    with pytest.raises(JobFailed, match=r"FloatingPointError: the loss is .* at step \d+ of 150"):
        run_job(board, Job("hot", "train", hot, ray.put(BLOCKS), str(tmp_path)))
    measured = run_job(board, Job("after", "probe", ProbeWork(work.backbone, 4), ray.put(BLOCKS)))
    assert measured["importance"]["units"] == pytest.approx(work.units)
    assert workers() == before and len(before) == 2


def test_workers_time_their_steps_together(board, work, tmp_path):
    """Each of two makes its share of every step, else one would wait for ever; the next job goes well."""
    found = run_job(board, Job("pace", "time_compiling", work, ray.put(BLOCKS)))
    assert not found["fault"] and found["plain"] > 0 and found["compiled"] > 0
    assert board.read_progress()[0]["pace"] == (2, 2)
    short = replace(work, training=work.training.model_copy(update={"tokens": 10 * SEQ_LEN}))
    assert run_job(board, Job("short", "train", short, ray.put(BLOCKS), str(tmp_path)))["complete"]


def test_trust_reaches_the_workers(board, tmp_path):
    """Each of them runs the code that came with a backbone."""
    marker = tmp_path / "marker"
    own = local_backbone(save_backbone_with_code(tmp_path / "own", marker), trusted=True)
    run_job(board, Job("trusted", "probe", ProbeWork(own, 4), ray.put(BLOCKS)))
    assert set(map(int, marker.read_text().split())) == set(workers())


# --- watched from outside -------------------------------------------------------------------------


def served():
    """What the node's agent serves to Prometheus of the run and of that trial: (name, tags) → value."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=30).read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if (name := sample.name.removeprefix(PREFIX)) in SERIES:
                assert name != sample.name
                tags = {tag: sample.labels[tag] for tag in SERIES[name][1]}
                if tags.get("trial", TRIAL) == TRIAL:
                    found[name, tuple(tags.items())] = sample.value
    return found


def wait_until(what, seconds=60):
    """Wait for `what`() to be true; fails with what is served then."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, served()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def watched(dashboard, board, work, tmp_path_factory):
    """A run in mid-training: an iterator of reports, and the first of them."""
    training = work.training.model_copy(update={"base_lr": 3e-4, "tokens": 20 * SEQ_LEN, "reports": 2})
    place = str(tmp_path_factory.mktemp("watched"))
    job = Job(
        TRIAL, "train", replace(work, training=training), ray.put(BLOCKS), place, judged=True, title=TITLE
    )
    said = follow_job(board, job)
    return said, next(said)  # its workers wait for the verdict


@pytest.mark.timeout(300)
def test_the_dashboard_shows_the_job_the_board_and_the_trial_by_name(watched, dashboard, browser, tmp_path):
    """With the token that one is told to paste the page opens; without it it shows nothing of the run."""
    command = re.search("`(ray [a-z-]+)`", launch.explain_dashboard_token()).group(1).split()
    ray_command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    token = subprocess.run(ray_command, capture_output=True, text=True, check=True).stdout
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{dashboard}/#/jobs")
    page.get_by_role("dialog").get_by_role("textbox").fill(token)
    assert page.request.get(f"{dashboard}/api/jobs/").status == 401
    page.get_by_role("dialog").get_by_role("button").last.click()
    page.get_by_text(RUN.name, exact=True).first.wait_for(timeout=60_000)  # the column of jobs' names
    page.goto(f"{dashboard}/#/actors")
    page.get_by_text(f"board {RUN.name}").first.wait_for(timeout=60_000)
    page.get_by_text(f"board {RUN.name}").first.scroll_into_view_if_needed()
    page.screenshot(path=os.environ.get("ADEPT_RAY_SCREENSHOT", tmp_path / "actors.png"))
    tasks = f"{dashboard}/api/v0/tasks?filter_keys=name&filter_predicates=%3D&filter_values={quote(TITLE)}"
    assert f'"{TITLE}"' in page.request.get(tasks).text()
    page.close()


@pytest.fixture
def prometheus(tmp_path):
    """Asks a Prometheus with the configuration that Ray wrote for this session; skips where there is none."""
    if shutil.which("prometheus") is None:
        pytest.skip("no Prometheus here; on Debian: apt-get install prometheus")
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*free.getsockname())
    places = {"config.file": session / "metrics/prometheus/prometheus.yml", "storage.tsdb.path": tmp_path}
    flags = [f"--{name}={value}" for name, value in {**places, "web.listen-address": address}.items()]

    def ask(path, **asked):
        with suppress(OSError):  # it isn't there yet
            url = f"http://{address}/api/v1/{path}?{urlencode(asked)}"
            return json.load(urllib.request.urlopen(url, timeout=30))["data"]

    with (tmp_path / "log").open("w") as log, subprocess.Popen(["prometheus", *flags], stderr=log) as server:
        yield ask
        server.terminate()


@pytest.mark.timeout(300)
def test_prometheus_has_what_every_panel_asks_for(watched, board, prometheus):
    """Found by Ray's service discovery; so has it what the dashboard's two variables choose from."""
    board.record_stage_times({"probe": 1.25})
    targets = [target["expr"] for panel in GRAFANA["panels"] for target in panel["targets"]]
    queries = {text.replace("$run", RUN.name).replace("$trial", ".*") for text in targets}

    def missing():
        return {q for q in queries if not (prometheus("query", query=q) or {"result": []})["result"]}

    wait_until(lambda: not missing())
    for variable, value in {"run": RUN.name, "trial": TRIAL}.items():
        (query,) = (each["definition"] for each in GRAFANA["templating"]["list"] if each["name"] == variable)
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
        found = prometheus(f"label/{label}/values", **{"match[]": series.replace("$run", RUN.name)})
        assert label == variable and value in found


@pytest.mark.timeout(300)
def test_the_metrics_endpoint_serves_what_the_reports_say(watched, board):
    """Every series, with the values of the report; once it is over the trial is seen to stand still."""
    said, report = watched
    board.record_stage_times({"probe": 1.25})
    trial = {"run": RUN.name, "trial": TRIAL, "k": "1"}
    expected = {("adept_stage_seconds", (("run", RUN.name), ("stage", "probe"))): 1.25}

    def expect(name, value, **more):
        expected[name, tuple({**trial, **more}.items())] = pytest.approx(value)

    for name in ("score", "step", "tokens_per_second"):
        expect(f"adept_{name}", report[name])
    expect("adept_k", 1)
    expect("adept_running", 1)
    for side in ("general", "domain"):
        expect("adept_bits_per_byte", report[f"{side}_bpb"], side=side)
    for unit, scale in report["scales"].items():
        expect("adept_scale", scale, unit=unit)
    assert {"q_proj", "down_proj", "norm"} <= set(report["scales"])
    assert {name for name, _ in expected} == set(SERIES)
    wait_until(lambda: served() == expected)
    board.give_verdict(TRIAL, 1, False)
    (last,) = said
    running, step, score = (f"adept_{name}" for name in ("running", "step", "score"))
    at = tuple(trial.items())
    wait_until(lambda: served().get((running, at)) == 0 and (step, at) not in served())
    assert served()[score, at] == pytest.approx(last["score"])
