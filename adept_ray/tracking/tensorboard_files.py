"""TensorBoard: a folder of event files for every run, in the results folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from adept_ray.tracking.tracker import TrackedRun, TrackerFolder


class TensorBoardFiles:
    """Writes below `folder`: one that a later command adds its files to, so its runs go on.

    It keeps no files for a run, since they lie beside it in the results.
    """

    def __init__(self, project: str, folder: TrackerFolder) -> None:
        self._folder = folder
        self._writers: dict[str, EventFileWriter] = {}

    def begin_run(self, run: TrackedRun, parent: str) -> str:
        """Begin or go on with a run; its settings are for the page of hyperparameters."""
        folder = self._folder.path / run.key
        wait_for_next_name(folder)
        self._writers[run.key] = EventFileWriter(str(folder))
        if not run.id and run.is_trial:
            self._add(run.key, hparams_pb(dict(run.settings), trial_id=run.name))
        elif not run.id:
            rows = "\n".join(f"| {name} | `{value}` |" for name, value in run.settings.items())
            self.put_text(run.key, "settings", f"| setting | value |\n|---|---|\n{rows}")
        return run.key

    def log_values(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Add values to the curves of a run."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(key, Summary(value=points), step)

    def put_numbers(self, key: str, numbers: Mapping[str, float]) -> None:
        """Numbers without a step are curves of one point."""
        self.log_values(key, numbers, 0)

    def put_note(self, key: str, text: str) -> None:
        """A text on the page of texts."""
        self.put_text(key, "note", text)

    def put_text(self, key: str, title: str, text: str) -> None:
        """A text under a title."""
        self._add(key, text_pb(title, text))

    def put_file(self, key: str, path: Path) -> None:
        """Nothing."""

    def end_run(self, key: str, state: str) -> None:
        """Close the file of a run."""
        self._writers.pop(key).close()

    def close(self) -> None:
        """Close the files of runs that aren't over."""
        for key in list(self._writers):
            self.end_run(key, "")

    def _add(self, key: str, summary: Summary, step: int = 0) -> None:
        writer = self._writers[key]
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()
        self._folder.store(key)


def wait_for_next_name(folder: Path) -> None:
    """Wait, a second at most, until the name of a new file sorts behind those in a run's folder.

    TensorBoard reads them in the order of their names, which have the second in which a file was made. Of
    those of one second the order is that of process and number as text, so that 10 comes before 9.
    """
    seconds = {file.name.split(".")[3] for file in folder.glob("events.out.tfevents.*")}
    while f"{int(time.time()):010d}" in seconds:
        time.sleep(0.02)
