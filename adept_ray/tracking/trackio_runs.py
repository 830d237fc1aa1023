"""trackio: a search is a group of runs, kept on this machine or in a Space of the hub."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from pathlib import Path

import trackio

from adept_ray.tracking.tracker import TrackedRun, TrackerFolder


class TrackioRuns:
    """Keeps runs in `project`, where ``TRACKIO_DIR`` or ``TRACKIO_SPACE_ID`` says.

    There a run begins with its first values.
    """

    def __init__(self, project: str, folder: TrackerFolder) -> None:
        self._project = project
        self._runs: dict[str, trackio.Run] = {}
        self._steps: dict[str, int] = {}

    def begin_run(self, run: TrackedRun, parent: str) -> str:
        """Begin or go on with a run of the search's group.

        trackio goes by names, so that of a trial begins with its search's. It ends the run that began last in
        the same context, so each has a context of its own.
        """
        name = f"{run.group}-{run.name}" if run.is_trial else run.name
        self._runs[run.key] = contextvars.Context().run(
            trackio.init,
            project=self._project,
            name=run.id or name,
            group=run.group or None,
            config=dict(run.settings),
            resume="allow" if run.id else "never",
            embed=False,
            auto_log_gpu=False,  # the trials run elsewhere
            auto_log_cpu=False,
        )
        return name

    def log_values(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Add values to the curves of a run."""
        self._runs[key].log(dict(values), step=step)
        self._steps[key] = step

    def put_numbers(self, key: str, numbers: Mapping[str, float]) -> None:
        """Numbers without a step are values of the last one."""
        self.log_values(key, numbers, self._steps.get(key, 0))

    def put_note(self, key: str, text: str) -> None:
        """A text among the values of a run."""
        self._runs[key].log({"note": trackio.Markdown(text)}, step=self._steps.get(key, 0))

    def put_file(self, key: str, path: Path) -> None:
        """Keep a file as an artifact of the project."""
        self._runs[key].log_artifact(path, name=f"{self._runs[key].name}-{path.name}", type="result")

    def end_run(self, key: str, state: str) -> None:
        """Wait until all of a run is written."""
        self._runs.pop(key).finish()

    def close(self) -> None:
        """Nothing: a run that is over has been written."""
