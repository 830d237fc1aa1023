"""A backbone, and how its config, weights and tokenizer are loaded."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import describe_os_fault
from adept_ray.data.config_faults import explain_config_fault
from adept_ray.data.hub_client import use_patient_client
from adept_ray.data.hub_faults import explain_hub_error, is_of_the_hub
from adept_ray.data.hub_files import find_snapshot

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

MOST_TEXT = 300  # characters of what a library says
UNKNOWN = "untagged enum"  # what tokenizers says of a tokenizer.json of a kind that it has no code for


@dataclass(frozen=True)
class Backbone:
    """A backbone found: what ``from_pretrained`` takes, and what names results made with it."""

    name: str
    source: str
    """Local folder or hub id."""
    revision: str | None = None
    """Commit of a hub id; None for a folder."""
    fingerprint: str = ""
    note: str = ""
    """Source, version and licence."""
    trusted: bool = False
    """Whether the Python code that comes with it may be run."""
    dtype: str = "float32"
    """Torch type of its weights. What is trained is float32 whatever this is."""
    random: bool = False
    """Random weights in its shapes, of which none is read: only to measure how fast they compute."""


@dataclass
class Resident:
    """The backbone that this process holds, so that one trial after the other needn't load it."""

    key: tuple[object, ...] = ()
    model: PreTrainedModel | None = None


_RESIDENT = Resident()


def borrow(backbone: Backbone, device: torch.device | str = "cpu", alone: bool = False) -> PreTrainedModel:
    """The backbone on `device`, in eval mode, with nothing that requires a gradient.

    A process loads it once. Every borrower gets a structure of its own, to which layers may be added. The
    weights are shared with all who borrow later, so nobody may change them. A borrower who has to change them
    takes the model `alone`: the process then keeps none. Raises :class:`UserError` as :func:`load_model`.
    """
    key = (backbone.source, backbone.revision, backbone.dtype, backbone.trusted, str(device), backbone.random)
    if _RESIDENT.key != key:
        _RESIDENT.key, _RESIDENT.model = (), None  # first, so that there are never two
        _RESIDENT.model = load_model(backbone, device).requires_grad_(False)
        _RESIDENT.key = key
    model = _RESIDENT.model
    assert model is not None
    if alone:
        _RESIDENT.key, _RESIDENT.model = (), None
        return model
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)  # copies modules and config, and takes tensors in `kept` for copied


def borrow_sharded(backbone: Backbone, device: torch.device) -> PreTrainedModel:
    """The backbone in pieces on all ranks (see :mod:`adept_ray.method.sharding`), else as :func:`borrow`.

    The first rank keeps it whole in its machine's memory, from one job to the next.
    """
    from adept_ray.method.ranks import rank
    from adept_ray.method.sharding import shard_model

    model = build_outline(backbone).requires_grad_(False)
    shard_model(model, borrow(backbone) if rank() == 0 else None, device)
    return model


def build_outline(
    backbone: Backbone, config: PreTrainedConfig | None = None, device: torch.device | str = "meta"
) -> PreTrainedModel:
    """The backbone in eval mode on the meta device: shapes without data; `config` if it was read already.

    On another `device` it has random weights. Runs Python code that comes with the backbone if that is
    trusted, in the backbone's revision.
    """
    from transformers import AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from adept_ray.method.sharding import build_skeleton

    config = config or load_config(backbone)
    own = (getattr(config, "auto_map", None) or {}).get(AutoModelForCausalLM.__name__)
    if not backbone.trusted or not own:
        return build_skeleton(config, backbone.dtype, device=device)
    # `from_config` would take the newest code of a hub id
    kind = get_class_from_dynamic_module(own, backbone.source, revision=backbone.revision)
    return build_skeleton(config, backbone.dtype, cast("type[PreTrainedModel]", kind), device)


def load_config(backbone: Backbone) -> PreTrainedConfig:
    """Its Hugging Face config. Raises :class:`UserError` when transformers can't read it."""
    from transformers import AutoConfig

    with _explain_load_errors(backbone, "its config can't be read"):
        return AutoConfig.from_pretrained(**locate_files(backbone), trust_remote_code=backbone.trusted)


def locate_files(backbone: Backbone) -> dict[str, str]:
    """What ``from_pretrained`` is told: a folder, which of a hub id is that of the cache once all is there.

    So loading asks the hub for nothing that this machine has.
    """
    if backbone.revision is None:
        return {"pretrained_model_name_or_path": backbone.source}
    use_patient_client()
    folder = find_snapshot(backbone.source, backbone.revision)
    if folder and (not backbone.trusted or next(folder.glob("*.py"), None)):
        return {"pretrained_model_name_or_path": str(folder)}
    return {"pretrained_model_name_or_path": backbone.source, "revision": backbone.revision}


