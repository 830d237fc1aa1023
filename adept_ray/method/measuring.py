"""What a family is made of, found out on a tiny random model of its kind.

Nothing here knows an architecture. Layers are what the residual stream passes one after the other. Of a
layer's parameters the smallest set is looked for that, when it is zero, makes the layer return what entered
it, bit for bit: first all are zero, then they are given back one after the other as long as nothing comes of
it, those that scale first, then biases, then matrices in the order in which a pass meets them. So what is
left is what writes to the stream. Whether it writes in proportion, or a norm follows, is seen by halving it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from adept_ray.config.errors import UserError
from adept_ray.method.families import Family, is_named
from adept_ray.method.forwards import STREAM, answer_at_once, replace_forward, take_left
from adept_ray.method.layer_entries import list_layer_entries
from adept_ray.method.twins import LENGTH, SEQUENCES, build_twin, draw_tokens, shrink_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

HALF = 0.5
OTHER = "take a model of another type"
CLOSE = 0.02  # of the largest difference: what rounding leaves of half of something


class Obstacle(Exception):
    """What is in the way of copying layers of a kind, in words."""


@dataclass(frozen=True)
class Call:
    """What a layer was called with, and what it gave."""

    stream: torch.Tensor
    """What entered it."""
    args: tuple[object, ...]
    """What followed the stream."""
    options: Mapping[str, object]
    """What it was given by name, without the stream."""
    left: torch.Tensor
    """The stream that left it."""
    passed: int
    """How many values it gave; 0 for the stream alone."""

    def repeat(self, layer: nn.Module) -> torch.Tensor:
        """The stream that leaves `layer` when it is called in the same way."""
        return take_left(layer(self.stream.clone(), *self.args, **self.options))


def measure_family(config: PreTrainedConfig) -> Family:
    """The family of models of that Hugging Face config, measured on a tiny one; takes about a second.

    Raises :class:`UserError` that says what is in the way where a layer can't be made the identity.
    """
    kind = config.model_type
    if getattr(config, "sub_configs", None) and "text_config" in config.sub_configs:
        raise UserError(
            f"models of type '{kind}' hold a text model beside others, which can't be expanded yet: give the "
            "text model alone"
        )
    try:
        twin = build_twin(shrink_config(config))
        ids = draw_tokens(SEQUENCES, LENGTH)
        path, calls = find_layers(twin, ids)
    except Obstacle as problem:
        raise UserError(f"models of type '{kind}' can't be expanded: {problem}; {OTHER}") from None
    except Exception as problem:  # whatever code of other libraries makes of sizes that nobody trains
        raise UserError(
            f"models of type '{kind}' can't be looked at on a tiny one of their kind "
            f"({describe_briefly(problem)}); {OTHER}"
        ) from problem
    layers = twin.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    if len(layers) != config.num_hidden_layers:
        raise UserError(
            f"models of type '{kind}' can't be expanded: num_hidden_layers is {config.num_hidden_layers}, "
            f"and the stream passes {len(layers)} layers; {OTHER}"
        )
    try:
        check_bypass(twin, ids, layers, calls[0])
        family = measure_layers(layers, calls)
    except Obstacle as problem:
        raise UserError(f"models of type '{kind}' can't be expanded: {problem}; {OTHER}") from None
    return replace(
        family,
        layers=path,
        per_layer_config=list_layer_entries(twin.config),
        logits_changed_by=find_changed_logits(twin, ids),
        numbers=find_numbers(layers),
        passed=calls[0].passed,
    )


def find_layers(model: PreTrainedModel, ids: torch.Tensor) -> tuple[str, list[Call]]:
    """The path of the module list that the stream passes entry by entry, the longest one, and each's call.

    Raises :class:`Obstacle` where there is none.
    """
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    heard: dict[str, list[tuple[int, Call]]] = {name: [] for name in lists}
    hooks = [
        entry.register_forward_hook(_listen(heard[name], number), with_kwargs=True)
        for name, part in lists.items()
        for number, entry in enumerate(part)
    ]
    with torch.no_grad():
        try:
            model(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    chains = {
        name: [call for _, call in calls]
        for name, calls in heard.items()
        if [number for number, _ in calls] == list(range(len(lists[name]))) and _is_chain(calls)
    }
    if not chains:
        raise Obstacle("no list of layers is passed by one stream, each entry once and in order")
    path = max(chains, key=lambda name: (len(chains[name]), -name.count(".")))
    return path, chains[path]


def _listen(calls: list[tuple[int, Call]], number: int) -> Callable[..., None]:
    def listen(_: nn.Module, args: tuple[object, ...], options: dict[str, object], out: object) -> None:
        given = dict(options)
        stream, rest = (args[0], args[1:]) if args else (given.pop(STREAM, None), ())
        left = out[0] if isinstance(out, (tuple, list)) and out else out
        if isinstance(stream, torch.Tensor) and isinstance(left, torch.Tensor):
            passed = len(out) if isinstance(out, (tuple, list)) else 0
            calls.append((number, Call(stream.clone(), rest, given, left.clone(), passed)))

    return listen


def check_bypass(model: PreTrainedModel, ids: torch.Tensor, layers: nn.ModuleList, call: Call) -> None:
    """Raise :class:`Obstacle` unless the model runs when its first layers hand on what enters them."""
    try:
        with torch.no_grad(), answer_at_once([*layers][: len(layers) // 2 + 1], call.stream, call.passed):
            model(input_ids=ids, use_cache=False)
    except Exception as problem:
        raise Obstacle(
            "layers hand each other more than the stream, so their importance can't be measured "
            f"({describe_briefly(problem)})"
        ) from problem


def describe_briefly(problem: Exception) -> str:
    """An error's class and the first line of its text."""
    return f"{type(problem).__name__}: {problem}".partition("\n")[0][:200]


