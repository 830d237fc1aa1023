"""Who watches a run from outside sees it: in the metrics, in Ray's dashboard, in the Grafana dashboard."""

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
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
import ray
from common import local_backbone, save_tiny_backbone
from prometheus_client.parser import text_string_to_metric_families
from test_crew import BLOCKS, SEQ_LEN

import adept_ray
from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec
from adept_ray.engine import cluster as launch
from adept_ray.engine.client import follow_job, run_job
from adept_ray.engine.crew import start_crews
from adept_ray.engine.job import Job
from adept_ray.engine.metrics import SERIES
from adept_ray.search.trials import title_trial
from adept_ray.training.work import ProbeWork, TrainWork

GRAFANA = json.loads((Path(adept_ray.__file__).parent / "engine" / "monitoring" / "grafana.json").read_text())
RUN, TRIAL, TITLE = "watched", "trial-007", "trial-007 k=1 lr=3e-4"
PREFIX = "ray_"  # put before every application metric


def test_a_title_says_what_is_tried():
    assert title_trial(TRIAL, {"k": 1, "base_lr": 3e-4}) == TITLE
    assert title_trial("trial-010", {"k": 12, "base_lr": 0.0123}) == "trial-010 k=12 lr=1.2e-2"
    assert title_trial("trial-001", {"k": 2}) == "trial-001 k=2"


def test_every_panel_queries_what_is_exported():
    """The dashboard has unique panels, and no query of it names a series or a tag that no run has."""
    panels = GRAFANA["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 0
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    variables = {each["name"]: each for each in GRAFANA["templating"]["list"]}
    queries += [each["definition"] for each in variables.values() if each["type"] == "query"]
    shown = set()
    for query in queries:
        name, selected = re.search(rf"{PREFIX}(adept_\w+)(?:{{(.*?)}})?", query).groups()
        assert set(re.findall(r"(\w+)=", selected or "")) <= set(SERIES[name][1])
        shown.add(name)
    assert shown == set(SERIES)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(GRAFANA)))
    assert used - {"__all"} == set(variables) and {"datasource", "run"} <= set(variables)


# --- with Ray -------------------------------------------------------------------------------------


def served():
    """What the node's agent serves to Prometheus of ours: (name, tags) → value."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=30).read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if (name := sample.name.removeprefix(PREFIX)) in SERIES:
                assert name != sample.name
                tags = {tag: sample.labels[tag] for tag in SERIES[name][1]}
                found[name, tuple(tags.items())] = sample.value
    return found


def wait_until(what, seconds=60):
    """Wait for `what`() to be true; fails with what is served then."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, served()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run in mid-training: the dashboard's address, the board, an iterator of reports, the first report."""
    run = RunSpec(name=RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.delenv("RAY_AUTH_MODE", raising=False)
        folder = tmp_path_factory.mktemp("watched")
        with launch.connect_cluster(run) as dashboard, start_crews(run, str(folder / "ray")) as board:
            backbone = local_backbone(save_tiny_backbone(folder / "backbone", layers=3))
            asked = ProbeWork(backbone, 4, held_out=("general", "domain"))
            measured = run_job(board, Job("probe", "probe", asked, ray.put(BLOCKS)))
            spec = TrainingSpec(k=1, base_lr=3e-4, tokens=20 * SEQ_LEN, tokens_per_step=SEQ_LEN, reports=2)
            units, before = measured["importance"]["units"], measured["nats"]
            work = TrainWork(backbone, spec, (1,), units, before, ScoreWeights(), SEQ_LEN, 4, seed=0)
            job = Job(TRIAL, "train", work, ray.put(BLOCKS), str(folder), judged=True, title=TITLE)
            said = follow_job(board, job)
            yield dashboard, board, said, next(said)  # its worker waits for the verdict


@pytest.mark.timeout(300)
def test_the_dashboard_shows_the_job_the_board_and_the_trial_by_name(watched, browser, tmp_path):
    """With the token that one is told to paste the page opens; without it it shows nothing of the run."""
    dashboard, *_ = watched
    command = re.search("`(ray [a-z-]+)`", launch.explain_dashboard_token()).group(1).split()
    ray_command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    token = subprocess.run(ray_command, capture_output=True, text=True, check=True).stdout
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{dashboard}/#/jobs")
    page.get_by_role("dialog").get_by_role("textbox").fill(token)
    assert page.request.get(f"{dashboard}/api/jobs/").status == 401
    page.get_by_role("dialog").get_by_role("button").last.click()
    page.get_by_text(RUN, exact=True).first.wait_for(timeout=60_000)  # the column of jobs' names
    page.goto(f"{dashboard}/#/actors")
    page.get_by_text(f"board {RUN}").first.wait_for(timeout=60_000)
    page.get_by_text(f"board {RUN}").first.scroll_into_view_if_needed()
    page.screenshot(path=os.environ.get("ADEPT_RAY_SCREENSHOT", tmp_path / "actors.png"))
    tasks = f"{dashboard}/api/v0/tasks?filter_keys=name&filter_predicates=%3D&filter_values={quote(TITLE)}"
    assert f'"{TITLE}"' in page.request.get(tasks).text()
    page.close()


@pytest.fixture
def prometheus(watched, tmp_path):
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
def test_prometheus_has_what_every_panel_asks_for(watched, prometheus):
    """Found by Ray's service discovery; so has it what the dashboard's two variables choose from."""
    watched[1].record_stage_times({"probe": 1.25})
    targets = [target["expr"] for panel in GRAFANA["panels"] for target in panel["targets"]]
    queries = {text.replace("$run", RUN).replace("$trial", ".*") for text in targets}

    def missing():
        return {q for q in queries if not (prometheus("query", query=q) or {"result": []})["result"]}

    wait_until(lambda: not missing())
    for variable, value in {"run": RUN, "trial": TRIAL}.items():
        (query,) = (each["definition"] for each in GRAFANA["templating"]["list"] if each["name"] == variable)
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
        found = prometheus(f"label/{label}/values", **{"match[]": series.replace("$run", RUN)})
        assert (label, found) == (variable, [value])


@pytest.mark.timeout(300)
def test_the_metrics_endpoint_serves_what_the_reports_say(watched):
    """Every series, with the values of the report; once it is over the trial is seen to stand still."""
    _, board, said, report = watched
    board.record_stage_times({"probe": 1.25})
    trial = {"run": RUN, "trial": TRIAL, "k": "1"}
    expected = {("adept_stage_seconds", (("run", RUN), ("stage", "probe"))): 1.25}

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
