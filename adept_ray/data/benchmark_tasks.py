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
from contextlib import chdir, contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
import torch

from adept_ray.config.errors import UserError, suggest_names
from adept_ray.config.places import default_cache
from adept_ray.config.validation import fingerprint, load_yaml
from adept_ray.data.hub_client import ask_once, stay_offline, use_patient_client
from adept_ray.data.hub_faults import is_of_the_hub
from adept_ray.method.loss import get_compute_policy
from adept_ray.method.ranks import rank, sum_over_ranks, world_size
from adept_ray.method.sharding import is_sharded

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TASKS = Path(__file__).parent / "tasks"
PAPER = ("paper_general", "paper_math", "paper_medical")
"""Groups of the paper's own benchmarks, most of which lm-eval defines."""
OWN = frozenset(path.stem for path in TASKS.glob("*.yaml")).difference(PAPER)
OFFLINE = tuple(sorted(name for name in OWN if name.startswith("offline_")))
"""Tasks made from pinned packages: they need no hub."""
FILES = (".yaml", ".yml")
METRICS = ("acc", "exact_match")
"""What counts as right, the first of them that a task has."""
ERRORS = 2.0  # standard errors above chance that a task needs to say something


@dataclass(frozen=True)
class TaskItems:
    """The questions that a side is judged by."""

    members: Mapping[str, tuple[str, ...]]
    """Task or group, as it was asked for → its lm-eval tasks."""
    numbers: Mapping[str, tuple[int, ...]]
    """lm-eval task → numbers of the items in the split that it is scored on, ascending."""
    chance: Mapping[str, float | None]
    """lm-eval task → accuracy without knowledge; None where answers are generated."""
    content: str
    """Fingerprint of the questions as they are put, their options and answers; empty: any will do."""
    cache: Path
    """Folder for assets."""

    def __len__(self) -> int:
        return sum(map(len, self.numbers.values()))

    def split_by_task(self, values: Sequence[float] | np.ndarray) -> dict[str, np.ndarray]:
        """lm-eval task → its part of the values of all items, [N]."""
        pieces = np.split(np.asarray(values), np.cumsum([len(each) for each in self.numbers.values()])[:-1])
        return dict(zip(self.numbers, pieces, strict=True))


Sample = Mapping[str, Any]
"""An answer as lm-eval gives it: ``doc_id``, ``filter``, ``metrics``, and a number for each metric's name."""


class AccuracyRow(TypedDict):
    """Accuracy on a task or group."""

    task: str
    items: int
    accuracy: float
    """Over all items."""
    standard_error: float | None
    """None with a single item."""
    chance: float | None
    """Accuracy that takes no knowledge; None where a task has no such number."""
    tasks: NotRequired[dict[str, float]]
    """Task → accuracy, for a group."""