def _is_chain(calls: list[tuple[int, Call]]) -> bool:
    """Whether what leaves each is what enters the next one."""
    streams = [(one.left, other.stream) for (_, one), (_, other) in itertools.pairwise(calls)]
    return bool(calls) and all(torch.equal(left, entered) for left, entered in streams)


def measure_layers(layers: nn.ModuleList, calls: list[Call]) -> Family:
    """The outputs and closing norms of layers of all kinds that there are among these."""
    found: dict[Hashable, Family] = {}
    for layer, call in zip(layers, calls, strict=True):
        kind = _describe_kind(layer)
        if kind not in found:
            found[kind] = measure_layer(layer, call)
    kinds = list(found.values())
    offsets = {family.norm_offset for family in kinds if family.closing_norms}
    if len(offsets) > 1:
        raise Obstacle("its norms don't all scale alike")
    return Family(
        outputs=_join(family.outputs for family in kinds),
        closing_norms=_join(family.closing_norms for family in kinds),
        norm_offset=max(offsets, default=0.0),
        normed=_join(family.normed for family in kinds),
    )


def _describe_kind(layer: nn.Module) -> Hashable:
    """What tells a kind of layer from others: its parameters, and plain values that its modules hold."""
    plain = [
        (name, type(part), *((key, value) for key, value in vars(part).items() if isinstance(value, str)))
        for name, part in layer.named_modules()
    ]
    return *plain, *((name, each.shape) for name, each in layer.named_parameters())


def _join(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(itertools.chain.from_iterable(names)))


def measure_layer(layer: nn.Module, call: Call) -> Family:
    """The outputs and closing norms of one layer. Raises :class:`Obstacle` where it can't be an identity."""
    trial = Trial(layer, call)
    outputs = trial.find_outputs()
    closing, normed, offset = trial.find_closing_norms(outputs)
    return Family(outputs=outputs, closing_norms=closing, normed=normed, norm_offset=offset)


