"""Benchmarks as scores: accuracy on lm-eval tasks, kept item by item so that changes get honest errors.

A task is any name that lm-eval (0.4.13) knows, one of ours in the folder ``tasks``, or a .yaml file. Its
items are drawn at random into two parts without one in common: ``validation``, by which a search chooses, and
``test``.
"""

from __future__ import annotations

import io
import logging
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adept_ray.config import UserError, nearest
from adept_ray.ranks import rank, summed, world_size

TASKS = Path(__file__).parent / "tasks"
PAPER = ("paper_general", "paper_math", "paper_medical")
"""Groups of the paper's own benchmarks, most of which lm-eval defines."""
OWN = frozenset(path.stem for path in TASKS.glob("*.yaml")).difference(PAPER)
OFFLINE = tuple(sorted(name for name in OWN if name.startswith("offline_")))
"""Tasks made from pinned packages: they need no hub."""
METRICS = ("acc", "exact_match")
"""What counts as right, the first of them that a task has."""
FEWSHOT_SEED = 1234  # lm-eval's own
ERRORS = 2.0  # standard errors above chance from which on a task says something


@dataclass(frozen=True)
class Items:
    """The questions that a side is judged by."""

    names: tuple[str, ...]
    """Tasks and groups as they were asked for."""
    numbers: Mapping[str, tuple[int, ...]]
    """lm-eval task → numbers of the items in the split that it is scored on, ascending."""
    chance: Mapping[str, float | None]
    """lm-eval task → accuracy of guessing; None where answers are generated."""
    cache: Path
    """Folder for assets."""

    def __len__(self) -> int:
        return sum(map(len, self.numbers.values()))

    def by_task(self, values: Sequence[float] | np.ndarray) -> dict[str, np.ndarray]:
        """Values of all items [N] apart by task."""
        pieces = np.split(np.asarray(values), np.cumsum([len(each) for each in self.numbers.values()])[:-1])
        return dict(zip(self.numbers, pieces, strict=True))