def draw_items(names: Sequence[str], most: int, seed: int, cache: Path) -> dict[str, TaskItems]:
    """``validation`` and ``test`` → about `most` items of each named task or group, none in both.

    The items of a task fall into two halves that are the same for every seed, so that no run is tested on
    items by which another one chose; `seed` draws within the halves. A group's items are spread evenly over
    its tasks, at least one of each. Raises :class:`UserError` for an unknown task, for one whose data can't
    be had and for one that isn't scored by right and wrong answers.
    """
    found = load_tasks(tuple(names), cache)
    numbers: dict[str, dict[str, tuple[int, ...]]] = {"validation": {}, "test": {}}
    chance: dict[str, float | None] = {}
    for name, tasks in found.items():
        share = math.ceil(most / len(tasks))
        for task, each in tasks.items():
            if (count := len(each.eval_docs)) < 2:
                raise UserError(
                    f"task '{task}' of '{name}' has {count} items: validation and test need one each, so "
                    "choose another task"
                )
            halves = list(range(count))
            random.Random(f"halves of {task}").shuffle(halves)
            for split, half in (("validation", halves[: count // 2]), ("test", halves[count // 2 :])):
                drawn = random.Random(f"{seed} {task} {split}").sample(half, min(share, count // 2))
                numbers[split][task] = tuple(sorted(drawn))
            chance[task] = guess_accuracy(each)
    members = {name: tuple(tasks) for name, tasks in found.items()}
    every = {task: each for tasks in found.values() for task, each in tasks.items()}
    return {
        split: TaskItems(members, drawn, chance, fingerprint_items(every, drawn), cache)
        for split, drawn in numbers.items()
    }


def fingerprint_items(tasks: Mapping[str, Task], numbers: Mapping[str, tuple[int, ...]]) -> str:
    """Fingerprint of items as they are put to a model, in order."""
    rows: list[list[object]] = []
    for name, drawn in numbers.items():
        task = tasks[name]
        rows.append([name, *drawn, task.get_config("num_fewshot"), task.get_config("target_delimiter")])
        for number in drawn:
            doc = task.eval_docs[number]
            options = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else ""
            rows.append([task.doc_to_text(doc), options, task.doc_to_target(doc)])
    return fingerprint(rows)


def guess_accuracy(task: Task, most: int = 1000) -> float | None:
    """Accuracy of a loaded task, on its first items, that takes no knowledge; None where text is generated.

    Where all items have the same options, it is that of the commonest answer, given always.
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


def answer_items(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: TaskItems,
    batch: int,
    quiet: bool = True,
) -> np.ndarray:
    """Whether `model` is right on each item, float64 [N]: 0 or 1. Ranks share the work and get it all.

    Where ranks hold pieces of the `model`, all of them work on each item, since each pass needs them all.
    What the first one found counts: kernels that aren't deterministic may answer otherwise on another.

    `batch` is the number of sequences of a forward pass; `quiet` hides lm-eval's progress bars.
    Raises :class:`UserError` as :func:`draw_items` does.
    """
    every = [(task, number) for task, numbers in items.numbers.items() for number in numbers]
    mine: dict[str, list[int]] = {}
    apart = not is_sharded(model)
    for task, number in every[rank() :: world_size()] if apart else every:
        mine.setdefault(task, []).append(number)  # ascending: lm-eval takes them for sorted
    right = torch.zeros(len(every), dtype=torch.float64)
    if mine:
        training = model.training
        with silence_lm_eval(), redirect_stderr(io.StringIO()) if quiet else nullcontext():
            answers = ask_model(model, tokenizer, items, mine, batch)
        model.train(training)
        place = {item: at for at, item in enumerate(every)}
        for task, samples in answers.items():
            metric, first = metric_of(samples), samples[0]["filter"]
            for sample in samples:
                if sample["filter"] == first:
                    right[place[task, sample["doc_id"]]] = float(sample[metric])
    if not apart and rank() > 0:
        right.zero_()
    return sum_over_ranks(right, next(model.parameters()).device).numpy()


def ask_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: TaskItems,
    numbers: Mapping[str, list[int]],
    batch: int,
) -> dict[str, list[Sample]]:
    """Task → lm-eval's samples of the items with these `numbers`."""
    from lm_eval.evaluator import evaluate

    found = load_same_tasks(items)
    scores: Any = evaluate(
        wrap_language_model(model, tokenizer, batch),
        {"tasks": {task: found[task] for task in numbers}},
        samples=numbers,
        bootstrap_iters=0,
    )
    return scores["samples"]


def metric_of(samples: Sequence[Sample]) -> str:
    """The metric that says whether an answer is right."""
    return next(metric for metric in METRICS if metric in samples[0]["metrics"])


def wrap_language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int) -> HFLM:
    """lm-eval's view of a model that is in memory already."""
    from lm_eval.models.huggingface import HFLM

    how = get_compute_policy(model).autocast
    return HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch,
        mixed_precision_dtype=how,
        softmax_dtype="float32",  # in bfloat16 options tie, and one answer in forty is another one
    )


def load_same_tasks(items: TaskItems) -> dict[str, Task]:
    """lm-eval task → the one that `items` were drawn from, as far as this machine has kept it.

    So a worker asks the hub for what its machine lacks alone. Raises as :func:`draw_items` does.
    """
    cache = items.cache if items.cache.exists() else default_cache()  # this may be another machine
    names = tuple(items.members)

    def load() -> dict[str, Task]:
        groups = load_tasks(names, cache).values()
        return {task: each for tasks in groups for task, each in tasks.items()}

    with suppress(UserError, LookupError), stay_offline():
        found = load()
        if not items.content or items.content == fingerprint_items(found, items.numbers):
            return found
    load_tasks.cache_clear()  # another version was kept here, or none
    return load()


@lru_cache(maxsize=4)  # a worker scores with the same tasks again and again
def load_tasks(names: tuple[str, ...], cache: Path) -> dict[str, dict[str, Task]]:
    """Name → its lm-eval tasks by name (a group has several). Raises as :func:`draw_items` does."""
    with silence_lm_eval():
        files = {name for name in names if name.endswith(FILES)}
        if missing := sorted(name for name in files if not is_task_file(name)):
            raise UserError(
                f"task {missing[0]}: no such file: give the path of a task's .yaml, or a task's name"
            )
        others = set(names) - files - OWN
        groups = any("group" in load_yaml(Path(name)) for name in files)  # of tasks that may be lm-eval's own
        manager = build_task_manager(TASKS, bool(others) or groups, cache)
        if unknown := sorted(others.difference(manager.all_tasks)):
            raise UserError(f"unknown task '{unknown[0]}': {suggest_names(unknown[0], manager.all_tasks)}")
        return {name: load_task(manager, name) for name in names}


def is_task_file(name: str) -> bool:
    """Whether a task is given as a definition of the user's own."""
    return name.endswith(FILES) and Path(name).is_file()


@lru_cache(maxsize=4)
def build_task_manager(folder: Path, defaults: bool, cache: Path) -> TaskManager:
    """lm-eval's register of the tasks in a folder and, with `defaults`, of its own ten thousand (seconds)."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=defaults, metadata={"cache": str(cache)})


def load_task(manager: TaskManager, name: str) -> dict[str, Task]:
    """The lm-eval tasks of a name, with definite few-shot settings. Raises as :func:`draw_items` does."""
    # Workers run in folders of their own, so look beside a definition for the files that it names.
    beside = chdir(Path(name).parent) if is_task_file(name) else nullcontext()
    try:
        with beside:
            tasks = ask_for_task(manager, Path(name).name if is_task_file(name) else name)
    except UserError as problem:
        raise UserError(f"the data of task '{name}' can't be had: {problem}") from None
    except Exception as problem:  # whatever the readers of hundreds of data sets raise
        why = (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]
        raise UserError(
            f"the data of task '{name}' can't be had ({why}): give this machine access to the hub or a "
            f"filled HF_HOME, or choose among those that need neither: {', '.join(OFFLINE)}"
        ) from problem
    for each, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(
                f"task '{each}' runs what a model wrote or isn't of text alone: choose another task"
            )
        if not set(METRICS) & set(task.aggregation()):
            scored = ", ".join(task.aggregation()) or "nothing"
            raise UserError(
                f"task '{each}' is scored by {scored}: only {' and '.join(METRICS)} can be a score here"
            )
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        fix_examples(task)
    return tasks


def ask_for_task(manager: TaskManager, name: str) -> dict[str, Task]:
    """The lm-eval tasks of a name, their data from the hub, or from the cache where the hub is silent."""
    use_patient_client()
    try:
        with ask_once():
            return manager.load([name])["tasks"]
    except Exception as problem:
        if not is_of_the_hub(problem):
            raise
    return manager.load([name])["tasks"]


def fix_examples(task: Task) -> None:
    """Let the examples before a question depend on the question alone.

    lm-eval draws them one question after the other from one generator. So the same question would come with
    other examples after training, or with another number of workers.
    """
    plain = task.fewshot_context

    def draw_by_question(doc: object, *rest: Any, **named: Any) -> Any:
        task.set_fewshot_seed(seed=int(fingerprint(doc), 16))
        return plain(doc, *rest, **named)

    task.fewshot_context = draw_by_question


@contextmanager
def silence_lm_eval() -> Iterator[None]:
    """Let lm-eval log errors alone; it warns of every argument. Bars of its data would stand in logs."""
    import datasets

    datasets.disable_progress_bars()
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def summarise_accuracies(items: TaskItems, right: Sequence[float] | np.ndarray) -> list[AccuracyRow]:
    """A row for each task or group asked for; `right` is [N]."""
    apart, rows = items.split_by_task(right), []
    for name, tasks in items.members.items():
        values = np.concatenate([apart[task] for task in tasks])
        chances = [(items.chance[task], len(apart[task])) for task in tasks]
        known = [chance * count for chance, count in chances if chance is not None]
        row: AccuracyRow = {
            "task": name if len(tasks) > 1 else tasks[0],  # a file of one task goes by the name in it
            "items": len(values),
            "accuracy": float(values.mean()),
            "standard_error": float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None,
            "chance": sum(known) / len(values) if len(known) == len(chances) else None,
        }
        if len(tasks) > 1:
            row["tasks"] = {task: float(apart[task].mean()) for task in tasks}
        rows.append(row)
    return rows


def find_tasks_at_chance(items: TaskItems, right: Sequence[float] | np.ndarray) -> list[str]:
    """A sentence for each task or group on which a model is no better than guessing; `right` is [N]."""
    found = []
    for row in summarise_accuracies(items, right):
        chance = row["chance"] or 0.0
        if row["accuracy"] <= chance + ERRORS * math.sqrt(chance * (1 - chance) / row["items"]):
            found.append(
                f"{row['task']}: right on {row['accuracy']:.1%} of {row['items']} items, where {chance:.1%} "
                "take no knowledge: the model is at chance, so tuning on this task is tuning on noise"
            )
    return found