class Trial:
    """A copy of a layer whose parameters are changed, group by group, to see what comes of it.

    A group are the parameters of one name, those of all experts together.
    """

    def __init__(self, layer: nn.Module, call: Call) -> None:
        self.copy, self.call = copy.deepcopy(layer), call
        self.groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.copy.named_parameters():
            self.groups.setdefault(self._name_group(name), []).append(parameter)
        self.values = {name: [p.detach().clone() for p in group] for name, group in self.groups.items()}

    def _name_group(self, name: str) -> str:
        """The name of a parameter or module, with ``*`` where it is one of a list of them."""
        parts = name.split(".")
        for at, part in enumerate(parts):
            if part.isdigit() and isinstance(self.copy.get_submodule(".".join(parts[:at])), nn.ModuleList):
                name = ".".join("*" if number == at else each for number, each in enumerate(name.split(".")))
        return name

    def scale(self, names: Iterable[str], factor: float, offset: float = 0.0) -> None:
        """Set the groups of these names to `factor` times what they were, each counted with an `offset`."""
        with torch.no_grad():
            for name in names:
                for parameter, value in zip(self.groups[name], self.values[name], strict=True):
                    parameter.copy_((value + offset) * factor - offset)

    def measure_change(self) -> torch.Tensor:
        """What the copy adds to the stream as it is now."""
        with torch.no_grad():
            return self.call.repeat(self.copy) - self.call.stream

    def is_identity(self) -> bool:
        """Whether the copy returns what enters it, bit for bit."""
        with torch.no_grad():
            return torch.equal(self.call.repeat(self.copy), self.call.stream)

    def find_outputs(self) -> tuple[str, ...]:
        """Names of the smallest set of groups with which at zero the copy is the identity."""
        self.scale(self.groups, 1.0)
        if not torch.equal(self.call.repeat(self.copy), self.call.left):
            raise Obstacle("a layer that is called twice with the same gives different things")
        order = self.order_groups()
        self.scale(self.groups, 0.0)
        zero = list(self.groups)
        if not self.is_identity():
            raise Obstacle(self.explain_refusal())
        for name in order:
            self.scale([name], 1.0)
            if self.is_identity():
                zero.remove(name)
            else:
                self.scale([name], 0.0)
        if not zero:
            raise Obstacle("a layer changes nothing on the tiny model, so its outputs can't be told")
        return self._name_modules(zero)

    def explain_refusal(self) -> str:
        """Why a copy whose parameters are all zero doesn't return what enters it."""
        left = self.call.repeat(self.copy)
        if not left.isfinite().all():
            return "with all of its parameters at zero a layer gives no numbers"
        if not left.any():
            return (
                "a layer ends in a norm, or another map, of the sum of what entered and what it adds, so no "
                "weights make a copy return what entered it"
            )
        return "with all of its parameters at zero a layer still changes the stream"

    def order_groups(self) -> list[str]:
        """Names of the groups: those that scale first, then biases, then matrices as a pass meets them."""
        met: dict[str, int] = {}

        def meet(name: str) -> Callable[..., None]:
            def note(*_: object) -> None:
                met.setdefault(name, len(met))

            return note

        hooks = [
            part.register_forward_pre_hook(meet(self._name_group(name)))
            for name, part in self.copy.named_modules()
        ]
        with torch.no_grad():
            self.call.repeat(self.copy)
        for hook in hooks:
            hook.remove()
        places = {name: place for place, name in enumerate(self.groups)}

        def rank(name: str) -> tuple[int, int, int]:
            vector = all(parameter.dim() == 1 for parameter in self.groups[name])
            kind = 2 if not vector else 1 if name.rpartition(".")[2].endswith("bias") else 0
            owner = name.rpartition(".")[0]
            while owner and owner not in met:
                owner = owner.rpartition(".")[0]
            return kind, met.get(owner, 0), places[name]

        return sorted(self.groups, key=rank)

    def _name_modules(self, names: Iterable[str]) -> tuple[str, ...]:
        """These groups' names, with that of the module where all of one's parameters are among them."""
        names, found = list(names), []
        for name in names:
            owner = name.rpartition(".")[0]
            whole = bool(owner) and all(n in names for n in self.groups if n.startswith(f"{owner}."))
            found.append(owner if whole else name)
        return tuple(dict.fromkeys(found))

    def _list_groups(self, name: str) -> list[str]:
        return [group for group in self.groups if is_named(group, [name])]

    def find_closing_norms(self, outputs: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], float]:
        """The norms that close what `outputs` make, which of these are normed, and the norms' offset."""
        closing: list[str] = []
        normed: list[str] = []
        offsets: set[float] = set()
        vectors = [
            name.rpartition(".")[0]
            for name, group in self.groups.items()
            if name.endswith(".weight") and all(p.dim() == 1 for p in group) and not is_named(name, outputs)
        ]
        units = dict.fromkeys(name.rpartition(".")[0] if name in self.groups else name for name in outputs)
        for unit in units:
            own = [g for g in self.groups if is_named(g, outputs) and is_named(g, [unit])]
            self.scale(self.groups, 1.0)
            self.scale((g for g in self.groups if is_named(g, outputs)), 0.0)
            self.scale(own, 1.0)
            whole = self.measure_change()
            if not whole.any() or self.halves(own, 0.0, whole):
                continue
            normed += [name for name in outputs if is_named(name, [unit])]
            for norm in vectors:
                offset = next((o for o in (0.0, 1.0) if self.halves(self._list_groups(norm), o, whole)), None)
                if offset is not None:
                    closing.append(norm)
                    offsets.add(offset)
                    break
        if len(offsets) > 1:
            raise Obstacle("its norms don't all scale alike")
        return tuple(dict.fromkeys(closing)), tuple(dict.fromkeys(normed)), max(offsets, default=0.0)

    def halves(self, names: list[str], offset: float, whole: torch.Tensor) -> bool:
        """Whether the copy adds half of `whole` with these groups halved; they are put back."""
        self.scale(names, HALF, offset)
        part = self.measure_change()
        self.scale(names, 1.0)
        return bool((part - HALF * whole).abs().max() <= CLOSE * whole.abs().max())


def find_changed_logits(model: PreTrainedModel, ids: torch.Tensor) -> tuple[str, ...] | None:
    """None where logits are more than what the output head makes of the last stream; else nothing."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    put_out: list[torch.Tensor] = []

    def answer(stream: torch.Tensor) -> torch.Tensor:
        put_out.append(stream[..., 0] * 8)  # so large that a cap would show
        return put_out[-1]

    try:
        with torch.no_grad(), replace_forward(head, answer):
            logits = model(input_ids=ids, use_cache=False).logits
    except Exception:  # what is done to logits may not be possible with one number a token
        return None
    return () if len(put_out) == 1 and torch.equal(logits, put_out[0]) else None


def find_numbers(layers: nn.ModuleList) -> tuple[str, ...]:
    """Names of the attributes that hold the number of their layer, in all layers that have them."""
    seen: dict[str, set[tuple[int, int]]] = {}
    for number, layer in enumerate(layers):
        for part in layer.modules():
            for name, value in vars(part).items():
                if type(value) is int and not name.startswith("_"):
                    seen.setdefault(name, set()).add((number, value))
    fits = {name: all(number == value for number, value in each) for name, each in seen.items()}
    return tuple(sorted(name for name, fit in fits.items() if fit and len(seen[name]) > 1))
