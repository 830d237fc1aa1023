"""The checkpoints of a job: written by the first worker while all go on, and found again by all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from adept_ray.engine.job import Job, LeavingNodes, Metrics
from adept_ray.engine.voice import JobVoice
from adept_ray.storage.checkpoints import (
    NO_STEP,
    Checkpoint,
    CheckpointWriter,
    checkpoint_place,
    delete_older_checkpoints,
    find_last_checkpoint,
    write_checkpoints,
)
from adept_ray.storage.files import format_json, read_json

LAST_REPORT = "said.json"  # in a checkpoint between two reports: the metrics of the last one


class JobCheckpoints:
    """What the workers of a job do with its checkpoints; use :func:`open_checkpoints`.

    Only the first worker writes. A job is over once its last checkpoint is whole. Until then a report may
    name a place that isn't filled yet: a job that is cut off goes on from an older one, and reports again.
    """

    def __init__(self, voice: JobVoice, job: Job, writer: CheckpointWriter) -> None:
        self._voice, self._writer = voice, writer
        self._name, self._place, self._plateau = job.name, job.place, job.plateau
        self._last_report: Metrics | None = None
        self._resumed = NO_STEP  # step of the checkpoint that the job goes on from
        self._branched = NO_STEP  # step of the plateau's that it goes on from

    def find_last(self) -> str:
        """Place of the checkpoint that the job goes on from, the same on all workers; empty if there is none.

        One that was saved between two reports repeats the last of them, which may not have been heard.
        """
        self._resumed = self._find_step(self._place)
        if self._resumed == NO_STEP:
            return ""
        place = checkpoint_place(self._place, self._resumed)
        if self._voice.first and (said := read_json(f"{place}/{LAST_REPORT}")):
            self._last_report = self._voice.add_report({**said, "saved": place})
        return place

    def find_plateau(self, decay_start: int | None) -> str:
        """Place of the plateau's checkpoint that a branch goes on from; empty if there is none.

        One beyond the step at which the branch's own decay starts is a longer branch's.
        """
        if not self._plateau or decay_start is None:
            return ""
        self._branched = self._find_step(self._plateau)
        if not NO_STEP < self._branched <= decay_start:
            return ""
        return checkpoint_place(self._plateau, self._branched)

    def _find_step(self, place: str) -> int:
        """Step of the last checkpoint there, the same on all workers; NO_STEP if there is none."""
        # The first worker's word holds: another one's view of a shared folder may be older.
        last = find_last_checkpoint(place, self._voice.add_remark) if self._voice.first else NO_STEP
        return self._voice.agree_on_largest(last)

    def make_room(self) -> None:
        """Wait until nothing is being written: there is memory for one checkpoint. Raises what went wrong."""
        self._writer.wait()

    def check(self) -> None:
        """Raise what went wrong with a checkpoint that was being written."""
        self._writer.check()

    def pass_report(self, metrics: Metrics, checkpoint: Checkpoint | None) -> None:
        """Begin to write the checkpoint of a report, and pass the report on."""
        if not self._voice.first:
            return
        if checkpoint:
            # A report that is repeated was saved before; what a job resumes from is never written over.
            again = checkpoint.step == self._resumed
            place = checkpoint_place(self._place, self._resumed) if again else self._writer.begin(checkpoint)
            metrics = {**metrics, "saved": place}
        self._last_report = self._voice.add_report(metrics)

    def keep(self, checkpoint: Checkpoint | None) -> None:
        """Begin to write a checkpoint that came between two reports."""
        if checkpoint:
            said = format_json(self._last_report).encode()
            files = {LAST_REPORT: lambda stream: stream.write(said)} if self._last_report else {}
            self._writer.begin(replace(checkpoint, files={**checkpoint.files, **files}))

    def keep_plateau(self, checkpoint: Checkpoint | None) -> None:
        """Begin to write the checkpoint of a plateau, in place of an earlier one.

        What the job goes on from is never written over.
        """
        if checkpoint and checkpoint.step != self._branched:
            self._writer.begin(checkpoint, self._plateau)

    def leave(self, checkpoint: Checkpoint | None) -> None:
        """Write a checkpoint that came between two reports, and raise :class:`LeavingNodes`."""
        if checkpoint:
            self.keep(checkpoint)
            self._writer.wait()
            at = f"saved at step {checkpoint.step}"
            self._voice.add_remark(f"{self._name} leaves a node that will be taken away; {at}")
        raise LeavingNodes

    def finish(self) -> None:
        """Wait until the last checkpoint is whole, and delete the others: the training is over."""
        self._writer.wait()
        if self._voice.first and self._last_report and "saved" in self._last_report:
            delete_older_checkpoints(self._last_report["saved"])


@contextmanager
def open_checkpoints(voice: JobVoice, job: Job) -> Iterator[JobCheckpoints]:
    """The checkpoints of a job; nothing is written any more at the end, however it comes."""
    with write_checkpoints(job.place) as writer:
        yield JobCheckpoints(voice, job, writer)