def draw(names: Sequence[str], most: int, seed: int, cache: Path) -> dict[str, Items]:
    """``validation`` and ``test`` → up to `most` items of each named task or group, none in both.

    A group's items are spread evenly over its tasks. Raises :class:`UserError` for an unknown task and for
    one whose data can't be had.
    """
    found = load_each(tuple(names), cache)
    numbers: dict[str, dict[str, tuple[int, ...]]] = {"validation": {}, "test": {}}
    chance: dict[str, float | None] = {}
    for name, tasks in found.items():
        share = math.ceil(most / len(tasks))
        for task, each in tasks.items():
            if (count := len(each.eval_docs)) < 2:
                raise UserError(f"task '{task}' of '{name}' has {count} items: two splits need two")
            shuffled = list(range(count))
            random.Random(f"{seed} {task}").shuffle(shuffled)
            size = min(share, count // 2)
            numbers["validation"][task] = tuple(sorted(shuffled[:size]))
            numbers["test"][task] = tuple(sorted(shuffled[size : 2 * size]))
            chance[task] = guessing(each)
    return {split: Items(tuple(names), drawn, chance, cache) for split, drawn in numbers.items()}


def guessing(task: Any, most: int = 1000) -> float | None:
    """Accuracy of a loaded task, on its first items, that takes no knowledge; None where text is generated.

    Where the options are the same in each item it is that of the commonest answer, given always.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    docs = [doc for _, doc in zip(range(most), task.eval_docs, strict=False)]
    options = [tuple(task.doc_to_choice(doc)) for doc in docs]
    blind = float(np.mean([1 / len(each) for each in options]))
    if len(set(options)) > 1:
        return blind
    answers = Counter(str(task.doc_to_target(doc)) for doc in docs)
    return max(blind, answers.most_common(1)[0][1] / len(docs))


def correct(model: nn.Module, tokenizer: Any, items: Items, batch: int, quiet: bool = True) -> np.ndarray:
    """Whether `model` is right on each item, float64 [N]: 0 or 1. Ranks share the work and get it all.

    `batch` is the number of sequences of a forward pass; `quiet` keeps lm-eval's bars of progress back.
    Raises :class:`UserError` as :func:`draw` does.
    """
    from lm_eval.evaluator import evaluate

    every = [(task, number) for task, numbers in items.numbers.items() for number in numbers]
    mine: dict[str, list[int]] = {}
    for task, number in every[rank() :: world_size()]:
        mine.setdefault(task, []).append(number)  # ascending: lm-eval takes them for sorted
    right = torch.zeros(len(every), dtype=torch.float64)
    if mine:
        training = model.training
        with hushed(), redirect_stderr(io.StringIO()) if quiet else nullcontext():
            found = {k: v for tasks in load_each(items.names, items.cache).values() for k, v in tasks.items()}
            scores: Any = evaluate(
                language_model(model, tokenizer, batch),
                {"tasks": {task: found[task] for task in mine}},
                samples=mine,
                bootstrap_iters=0,
            )
        model.train(training)
        place = {item: at for at, item in enumerate(every)}
        for task, samples in scores["samples"].items():
            metric, first = metric_of(task, samples), samples[0]["filter"]
            for sample in samples:
                if sample["filter"] == first:
                    right[place[task, sample["doc_id"]]] = float(sample[metric])
    return summed(right, next(model.parameters()).device).numpy()


def metric_of(task: str, samples: Sequence[Mapping[str, Any]]) -> str:
    """The metric that says whether an answer is right. Raises :class:`UserError` when a task has none."""
    metrics = samples[0]["metrics"]
    for metric in METRICS:
        if metric in metrics:
            return metric
    raise UserError(
        f"task '{task}' is scored by {', '.join(metrics)}: only {' and '.join(METRICS)} can be a score"
    )


def language_model(model: Any, tokenizer: Any, batch: int) -> Any:
    """lm-eval's view of a model that is in memory already."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)


@lru_cache(maxsize=4)  # a worker scores with the same tasks again and again
def load_each(names: tuple[str, ...], cache: Path) -> dict[str, dict[str, Any]]:
    """Name → its lm-eval tasks by name (a group has several). Raises as :func:`draw` does."""
    with hushed():
        others = {name for name in names if not is_file(name)} - OWN
        manager = task_manager(TASKS, bool(others), cache)
        if unknown := sorted(others.difference(manager.all_tasks)):
            raise UserError(f"unknown task '{unknown[0]}': {nearest(unknown[0], manager.all_tasks)}")
        return {name: load_one(manager, name) for name in names}


def is_file(name: str) -> bool:
    """Whether a task is given as a definition of the user's own."""
    return name.endswith((".yaml", ".yml")) and Path(name).exists()


@lru_cache(maxsize=4)
def task_manager(folder: Path, defaults: bool, cache: Path) -> Any:
    """lm-eval's register of the tasks in a folder and, which takes some seconds, of its own ten thousand."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=defaults, metadata={"cache": str(cache)})


def load_one(manager: Any, name: str) -> dict[str, Any]:
    """The lm-eval tasks of a name, few-shot settings made definite, which otherwise lm-eval's main does."""
    try:
        tasks = manager.load([name])["tasks"]
    except UserError as problem:
        raise UserError(f"the data of task '{name}' can't be had: {problem}") from None
    except Exception as problem:  # whatever the readers of hundreds of data sets raise
        why = (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]
        raise UserError(
            f"the data of task '{name}' can't be had ({why}): give this machine access to the hub or a "
            f"filled HF_HOME, or choose among those that need neither: {', '.join(OFFLINE)}"
        ) from problem
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return tasks


@contextmanager
def hushed() -> Iterator[None]:
    """Keep lm-eval, which warns of all it is told, to its errors."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def accuracies(items: Items, right: Sequence[float] | np.ndarray) -> list[dict[str, Any]]:
    """A row a task: name, number of items, accuracy with its standard error, accuracy of guessing."""
    return [
        {
            "task": task,
            "items": len(values),
            "accuracy": float(values.mean()),
            "standard_error": float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None,
            "chance": items.chance[task],
        }
        for task, values in items.by_task(right).items()
    ]


def at_chance(items: Items, right: Sequence[float] | np.ndarray) -> list[str]:
    """A sentence for each task on which a model is no better than guessing; `right` is [N]."""
    found = []
    for row in accuracies(items, right):
        chance = row["chance"] or 0.0
        if row["accuracy"] <= chance + ERRORS * math.sqrt(chance * (1 - chance) / row["items"]):
            found.append(
                f"{row['task']}: right on {row['accuracy']:.1%} of {row['items']} items, where {chance:.1%} "
                "take no knowledge: the model is at chance, so tuning on this task is tuning on noise"
            )
    return found
