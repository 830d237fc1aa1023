"""A backbone, and how its config, weights and tokenizer are loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adept_ray.config.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Backbone:
    """A backbone found: what ``from_pretrained`` takes, and what names results made with it."""

    name: str
    source: str
    """Local folder or hub id."""
    revision: str | None
    """Commit of a hub id; None for a folder."""
    fingerprint: str
    note: str
    trusted: bool = False
    """Whether the Python code that comes with it may be run."""


@dataclass
class Resident:
    """The backbone that this process holds, so that one trial after the other needn't load it."""

    key: tuple[Any, ...] = ()
    model: Any = None


_RESIDENT = Resident()


def borrow(
    source: str,
    revision: str | None = None,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    alone: bool = False,
    trusted: bool = False,
) -> Any:
    """The backbone on `device`, in eval mode, with nothing that requires a gradient.

    It is loaded once in a process and given out in a structure of its own: layers may be added to that, but
    its weights are shared with all who borrow after, so none of them may be changed. Who changes them has
    it `alone`: the process then keeps none. Raises :class:`UserError` as :func:`load_model` does.
    """
    key = (source, revision, dtype, str(device), trusted)
    if _RESIDENT.key != key:
        _RESIDENT.key, _RESIDENT.model = (), None  # first, so that there are never two
        loaded = load_model(source, revision, dtype, device=device, trusted=trusted)
        _RESIDENT.model = loaded.requires_grad_(False)
        _RESIDENT.key = key
    model = _RESIDENT.model
    if alone:
        _RESIDENT.key, _RESIDENT.model = (), None
        return model
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)  # of modules and config: what is in `kept` is taken for copied


def borrow_sharded(
    source: str, revision: str | None, dtype: str, device: torch.device, trusted: bool = False
) -> Any:
    """The backbone shared out over all ranks (see :mod:`adept_ray.method.sharding`), otherwise as :func:`borrow`.

    The first rank keeps it whole in its machine's memory, from one task to the next.
    """
    from adept_ray.method.ranks import rank
    from adept_ray.method.sharding import shard_model

    model = build_outline(source, revision, dtype, trusted).requires_grad_(False)
    shard_model(model, borrow(source, revision, dtype, trusted=trusted) if rank() == 0 else None, device)
    return model


def build_outline(source: str, revision: str | None, dtype: str, trusted: bool = False) -> Any:
    """The backbone's shapes, without data."""
    from adept_ray.method.sharding import build_skeleton

    return build_skeleton(load_config(source, revision, trusted), dtype, trusted, revision)


def load_config(source: str, revision: str | None = None, trusted: bool = False) -> Any:
    """Its Hugging Face config. Raises :class:`UserError` when transformers can't read it."""
    from transformers import AutoConfig

    with _explain_load_errors(source, "its config can't be read", trusted):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trusted)


def load_model(
    source: str,
    revision: str | None = None,
    dtype: str = "float32",
    attention: str | None = None,
    device: torch.device | str = "cpu",
    trusted: bool = False,
) -> Any:
    """Load a causal LM (a ``PreTrainedModel`` in eval mode) to `device`, no pickles.

    Python code that comes with it is run if it is `trusted`, and never otherwise. Onto a GPU weights go
    straight from the file. `attention` None is what transformers takes for the family: scaled dot-product
    attention where it is supported. Raises :class:`UserError` when transformers can't load it or the weights
    don't fill the model.
    """
    import torch

    place = {} if str(device) == "cpu" else {"device_map": {"": device}}
    with _explain_load_errors(source, "can't be loaded as a causal LM", trusted):
        model = _load_whole(
            source,
            pretrained_model_name_or_path=source,
            revision=revision or "main",
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=trusted,
            **place,
        )
    return model.eval()


def _load_whole(name: str | Path, **options: Any) -> Any:
    """``from_pretrained`` that refuses weights with gaps, which transformers fills with random numbers."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **{"trust_remote_code": False, **options}, use_safetensors=True, output_loading_info=True
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{name}: the weights lack {len(missing)} tensors of the model, such as {missing[0]}")
    return model


@contextmanager
def _explain_load_errors(source: str, fault: str, trusted: bool) -> Iterator[None]:
    """Silence, and one sentence for what transformers, or code that came with a model, stumbles over."""
    try:
        with _quiet_transformers():
            yield
    except Exception as problem:
        if "trust_remote_code" in str(problem):
            raise UserError(
                f"{source}: {fault} without Python code that comes with it: read that code, and give "
                "--trust-remote-code if it may run here"
            ) from None
        if not trusted and not isinstance(problem, (OSError, ValueError, RuntimeError, TypeError)):
            raise
        raise UserError(f"{source}: {fault}: {_first_line(problem)}") from problem


def load_tokenizer(
    source: str, revision: str | None = None, trusted: bool = False
) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer. Raises :class:`UserError` when there is none or it has no EOS token."""
    from transformers import AutoTokenizer

    with _explain_load_errors(source, "its tokenizer can't be loaded", trusted):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source, revision=revision or "main", use_fast=True, trust_remote_code=trusted
        )
    if not tokenizer.is_fast:
        raise UserError(f"{source}: its tokenizer is a slow one; a tokenizer.json is needed")
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{source}: its tokenizer has no EOS token, which separates documents; add an eos_token"
        )
    return tokenizer


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal, and leave its settings as they were."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
