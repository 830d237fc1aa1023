"""The libraries themselves, offline: what a search sends can be read back from each, also after a resume."""

import json

import pytest

from adept_ray.tracking.courier import Book, Deliverer
from adept_ray.tracking.deliveries import Begin, End, File, Note, Numbers, Values
from adept_ray.tracking.libraries import start_tracker
from adept_ray.tracking.tracker import MAIN, TrackedRun, TrackerFolder

SEARCH = TrackedRun(MAIN, "mine", "mine", {"seed": 7, "backbone": "tiny"})
TRIAL = TrackedRun("trial-001", "trial-001", "mine", {"k": 2, "base_lr": 0.25, "layers": "3 5"})
CURVE = {4: {"score": 1.0, "scale/q_proj": 0.5}, 8: {"score": 1.5, "scale/q_proj": 0.25}}


@pytest.fixture
def played(request, tmp_path, monkeypatch):
    """The folder in which a tracker keeps a search that was stopped after a report and went on.

    `request.param` is the tracker.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "report.html").write_text("<p>k = 2</p>")
    runs = {}
    for steps, state in (((4,), "interrupted"), ((4, 8), "finished")):
        deliverer = Deliverer(start_tracker(request.param, TrackerFolder(tmp_path)), Book(runs))
        deliveries = [Begin(SEARCH), Begin(TRIAL)]
        deliveries += [Values("trial-001", CURVE[step], step) for step in steps]
        deliveries += [End("trial-001", state)]
        if state == "finished":
            deliveries += [Numbers(MAIN, {"k": 2.0}), Note(MAIN, "**k = 2**, best")]
            deliveries += [File(MAIN, tmp_path / "report.html")]
        for delivery in [*deliveries, End(MAIN, state)]:
            deliverer.deliver(delivery)
        deliverer.close()
    return tmp_path


@pytest.mark.parametrize("played", ["tensorboard"], indirect=True)
def test_tensorboard_shows_a_search(played):
    """A folder a run, whose files its own reader puts together."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trial, search = (EventAccumulator(str(played / key)).Reload() for key in ("trial-001", MAIN))
    for name in ("score", "scale/q_proj"):
        points = [(point.step, point.value) for point in trial.Scalars(name)]
        assert points == [(step, values[name]) for step, values in CURVE.items()]
    assert "_hparams_/session_start_info" in trial.Tags()["tensors"]
    assert [point.value for point in search.Scalars("k")] == [2.0]
    texts = {
        name: search.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in ("note", "settings")
    }
    assert texts["note"] == "**k = 2**, best" and "| seed | `7` |" in texts["settings"]


def test_a_run_that_is_opened_again_at_once_has_its_points_in_order(tmp_path):
    """TensorBoard reads a run's files by their names, which end in a number: 10 comes before 9 there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    while set(str(event_file_writer._global_uid.get() + 1)) != {"9"}:
        pass  # until the next one is 9, 99 or 999
    tracker = start_tracker("tensorboard", TrackerFolder(tmp_path))
    for step in range(2):
        tracker.begin_run(TRIAL, "")
        tracker.log_values(TRIAL.key, {"score": 0.5 * step}, step)
        tracker.end_run(TRIAL.key, "finished")
    read = EventAccumulator(str(tmp_path / TRIAL.key)).Reload()
    assert [point.step for point in read.Scalars("score")] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("played", ["mlflow"], indirect=True)
def test_mlflow_shows_a_search(played):
    """A run with a child run, in a database of SQLite."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("adept_ray")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["mine", "trial-001"]
    search, trial = runs["mine"], runs["trial-001"]
    assert trial.data.tags["mlflow.parentRunId"] == search.info.run_id
    assert trial.data.params == {"k": "2", "base_lr": "0.25", "layers": "3 5"}
    for name in ("score", "scale/q_proj"):
        points = [(each.step, each.value) for each in client.get_metric_history(trial.info.run_id, name)]
        assert points == [(step, values[name]) for step, values in CURVE.items()]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert search.data.metrics["k"] == 2.0 and search.data.params["seed"] == "7"
    assert search.data.tags["mlflow.note.content"] == "**k = 2**, best"
    assert [file.path for file in client.list_artifacts(search.info.run_id)] == ["report.html"]


@pytest.mark.parametrize("played", ["trackio"], indirect=True)
def test_trackio_shows_a_search(played):
    """Two runs of a group, in its own database."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = {run.name: run for run in trackio.Api().runs("adept_ray")}
    assert sorted(runs) == ["mine", "mine-trial-001"]
    config = runs["mine-trial-001"].config
    assert (config["k"], config["base_lr"], config["layers"], config["_Group"]) == (2, 0.25, "3 5", "mine")
    rows = SQLiteStorage.get_logs("adept_ray", "mine-trial-001")
    assert [(row["step"], row["score"]) for row in rows] == [(4, 1.0), (8, 1.5)]
    told = SQLiteStorage.get_logs("adept_ray", "mine")
    assert told[0]["k"] == 2.0 and "**k = 2**, best" in str(told[1]["note"])
    assert [each["name"] for each in SQLiteStorage.get_artifacts("adept_ray")] == ["mine-report.html"]


def read_offline_records(file):
    """The records of a file that W&B keeps for ``wandb sync``: a log of LevelDB's behind seven bytes.

    Each piece of a record has a checksum, its length and its kind: whole, first, middle or last.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, pieces = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no piece begins at the end of a block
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        pieces += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield Record.FromString(pieces)
            pieces = b""


def read_items(items):
    """What a record says by name; a name with a slash in it comes whole."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.slow
@pytest.mark.parametrize("played", ["wandb"], indirect=True)
def test_wandb_keeps_a_search_until_it_is_synced(played):
    """A folder a run and command; those of a run that went on have its id, so they are one run."""
    files = sorted(played.glob("wandb/offline-run-*/*.wandb"))
    records = [record for file in files for record in read_offline_records(file)]
    begun = [record.run for record in records if record.HasField("run")]
    assert len(files) == 4 and len({run.run_id for run in begun}) == 2
    assert {(run.display_name, run.job_type) for run in begun} == {("mine", "search"), ("trial-001", "trial")}
    assert {(run.project, run.run_group) for run in begun} == {("adept_ray", "mine")}
    config = {name: value for run in begun for name, value in read_items(run.config.update).items()}
    assert (config["k"], config["base_lr"], config["seed"]) == (2, 0.25, 7)
    rows = [read_items(record.history.item) for record in records if record.HasField("history")]
    points = {row["_step"]: {name: row[name] for name in CURVE[4]} for row in rows if "score" in row}
    assert points == CURVE
    summary = {}
    for record in records:
        summary |= read_items(record.summary.update)
    assert summary["k"] == 2.0 and summary["state"] == "finished"
    assert any(run.notes == "**k = 2**, best" for run in begun)
    kept = [record.artifact.name for record in records if record.HasField("artifact")]
    assert len(kept) == 1 and kept[0].endswith("-report")
