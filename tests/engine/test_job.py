"""How a job ends says what to raise, and whether it would end so again."""

import errno

import pytest

from adept_ray.config.errors import UserError
from adept_ray.engine.job import (
    DONE,
    CrewLost,
    DiskFault,
    Job,
    JobFailed,
    JobRefused,
    Outcome,
    describe_error,
    is_out_of_memory,
)

JOB = Job("trial-001", "train", None, None, "results/ray/trials")
FULL = OSError(errno.ENOSPC, "No space left on device")


def caught(problem):
    """`problem` as one that was raised."""
    try:
        raise problem
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    ("problem", "job", "kind", "words", "repeats"),
    [
        (UserError("--backbone x: there is none"), JOB, JobRefused, "--backbone x: there is none", True),
        (FULL, JOB, DiskFault, "no space left for a checkpoint of trial-001 under results/ray/trials ", True),
        (OSError(errno.ENOSPC, "full", "/c/a"), JOB, DiskFault, "no space left for /c/a: make room", True),
        (OSError(errno.EIO, "Input/output error", "results/x"), JOB, DiskFault, "results/x: its disk", True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), JOB, JobFailed, "Cannot allocate memory", True),
        (FULL, None, JobFailed, "No space left on device", False),  # it isn't known of which job
        (RuntimeError("[enforce fail] can't allocate memory"), JOB, JobFailed, "can't allocate memory", True),
        (ZeroDivisionError("of mine"), JOB, JobFailed, "ZeroDivisionError: of mine", False),
    ],
)
def test_an_error_is_a_sentence_where_a_person_can_mend_it(problem, job, kind, words, repeats):
    """Else it is the traceback. What would end so again isn't begun again."""
    outcome = describe_error(caught(problem), job)
    assert outcome.kind is kind and outcome.would_repeat == repeats and words in outcome.error
    assert ("Traceback" in outcome.error) == (kind is JobFailed)
    with pytest.raises(kind) as raised:
        outcome.raise_error()
    assert type(raised.value) is kind and str(raised.value) == outcome.error


@pytest.mark.parametrize(
    "text",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity",
        "torch.AcceleratorError: CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://",
        "RuntimeError: CUDA driver error: out of memory",
        "torch.AcceleratorError: HIP error: out of memory",
        "RuntimeError: Triton Error [CUDA]: out of memory",
        "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nFailed to CUDA calloc async",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "RuntimeError: cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: ",
        "OSError: [Errno 12] Cannot allocate memory",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 GiB for an array",
        "RuntimeError: std::bad_alloc",
        "OutOfMemoryError: Task was killed due to the node running low on memory.",
    ],
)
def test_every_way_to_say_that_a_memory_was_too_small_is_known(text):
    """A job that died of it isn't begun again, and a search tries no larger k; each library has its words."""
    assert is_out_of_memory(text)


@pytest.mark.parametrize(
    "text",
    [
        "The agent is killed by the OS (e.g., out of memory).",
        "common causes include: (1) the process was killed by the OOM killer due to high memory usage",
        "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 131072",
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        "JobFailed: k = 8 was not tried: a worker ran out of memory at k = 6",
    ],
)
def test_a_death_that_only_may_be_for_memory_is_none(text):
    """Ray names memory among the reasons of any death: taken for one, it would end a job that can go on."""
    assert not is_out_of_memory(text)


def test_what_ended_well_raises_nothing():
    DONE.raise_error()
    assert Outcome() == DONE and not DONE.error


def test_what_is_for_persons_is_told_from_what_failed():
    """A command shows a UserError as a sentence; a lost crew stops a comparison, a failed job doesn't."""
    assert issubclass(JobRefused, UserError) and issubclass(DiskFault, JobRefused)
    assert not issubclass(CrewLost, UserError) and issubclass(CrewLost, JobFailed)
