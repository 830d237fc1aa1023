"""MLflow: a search is a run whose trials are its child runs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from adept_ray.tracking.tracker import TrackedRun, TrackerFolder

PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"  # tags by which MLflow's pages go
ENDS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
LONGEST_SETTING = 500  # characters that every version of MLflow keeps
MOST_AT_ONCE = 100  # settings that a server takes in one call


class MlflowRuns:
    """Keeps runs where ``MLFLOW_TRACKING_URI`` says, in one experiment."""

    def __init__(self, project: str, folder: TrackerFolder) -> None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or project
        self._client = MlflowClient()
        known = self._client.get_experiment_by_name(name)
        self._experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._ids: dict[str, str] = {}

    def begin_run(self, run: TrackedRun, parent: str) -> str:
        """Begin a run with its settings, or go on with one."""
        if run.id:
            self._client.update_run(run.id, status="RUNNING")
        self._ids[run.key] = run.id or self._create_run(run, parent)
        return self._ids[run.key]

    def _create_run(self, run: TrackedRun, parent: str) -> str:
        tags = {PARENT: parent} if parent else {}
        created = self._client.create_run(self._experiment, tags=tags, run_name=run.name)
        params = [Param(name, str(value)[:LONGEST_SETTING]) for name, value in run.settings.items()]
        for start in range(0, len(params), MOST_AT_ONCE):
            self._client.log_batch(created.info.run_id, params=params[start : start + MOST_AT_ONCE])
        return created.info.run_id

    def log_values(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Add values to the curves of a run."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._ids[key], metrics=metrics)

    def put_numbers(self, key: str, numbers: Mapping[str, float]) -> None:
        """Numbers without a step are metrics of step 0."""
        self.log_values(key, numbers, 0)

    def put_note(self, key: str, text: str) -> None:
        """The description of a run."""
        self._client.set_tag(self._ids[key], NOTE, text)

    def put_file(self, key: str, path: Path) -> None:
        """Keep a file among the artifacts of a run."""
        self._client.log_artifact(self._ids[key], str(path))

    def end_run(self, key: str, state: str) -> None:
        """Say how a run ended, in MLflow's words and in ours."""
        self._client.log_batch(self._ids[key], tags=[RunTag("state", state)])
        self._client.set_terminated(self._ids.pop(key), ENDS[state])

    def close(self) -> None:
        """Nothing: every call has waited for its answer."""
