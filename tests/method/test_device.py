"""Both stages on a device that isn't the CPU: what a GPU would refuse is refused here, too.

The device is made of torch's hooks for backends in Python. It computes with the CPU's kernels, so the numbers
must be the CPU's, but no operation takes tensors of two devices, except for copies, scalars and indices.
"""

import functools
import gc
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from common import get_fork_context, local_backbone, one_document_each, save_tiny_backbone, write_files
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.method.fit import Fit
from adept_ray.training import export, stage2
from adept_ray.training.callbacks import Callbacks, ResumePoint
from adept_ray.training.stage1 import run_probe
from adept_ray.training.work import ProbeWork, TrainWork

NAME, SEQ_LEN = "apart", 16
COPIES = {"aten::copy_", "aten::_copy_from", "aten::_to_copy"}
MADE = ("empty.memory_format", "empty_strided", "copy_", "_copy_from", "_to_copy")


class Apart(torch.Tensor):
    """A tensor of that device, with its data on the CPU."""

    @staticmethod
    def __new__(cls, data):
        place = {"strides": data.stride(), "storage_offset": data.storage_offset(), "layout": data.layout}
        made = torch.Tensor._make_wrapper_subclass(
            cls, data.size(), dtype=data.dtype, device=f"{NAME}:0", **place
        )
        made.data_here = data
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return computed(op, *args, **(kwargs or {}))


def here(value):
    """A tensor's data on the CPU."""
    return value.data_here if isinstance(value, Apart) else value


def computed(op, *args, **kwargs):
    """Run an operation on the data; RuntimeError where its tensors lie on two devices."""
    name = op.name().partition(".")[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    own = [tensor for tensor in tensors if isinstance(tensor, Apart)]
    strange = [tensor for tensor in tensors if not isinstance(tensor, Apart) and tensor.dim() > 0]
    indexed = name == "aten::index" and isinstance(args[0], Apart)
    if own and strange and name not in COPIES and not indexed:
        raise RuntimeError(f"{name} of tensors on two devices")
    wanted = torch.device(kwargs.get("device") or NAME)
    places = {"device": torch.device("cpu")} if kwargs.get("device") is not None else {}
    data, settings = tree_map(here, (args, {**kwargs, **places}))
    known = {id(here(tensor)): tensor for tensor in tensors}  # what was changed in place stays what it is

    def brought(value):
        if not isinstance(value, torch.Tensor) or wanted.type == "cpu":
            return value
        return known.get(id(value)) if id(value) in known else Apart(value)

    return tree_map(brought, op(*data, **settings))


class Module:
    """What torch asks the module of a device for."""

    _is_in_bad_fork = staticmethod(lambda: False)
    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    get_rng_state = staticmethod(lambda device: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device: None)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])


def set_up():
    """Make the device in this process; what is imported in it stays."""
    gc.freeze()
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
    set_up.library = torch.library.Library("_", "IMPL")
    set_up.library.fallback(computed, "PrivateUse1")
    for name in MADE:  # torch's own constructors don't find a fallback in Python
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        torch.library.impl(f"aten::{name}", "PrivateUse1", functools.partial(computed, op))

    torch.inference_mode = torch.no_grad  # there torch makes no views of such tensors
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def apart():
    """Calls a function in a process that has the device: torch takes no new one once gradients were taken."""
    with ProcessPoolExecutor(1, get_fork_context(), set_up) as process:
        yield lambda function, *args: process.submit(function, *args).result()


def blocks(number, seed):
    return one_document_each(3 + np.random.default_rng(seed).integers(0, 300, (number, SEQ_LEN)))


BLOCKS = {
    name: blocks(number, seed)
    for seed, (name, number) in enumerate(
        {"probe": 4, "remeasure": 4, "general": 4, "domain": 4, "reception": 4, "train": 16}.items()
    )
}
SPEC = {"k": 1, "base_lr": 1e-3, "tokens": 2 * 32, "tokens_per_step": 32, "reports": 2, "recompute_every": 1}


