"""A model in pieces on all ranks, where none can hold it whole (FSDP2, arXiv 2304.11277; pure torch).

Every rank keeps a piece of each parameter, of its gradient and of the optimizer's state. The ranks put a
layer together when it runs and let go of it afterwards, so all of them have to make the same passes: see
:func:`adept_ray.method.ranks.split_over_ranks`. Gradients are summed over ranks on the way back.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from adept_ray.method.anatomy import layers_of
from adept_ray.method.ranks import rank, world_size

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def build_skeleton(
    config: PreTrainedConfig,
    dtype: str = "float32",
    kind: type[PreTrainedModel] | None = None,
    device: torch.device | str = "meta",
) -> PreTrainedModel:
    """A causal LM of that Hugging Face `config` in eval mode, on the meta device: shapes without data.

    On another `device` its weights are random. `kind` is its class where that came with the model as Python
    code; else transformers has one.
    """
    from transformers import AutoModelForCausalLM

    own, values = copy.deepcopy(config), getattr(torch, dtype)
    with torch.device(device):
        if kind is not None:
            return kind._from_config(own, dtype=values).eval()
        return AutoModelForCausalLM.from_config(own, dtype=values, trust_remote_code=False).eval()


def shard_model(model: nn.Module, whole: nn.Module | None, device: torch.device) -> None:
    """Share `model` out over all ranks, in place, with the weights of `whole`.

    `model` has the same shapes on every rank and no data (see :func:`build_skeleton`). `whole` is that model
    with data on the CPU of the first rank, None on the others; it stays as it is. Every rank keeps its pieces
    on `device`, the frozen and the trained ones alike.
    """
    gc.collect()  # pieces of an earlier model lie in cycles, and there may be no room for two
    mesh = init_device_mesh(device.type, (world_size(),))
    for part in (*layers_of(model), model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)  # so that between passes all are pieces
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)  # a sum over ranks and not their mean: losses are shares of one
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    model.to_empty(device=device)
    weights = whole.state_dict() if whole is not None else {}
    set_model_state_dict(
        model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    )
    # Rotary frequencies and the like are computed when a model is made, so no state names them.
    made = dict(whole.named_buffers()) if whole is not None else {}
    for name, buffer in model.named_buffers():
        if name in made:
            buffer.copy_(made[name])
        if world_size() > 1:
            dist.broadcast(buffer, src=0)


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard_model` has shared `model` out."""
    return isinstance(model, FSDPModule)


def disable_gradients(model: nn.Module) -> AbstractContextManager[object]:
    """A context in which nothing is kept for a gradient.

    FSDP keeps buffers from one pass to the next, and no training could fill those made in inference mode.
    """
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()


def gather_whole(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` put together from the pieces of all ranks, which all must call this; a plain one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A plain `tensor`, which all ranks hold, on the device of `like`, and in pieces if `like` is."""
    here = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return here
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def gather_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the whole tensors on the CPU of the first rank; all ranks must call this."""
    found = {}
    for name, tensor in tensors.items():
        together = gather_whole(tensor.detach())
        if rank() == 0:
            found[name] = together.to("cpu", copy=True)
    return found
