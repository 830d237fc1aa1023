"""A job: a piece of work for a crew of workers; and how it may end."""

from __future__ import annotations

import errno
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import describe_os_fault
from adept_ray.storage.checkpoints import PLATEAU
from adept_ray.storage.files import is_disk_full

if TYPE_CHECKING:
    from ray import ObjectRef

    from adept_ray.training.work import ProbeWork, SpeedWork, TrainWork

KERNEL_KILL = "the kernel killed a process of that machine for want of memory"
# What torch, Ray, the libraries of a GPU and we say when a memory, a GPU's or a machine's, was too small. Ray
# lists memory among the usual reasons of any death, so "out of memory" alone isn't enough.
MEMORY_SIGNS = (
    "MemoryError",  # OutOfMemoryError of torch, of CUDA, HIP and XPU, and of Ray; Python's own, and Arrow's
    "can't allocate memory",  # torch, on a CPU
    "Cannot allocate memory",  # the kernel, to whoever starts a process or maps a file
    "std::bad_alloc",
    "error: out of memory",  # torch.AcceleratorError: "CUDA error", "CUDA driver error", "HIP error"
    "]: out of memory",  # "Triton Error [CUDA]"
    "'out of memory'",  # NCCL and RCCL: "Cuda failure 2 'out of memory'"
    "Failed to CUDA calloc",  # NCCL's last word where the line above came first
    "_ALLOC_FAILED",  # CUBLAS_STATUS_, CUDNN_STATUS_, CUSOLVER_STATUS_, CUSPARSE_STATUS_, HIPBLAS_STATUS_
    "ALLOCATION_FAILED",  # cuDNN since 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    "ERROR_OUT_OF_MEMORY",  # the driver: CUDA_ERROR_OUT_OF_MEMORY
    "out of memory issue",
    "running low on memory",
    KERNEL_KILL,
)

Metrics = dict[str, Any]
"""What a loop reports: name → number, text or list."""
JobProgress = dict[str, tuple[int, int]]
"""Name of a job → how much of it is done, of how much."""


class JobFailed(RuntimeError):
    """A job ended with an error; the message is the worker's traceback."""


class CrewLost(JobFailed):
    """There are no workers any more; the message says why. It is no job's fault."""


class JobRefused(JobFailed, UserError):
    """A job ended with an error that a person can do something about; the message is one sentence."""


class DiskFault(JobRefused):
    """A disk is full or fails, for this job and for every other one; the message says what helps."""


class LeavingNodes(Exception):
    """This worker group has saved what it has and leaves its nodes."""


@dataclass(frozen=True)
class DeferredWork:
    """Work that the workers build, so that who hands the job in need not load what it is made of."""

    builder: bytes
    """A pickled object whose ``build_work`` takes the setting."""
    setting: Mapping[str, object]

    def build(self) -> ProbeWork | TrainWork:
        """The work itself."""
        from ray import cloudpickle

        work: ProbeWork | TrainWork = cloudpickle.loads(self.builder).build_work(self.setting)
        return work


@dataclass(frozen=True)
class Branch:
    """Where a training lies among those that share a plateau; a trial makes them one after the other."""

    tokens: int
    """That it trains on; they name its folder, beside those of the others."""
    offset: int
    """By how many steps the trial is further than this training."""
    total: int
    """Steps of the trial: what trainings have in common is trained once."""


@dataclass(frozen=True)
class Job:
    """A piece of work for a whole crew."""

    name: str
    """``probe``, ``trial-001``, …: names its progress, and the folder under `storage` for what it saves."""
    kind: Literal["probe", "time_compiling", "measure_speed", "train", "conclude"]
    """Which function of :mod:`adept_ray.training` does it; ``conclude`` scores on the tests and exports."""
    work: ProbeWork | TrainWork | SpeedWork | DeferredWork
    blocks: ObjectRef
    """Reference to what that function takes as its blocks."""
    storage: str = ""
    """Path or URI; a training that saved something there goes on from it."""
    judged: bool = False
    """Wait for a verdict on every report but the last."""
    title: str = ""
    """What a person who watches the cluster reads; the name if empty."""
    grown_from: str = ""
    """Place of the checkpoint that a training with fewer layers left, if this one continues it."""
    branch: Branch | None = None
    """Where a training lies that shares its plateau: it goes on from there, and leaves it at a later step."""
    checkpoint: str = ""
    """Place of the trained model that ``conclude`` takes."""
    about: Mapping[str, str | None] = field(default_factory=dict)
    """What ``conclude`` writes beside the model: the names of the backbone and of the run."""

    @property
    def place(self) -> str:
        """Path or URI of the folder for what it saves."""
        folder = f"{self.storage}/{self.name}"
        return f"{folder}/{self.branch.tokens}" if self.branch else folder

    @property
    def plateau(self) -> str:
        """Path or URI of the folder for the checkpoint of a shared plateau; empty where there is none."""
        return f"{self.storage}/{self.name}/{PLATEAU}" if self.branch else ""

    def count_progress(self, done: int, total: int) -> tuple[int, int]:
        """How far it is after `done` steps, and of how many: a branch counts those of its trial."""
        return (done + self.branch.offset, self.branch.total) if self.branch else (done, total)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: well, unless it has an error."""

    error: str = ""
    """A worker's traceback, or one sentence."""
    kind: type[JobFailed] = JobFailed
    """What to raise of that error."""

    def raise_error(self) -> None:
        """Raise the error, if there is one."""
        if self.error:
            raise self.kind(self.error)

    @property
    def would_repeat(self) -> bool:
        """Whether the job would end so again: what was too large for a memory or a disk still is."""
        return self.kind is not JobFailed or is_out_of_memory(self.error)


DONE = Outcome()


def describe_error(problem: Exception, job: Job | None) -> Outcome:
    """How a job ends in which a worker raised `problem`; `job` is None where it couldn't be read."""
    if isinstance(problem, UserError):
        return Outcome(str(problem), JobRefused)
    if job and (sentence := describe_disk_fault(problem, job)):
        return Outcome(sentence, DiskFault)
    return Outcome("".join(traceback.format_exception(problem)))


def describe_disk_fault(problem: Exception, job: Job) -> str:
    """One sentence on a disk that is full or fails under a job; empty for any other error."""
    if is_disk_full(problem):
        where = f"{job.storage} (or in {tempfile.gettempdir()})"
        place = str(getattr(problem, "filename", None) or job.storage)
        is_checkpoint = place.startswith(job.storage)
        what = f"a checkpoint of {job.name} under {where}" if is_checkpoint else place
        return f"no space left for {what}: make room"
    # Want of memory is no disk's fault: a smaller job may fit.
    is_disks = isinstance(problem, OSError) and problem.errno != errno.ENOMEM
    return describe_os_fault(problem) if is_disks else ""


def is_out_of_memory(error: str) -> bool:
    """Whether an error says that a memory, a GPU's or a machine's, was too small."""
    return any(sign in error for sign in MEMORY_SIGNS)