@pytest.fixture(scope="module")
def measured(apart, backbone):
    return apart(probed, ProbeWork(backbone, 4, held_out=("general", "domain")), "cpu")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return local_backbone(save_tiny_backbone(tmp_path_factory.mktemp("backbone"), layers=3))


def mixed():
    """What comes of tensors on one device, and of each way to mix two."""
    ours, theirs = torch.ones(3, device=NAME), torch.ones(3)
    said = []
    for mix in (lambda: ours + theirs, lambda: theirs * ours, lambda: torch.cat([ours, theirs])):
        try:
            mix()
        except RuntimeError as problem:
            said.append(str(problem))
    return (ours + 1).device.type, (ours + 1).cpu().tolist(), said


def test_the_device_takes_no_tensors_of_two(apart):
    """Else nothing here would mean anything."""
    place, values, said = apart(mixed)
    assert (place, values) == (NAME, [2.0] * 3)
    assert len(said) == 3 and all("two devices" in each for each in said)


def probed(work, place):
    return run_probe(work, BLOCKS, torch.device(place))


@pytest.mark.parametrize("raced", [False, True])
def test_stage_one_measures_what_it_does_on_the_cpu(apart, backbone, raced):
    """Importance of layers and units, reception, separation and the held-out losses."""
    work = ProbeWork(
        backbone, 4, held_out=("general", "domain"), reception=True, separation=True, raced=raced
    )
    usual, there = (apart(probed, work, place) for place in ("cpu", NAME))
    for name in ("order", "ties"):
        assert there["importance"][name] == usual["importance"][name]
    for name in ("units", "base_loss"):
        assert there["importance"][name] == pytest.approx(usual["importance"][name], rel=1e-4)
    for name in ("general", "domain"):
        assert there["nats"][name] == pytest.approx(usual["nats"][name], rel=1e-4)
    assert there["reception"] == pytest.approx(usual["reception"], rel=1e-4)
    for ours, theirs in zip(there["separation"], usual["separation"], strict=True):
        assert ours["overlap"] == pytest.approx(theirs["overlap"], rel=1e-2)


def trained(work, place, folder):
    """The scores that a training reports, then those of it resumed from its first report, then the test's."""
    found = []

    def kept(metrics, made):
        found.append(metrics["score"])
        write_files(made, folder / str(len(found)))

    export.export = lambda model, folder, *about: folder.mkdir()  # it asks tensors for their storage
    stage2.train(work, BLOCKS, torch.device(place), Callbacks(kept))
    stage2.train(work, BLOCKS, torch.device(place), Callbacks(kept), ResumePoint(folder / "1"))
    export.score_and_export(work, BLOCKS, torch.device(place), folder / "2", {}, Callbacks(kept))
    return found


@pytest.mark.parametrize(
    ("tunes", "fit"),
    [
        ("copies", Fit()),
        ("copies", Fit(recompute=True)),
        ("originals", Fit()),
        ("all", Fit()),
        ("lora", Fit()),
    ],
)
def test_stage_two_trains_as_on_the_cpu(apart, backbone, measured, tmp_path, tunes, fit):
    """The same scores, resumed from a checkpoint as well, and of the trained model in the end."""
    work = TrainWork(
        backbone=backbone,
        training=TrainingSpec(**SPEC, tunes=tunes),
        layers=(1,),
        units=measured["importance"]["units"],
        before=measured["nats"],
        weights=ScoreWeights(),
        seq_len=SEQ_LEN,
        micro_batch=2,
        seed=0,
        fit=fit,
    )
    usual, there = (apart(trained, work, place, tmp_path / place) for place in ("cpu", NAME))
    assert there == pytest.approx(usual, rel=1e-3) and len(there) == 5
    assert there[2:4] == there[:2]  # resumed, it says the first report again