def load_model(
    backbone: Backbone, device: torch.device | str = "cpu", attention: str | None = None
) -> PreTrainedModel:
    """Load a causal LM in eval mode to `device`, no pickles; a random one is made there.

    Python code that comes with it runs only if it is trusted. Onto a GPU weights go straight from the file.
    With `attention` None transformers takes what suits the family: scaled dot-product attention where that
    is supported. Raises :class:`UserError` when transformers can't load it or the weights don't fill the
    model.
    """
    import torch

    if backbone.random:
        return build_outline(backbone, device=device)
    place = {} if str(device) == "cpu" else {"device_map": {"": device}}
    with _explain_load_errors(backbone, "can't be loaded as a causal LM"):
        model = load_whole_model(
            backbone.source,
            **locate_files(backbone),
            dtype=getattr(torch, backbone.dtype),
            attn_implementation=attention,
            trust_remote_code=backbone.trusted,
            **place,
        )
    return model.eval()


def load_whole_model(name: str | Path, **options: Any) -> PreTrainedModel:
    """``from_pretrained`` that refuses weights with gaps, and weights that it would pass over.

    transformers fills gaps with random numbers. `options` are those of ``from_pretrained``. Raises
    :class:`UserError` that begins with `name`.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **{"trust_remote_code": False, **options},
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # else transformers refers to a report that nobody sees
    )
    model, report = loaded
    if mismatched := sorted(report["mismatched_keys"]):
        key, held, wanted = mismatched[0]
        raise UserError(
            f"{name}: {key} has the shape {format_shape(held)} in the weights and {format_shape(wanted)} by "
            "config.json; take the config that belongs to them"
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{name}: the weights lack {len(missing)} tensors of the model, such as {missing[0]}; copy or "
            "download them again, or take the config that belongs to them"
        )
    if unused := sorted(report["unexpected_keys"]):
        raise UserError(
            f"{name}: the model that config.json describes has no place for {len(unused)} tensors of the "
            f"weights, such as {unused[0]}; take the config that belongs to them"
        )
    return model


def format_shape(shape: Iterable[int]) -> str:
    """``4 × 8``: a tensor's shape as people read it."""
    return " × ".join(map(str, shape))


def check_weights(backbone: Backbone) -> None:
    """Check that the weights of a folder are those of its config, by their names and shapes; reads none.

    Raises :class:`UserError` as :func:`load_model` does.
    """
    load_model(backbone, "meta")


def check_tokenizer(backbone: Backbone, vocabulary: int) -> None:
    """Check that a model with embeddings of so many tokens knows all of its tokenizer's.

    Raises :class:`UserError` where it doesn't, and as :func:`load_tokenizer` does.
    """
    tokenizer = load_tokenizer(backbone)
    last, word = max((number, word) for word, number in tokenizer.get_vocab().items())
    if last >= vocabulary:
        end = ", its EOS token" if word == tokenizer.eos_token else ""
        raise UserError(
            f"{backbone.source}: its tokenizer has tokens up to number {last} ('{word}'{end}), and the "
            f"model's embeddings end at {vocabulary - 1}: give the tokenizer that it was trained with, or "
            f"call resize_token_embeddings({last + 1}), train the new rows, and save it again"
        )


@contextmanager
def _explain_load_errors(backbone: Backbone, fault: str) -> Iterator[None]:
    """Silence, and one sentence for what transformers, or code that came with a model, stumbles over."""
    source = backbone.source
    try:
        with silence_transformers():
            yield
    except Exception as problem:
        if "trust_remote_code" in str(problem):
            raise UserError(
                f"{source}: {fault} without Python code that comes with it: read that code, and give "
                "--trust-remote-code if it may run here"
            ) from None
        if backbone.revision and is_of_the_hub(problem):
            raise UserError(explain_hub_error(source, problem)) from problem
        if isinstance(problem, UserError):
            raise
        newer = "; a newer version of the package tokenizers may know it" if UNKNOWN in str(problem) else ""
        why = describe_os_fault(problem) or explain_config_fault(problem) or describe_fault(problem)
        raise UserError(f"{source}: {fault}: {why}{newer}") from problem


def load_tokenizer(backbone: Backbone) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer, one of the hub once in a process; the caller may change what it gets.

    Raises :class:`UserError` when there is none or it has no EOS token.
    """
    return copy.deepcopy(_keep_tokenizer(backbone)) if backbone.revision else _read_tokenizer(backbone)


def _read_tokenizer(backbone: Backbone) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    source = backbone.source
    with _explain_load_errors(backbone, "its tokenizer can't be loaded"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            **locate_files(backbone), use_fast=True, trust_remote_code=backbone.trusted
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"{source}: its tokenizer is a slow one, without a tokenizer.json; take a fast one of that model"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{source}: its tokenizer has no EOS token, which separates documents; add an eos_token"
        )
    return tokenizer


_keep_tokenizer = functools.lru_cache(maxsize=2)(_read_tokenizer)


def describe_fault(problem: Exception) -> str:
    """An error's text as one short line, with its class where it says little by itself."""
    text = " ".join(str(problem).split())
    if not text or isinstance(problem, (LookupError, AttributeError)):
        text = f"{type(problem).__name__} {text}".strip()
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


@contextmanager
def silence_transformers() -> Iterator[None]:
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
