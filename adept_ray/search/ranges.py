"""A search space is made fit for a run: other ends, a budget, the backbone's depth, the paper's setting."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from adept_ray.config.errors import UserError, suggest_names
from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.method.expansion import check_depth
from adept_ray.method.placement import check_placement, count_ranks_needed
from adept_ray.search.trials import Value

AMOUNT = r"([0-9.]+(?:e[0-9]+)?)(%|[kKMB]?)"  # of parameters, a share or a number
# The paper's setting, as far as a search varies it; its rate depends on the model.
PAPER = {
    "k": 4,
    "placement": "guided",
    "offset": 0,
    "recompute_every": 500,
    "normalization": "minmax",
    "granularity": "tensor",
    "sign": "protect",
}


def check_space(space: SearchSpace, layers: int, base: TrainingSpec) -> tuple[TrainingSpec, int]:
    """A deepest training of the space, and how many of the least important layers have to be in order for it.

    Whatever the largest k and offset of the ranges allow, the others allow, too. Raises :class:`UserError`
    when a k isn't between 0 and the number of layers, or a placement is impossible.
    """
    ranges = space.parameters
    fixed = {name: (getattr(base, name),) for name in ("placement", "offset", "tokens_per_step")}
    values = fixed | {name: searched.values for name, searched in ranges.items()}
    for k in values["k"]:
        check_depth(k, layers)
    extreme = {"k": max(values["k"]), "tokens_per_step": min(values["tokens_per_step"])}
    trainings = []
    for placement in values["placement"]:
        setting = {**extreme, "placement": placement}
        if "offset" not in ranges or "offset" in space.list_active(setting):
            setting["offset"] = max(values["offset"])
        trainings.append(apply_changes(base, setting))
    for training in trainings:
        check_placement(training, layers)
    return trainings[0], max(count_ranks_needed(training, layers) for training in trainings)


def override_ranges(space: SearchSpace, given: Iterable[str]) -> SearchSpace:
    """The space with other ends of some ranges, each NAME=LOW:HIGH; settings outside them aren't tried first.

    Raises :class:`UserError` for another form and for impossible ends.
    """
    for text in given:
        match = re.fullmatch(r"(\w+)=([^:=]+):([^:=]+)", text.replace(" ", ""))
        if not match:
            raise UserError(f"--range {text}: give NAME=LOW:HIGH, such as k=1:16")
        name = match[1]
        if name not in space.parameters:
            raise UserError(
                f"--range {text}: no such parameter in it, {suggest_names(name, space.parameters)}"
            )
        whole = TrainingSpec.model_fields[name].annotation is int
        kind = "int" if whole else "log" if space.parameters[name].kind == "log" else "float"
        try:
            ends = [int(end) if whole else float(end) for end in match.groups()[1:]]
        except ValueError:
            raise UserError(f"--range {text}: its ends must be {'whole ' * whole}numbers") from None
        ranges = {key: value.model_dump() for key, value in space.parameters.items()}
        ranges[name] = {kind: ends, "when": ranges[name]["when"]}
        low, high = ends
        first = [setting for setting in space.first if low <= setting.get(name, low) <= high]
        space = apply_changes(space, {"parameters": ranges, "first": first}, where=f"--range {text}")
    return space


def parse_amount(text: str, total: int) -> float:
    """How many parameters ``--max-new-params`` allows, of a model of `total`. Raises :class:`UserError`."""
    match = re.fullmatch(AMOUNT, text.strip())
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if not match or not number > 0:
        raise UserError(f"--max-new-params {text}: give a share such as 10%, or a number such as 15M")
    return number * {"%": total / 100, "": 1, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}[match[2]]


def double_amount(text: str) -> str:
    """Twice an amount, in the form that ``--max-new-params`` takes."""
    number, unit = re.fullmatch(AMOUNT, text.strip()).groups()  # type: ignore[union-attr]  # checked before
    return f"{2 * float(number):.12g}{unit}"


def limit_depths(
    space: SearchSpace, sizes: Sequence[int], limit: float, flag: str
) -> tuple[SearchSpace, int]:
    """The space without depths that add more than `limit` parameters, and the largest k that adds no more.

    `sizes` are the parameters of each layer: the limit must be enough whichever k layers are copied.
    Raises :class:`UserError`, naming the `flag`, when no k is left.
    """
    largest = sorted(sizes, reverse=True)
    most = max(k for k in range(len(sizes) + 1) if sum(largest[:k]) <= limit)
    depths = space.parameters["k"]
    if min(depths.values) > most:
        least = min(depths.values)
        raise UserError(
            f"{flag}: k = {least}, the smallest of the search space, adds {sum(largest[:least]) / 1e6:.1f} M "
            f"parameters, more than the {limit / 1e6:.1f} M that are allowed"
        )
    if max(depths.values) <= most:
        return space, most
    if depths.kind == "int":
        allowed = {"int": (depths.values[0], most)}
    else:
        allowed = {"choice": tuple(k for k in depths.values if k <= most)}
    parameters = {name: searched.model_dump() for name, searched in space.parameters.items()} | {"k": allowed}
    first = [setting for setting in space.first if setting["k"] <= most]
    return apply_changes(space, {"parameters": parameters, "first": first}), most


def put_paper_first(space: SearchSpace) -> SearchSpace:
    """The space with the paper's setting before all others, as near to it as its ranges allow.

    If a setting under ``first`` is the paper's at some rate, it goes to the front. Otherwise a new one does,
    with the middle of the range of rates, and with the defaults of what the paper doesn't vary.
    """
    paper: dict[str, Value] = {}
    for name, searched in space.parameters.items():
        usual = PAPER.get(name, TrainingSpec.model_fields[name].default)
        if name in space.list_active(paper):
            paper[name] = searched.middle if name == "base_lr" else searched.clip(usual)
    compared = [name for name in paper if name in PAPER]
    same = [s for s in space.first if all(s.get(name) == paper[name] for name in compared)]
    front = same[0] if same else paper
    return apply_changes(space, {"first": (front, *(setting for setting in space.first if setting != front))})
