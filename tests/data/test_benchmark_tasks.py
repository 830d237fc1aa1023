"""Benchmarks as scores: answers as a plain computation has them, splits with no common item, refusals."""

import io
import json
import re
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from common import DOMAINS, logits, tiny_model, tiny_tokenizer
from huggingface_hub import constants

from adept_ray.config.errors import UserError
from adept_ray.config.places import default_cache
from adept_ray.config.specs import RunSpec
from adept_ray.data import benchmark_tasks
from adept_ray.data.benchmark_tasks import (
    TaskItems,
    answer_items,
    draw_items,
    find_tasks_at_chance,
    summarise_accuracies,
)
from adept_ray.data.held_out import read_item_texts

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(vocab_size=len(TOKENIZER))
PLACES = [part.strip() for part in DOMAINS["general"].strip().splitlines()[2].split(",")]
OPTIONS = {"words": 3, "letters": 4, "few": 2}  # made-up task → options of each question
MANY = 40


def made_up(name):
    """Questions of a made-up task; the right answers to ``letters`` are A three times in four."""
    number = OPTIONS[name]
    return [
        {
            "question": f"Question {at}: where does the baker walk to?",
            "choices": list("ABCD") if name == "letters" else [PLACES[(at + i) % 6] for i in range(number)],
            "answer": 0 if name == "letters" and at % 4 else at // 4 % number,
        }
        for at in range(3 if name == "few" else MANY)
    ]


@pytest.fixture(autouse=True)
def tasks(tmp_path_factory, monkeypatch):
    """Made-up tasks in place of ours: one of words, one of letters, one small, one without data, a group."""
    folder = tmp_path_factory.mktemp("tasks")
    for name in (*OPTIONS, "empty"):
        data = folder / f"{name}.jsonl"
        if name != "empty":
            data.write_text("".join(json.dumps(row) + "\n" for row in made_up(name)))
        (folder / f"{name}.yaml").write_text(f"""
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""")
    (folder / "both.yaml").write_text("group: both\ntask: [words, letters]\n")
    monkeypatch.setattr(benchmark_tasks, "TASKS", folder)
    monkeypatch.setattr(benchmark_tasks, "OWN", frozenset(path.stem for path in folder.glob("*.yaml")))
    benchmark_tasks.load_tasks.cache_clear()
    yield folder
    benchmark_tasks.load_tasks.cache_clear()


def items(name, numbers, tmp_path):
    """Those items of a task."""
    return TaskItems({name: (name,)}, {name: tuple(numbers)}, {name: None}, "", tmp_path)


def plainly_right(row, model=MODEL):
    """Whether the right option has the largest sum of log-probabilities after the question."""
    sums = []
    for choice in row["choices"]:
        start = TOKENIZER(row["question"])["input_ids"]
        whole = TOKENIZER(f"{row['question']} {choice}")["input_ids"]
        assert whole[: len(start)] == start
        log_p = logits(model, torch.tensor([whole])).double().log_softmax(-1)[0]
        sums.append(sum(float(log_p[at - 1, whole[at]]) for at in range(len(start), len(whole))))
    return float(int(np.argmax(sums)) == row["answer"])


def test_items_are_read_with_their_right_answers(tmp_path):
    """What training text is searched for: the question as it is put and the answer, without other options."""
    rows = made_up("words")
    asked = {"words": [f"{rows[at]['question']} {rows[at]['choices'][rows[at]['answer']]}" for at in (4, 33)]}
    assert read_item_texts(items("words", (4, 33), tmp_path)) == asked


# --- answers --------------------------------------------------------------------------------------


def test_answers_equal_a_plain_computation(tmp_path):
    """An item is right where its option is the likeliest continuation; each keeps its place."""
    numbers = (1, 4, 6, 11, 12, 20, 33)
    found = answer_items(MODEL, TOKENIZER, items("words", numbers, tmp_path), 3)
    rows = made_up("words")
    assert found.tolist() == [plainly_right(rows[number]) for number in numbers]
    assert 0 < found.mean() < 1  # else every order of them would be the same


def test_a_model_in_bfloat16_is_judged_by_float32(tmp_path, monkeypatch):
    """Log-probabilities keep what logits hold: rounded to bfloat16 they tie, and other answers come out."""
    model, rows = tiny_model(vocab_size=len(TOKENIZER)).bfloat16(), made_up("words")
    found = answer_items(model, TOKENIZER, items("words", range(MANY), tmp_path), 1)
    assert found.tolist() == [plainly_right(row, model) for row in rows]
    plain = torch.nn.functional.log_softmax
    monkeypatch.setattr(torch.nn.functional, "log_softmax", lambda logits, dim, dtype: plain(logits, dim))
    assert answer_items(model, TOKENIZER, items("words", range(MANY), tmp_path), 1).tolist() != found.tolist()


def test_ranks_share_the_items(tmp_path, monkeypatch):
    """The answers of two ranks, each to its own items, add up to those of one."""
    both = TaskItems(
        {"both": ("words", "letters")},
        {"words": tuple(range(9)), "letters": tuple(range(6))},
        {},
        "",
        tmp_path,
    )
    whole = answer_items(MODEL, TOKENIZER, both, 4)
    parts, asked = [], []
    monkeypatch.setattr(benchmark_tasks, "world_size", lambda: 2)
    monkeypatch.setattr(benchmark_tasks, "sum_over_ranks", lambda values, device: values)
    plain = benchmark_tasks.wrap_language_model
    monkeypatch.setattr(benchmark_tasks, "wrap_language_model", lambda *a: asked.append(a) or plain(*a))
    for rank in range(2):
        monkeypatch.setattr(benchmark_tasks, "rank", lambda rank=rank: rank)
        parts.append(answer_items(MODEL, TOKENIZER, both, 4))
    assert (parts[0] + parts[1]).tolist() == whole.tolist() and len(asked) == 2
    assert parts[0][1::2].sum() == parts[1][::2].sum() == 0 < whole.sum()


def test_scoring_leaves_the_model_and_the_dice_as_they_were(tmp_path):
    """Weights, the mode, which parameters are trained, and the random numbers to come don't change."""
    model = tiny_model(vocab_size=len(TOKENIZER)).train()
    next(model.parameters()).requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    dice = torch.get_rng_state()
    said = io.StringIO()
    with redirect_stderr(said):
        answer_items(model, TOKENIZER, items("words", range(5), tmp_path), 2)
    assert model.training and torch.equal(dice, torch.get_rng_state())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    assert said.getvalue() == ""


# --- which items ----------------------------------------------------------------------------------


def test_validation_and_test_share_no_item(tmp_path):
    """Whatever the seeds and the sizes; they are as large as asked for, or half each at most."""
    drawn = draw_items(["words", "few"], 15, 0, tmp_path)
    for task, sizes in (("words", (15, 15)), ("few", (1, 1))):
        parts = [drawn[split].numbers[task] for split in ("validation", "test")]
        assert tuple(map(len, parts)) == sizes
        assert all(list(part) == sorted(part) for part in parts)
    assert draw_items(["words", "few"], 15, 0, tmp_path) == drawn
    others = [
        draw_items(["words"], most, seed, tmp_path)["test"] for most, seed in ((15, 1), (5, 0), (99, 2))
    ]
    assert others[0].numbers != drawn["test"].numbers
    for other in others:
        assert not set(other.numbers["words"]) & set(drawn["validation"].numbers["words"])


def test_the_content_of_items_names_all_that_answers_depend_on(tmp_path, tasks):
    """Their order, their prompts and their answers; the same ones have the same name."""

    def content(*names):
        benchmark_tasks.load_tasks.cache_clear()
        return draw_items(names, 5, 0, tmp_path)["test"].content

    own = tmp_path / "mine.yaml"
    plain = (tasks / "words.yaml").read_text().replace("task: words", "task: mine")
    found = [content("words", "letters"), content("letters", "words")]
    for before, after in (
        ("", ""),
        ("doc_to_text: question", 'doc_to_text: "Q: {{question}}"'),
        ("doc_to_target: answer", 'doc_to_target: "{{0}}"'),
    ):
        own.write_text(plain.replace(before, after, 1))
        found.append(content(str(own)))
        assert content(str(own)) == found[-1]
    assert len(set(found)) == 5


def test_examples_before_a_question_depend_on_it_alone(tmp_path, tasks, monkeypatch):
    """Asked again, in other batches or on another rank, a question comes with the same examples."""
    own = tmp_path / "shots.yaml"
    text = (tasks / "words.yaml").read_text().replace("task: words", "task: shots")
    own.write_text(text + "num_fewshot: 2\nfewshot_split: test\n")
    asked_for = draw_items([str(own)], 8, 0, tmp_path)["test"]
    seen = []
    plain = benchmark_tasks.wrap_language_model

    def listening(*model):
        found = plain(*model)
        answer = found.loglikelihood

        def listen(requests, **named):
            seen.append([request.args[0] for request in requests])
            return answer(requests, **named)

        found.loglikelihood = listen
        return found

    monkeypatch.setattr(benchmark_tasks, "wrap_language_model", listening)
    whole = answer_items(MODEL, TOKENIZER, asked_for, 4)
    assert answer_items(MODEL, TOKENIZER, asked_for, 2).tolist() == whole.tolist()
    monkeypatch.setattr(benchmark_tasks, "world_size", lambda: 2)
    monkeypatch.setattr(benchmark_tasks, "sum_over_ranks", lambda values, device: values)
    for rank in range(2):
        monkeypatch.setattr(benchmark_tasks, "rank", lambda rank=rank: rank)
        answer_items(MODEL, TOKENIZER, asked_for, 4)
    first, again, *parts = seen
    assert first == again and sorted(first) == sorted(parts[0] + parts[1])
    assert first[0].count("where does the baker") == 3


def test_a_group_spreads_its_items_over_its_tasks(tmp_path):
    """Ten items of a group of two tasks are five of each."""
    drawn = draw_items(["both"], 10, 0, tmp_path)["validation"]
    assert {task: len(numbers) for task, numbers in drawn.numbers.items()} == {"words": 5, "letters": 5}
    assert answer_items(MODEL, TOKENIZER, drawn, 4).shape == (10,) == (len(drawn),)


def test_chance_is_what_takes_no_knowledge(tmp_path):
    """One in three where options differ from item to item, the commonest letter where they don't."""
    chance = draw_items(["words", "letters"], 5, 0, tmp_path)["test"].chance
    assert chance == {"words": pytest.approx(1 / 3), "letters": 33 / 40}


def test_a_model_at_chance_is_warned_of():
    """Of a task on which guessing does as well a sentence says so; of one well above it none does."""
    numbers = tuple(range(100))
    alone = {"noise": ("noise",), "sound": ("sound",)}
    both = TaskItems(alone, {"noise": numbers, "sound": numbers}, {"noise": 0.25, "sound": 0.25}, "", Path())
    right = np.array([1] * 30 + [0] * 70 + [1] * 60 + [0] * 40)
    (sentence,) = find_tasks_at_chance(both, right)
    assert sentence.startswith("noise: right on 30.0% of 100 items, where 25.0%") and "noise" in sentence
    generated = replace(both, chance={"noise": None, "sound": None})
    assert find_tasks_at_chance(generated, right) == [] != find_tasks_at_chance(generated, np.zeros(200))
    rows = summarise_accuracies(both, right)
    assert [(row["task"], row["accuracy"]) for row in rows] == [("noise", 0.3), ("sound", 0.6)]
    assert rows[0]["standard_error"] == pytest.approx((0.3 * 0.7 / 99) ** 0.5)


def test_workers_of_another_machine_look_in_their_own_cache(tmp_path, monkeypatch):
    """The one of the machine that drew the items isn't there."""
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(benchmark_tasks, "load_tasks", lambda _, cache: asked.append(cache) or {})
        for place in (tmp_path, tmp_path / "elsewhere"):
            with pytest.raises(KeyError):
                answer_items(MODEL, TOKENIZER, replace(items("words", [0], tmp_path), cache=place), 1)
    assert asked == [tmp_path, default_cache()]


def test_a_definition_of_the_users_own_is_a_task(tmp_path, tasks):
    """A .yaml file stands for the task that it defines, and the files that it names lie beside it."""
    own = tmp_path / "mine.yaml"
    (tmp_path / "own.jsonl").write_text((tasks / "words.jsonl").read_text())
    text = (tasks / "words.yaml").read_text().replace("task: words", "task: mine")
    own.write_text(text.replace(str(tasks / "words.jsonl"), "own.jsonl"))
    drawn = draw_items([str(own)], 5, 0, tmp_path)["test"]
    assert list(drawn.numbers) == ["mine"]
    right = answer_items(MODEL, TOKENIZER, drawn, 4)
    assert right.shape == (5,)
    assert [row["task"] for row in summarise_accuracies(drawn, right)] == ["mine"]


def test_a_group_has_one_row(tmp_path):
    """Its accuracy is that over all items, and its tasks' own stand below; a warning is of the whole."""
    drawn = draw_items(["both"], 10, 0, tmp_path)["test"]
    (row,) = summarise_accuracies(drawn, [1, 1, 1, 0, 0, 1, 1, 1, 1, 1])
    assert (row["task"], row["items"], row["accuracy"]) == ("both", 10, 0.8)
    assert row["tasks"] == {"words": 0.6, "letters": 1.0}
    assert row["chance"] == pytest.approx((1 / 3 + 33 / 40) / 2)
    assert len(find_tasks_at_chance(drawn, np.zeros(10))) == 1


# --- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def of_the_hub(hub, tasks):
    """A task whose questions lie on the hub, and the hub."""
    text = (tasks / "words.yaml").read_text().replace("task: words", "task: far")
    text = text.replace("dataset_path: json", "dataset_path: org/far")
    (tasks / "far.yaml").write_text(re.sub("dataset_kwargs.*", "", text))
    benchmark_tasks.OWN |= {"far"}
    benchmark_tasks.build_task_manager.cache_clear()
    rows = "".join(json.dumps(row) + "\n" for row in made_up("words"))
    hub.put("org/far", {"test.jsonl": rows.encode()})
    yield hub
    benchmark_tasks.build_task_manager.cache_clear()


@pytest.mark.parametrize("silent", ["by its variable", "by the network", "by its own fault"])
def test_a_cached_task_needs_no_hub(of_the_hub, tmp_path, monkeypatch, silent):
    """Its questions are those of the last time, however the hub is out of reach."""
    before = draw_items(["far"], 10, 0, tmp_path)["test"]
    benchmark_tasks.load_tasks.cache_clear()
    if silent == "by its variable":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    elif silent == "by the network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    else:
        of_the_hub.fail("", status=503)
    assert draw_items(["far"], 10, 0, tmp_path)["test"] == before


def test_a_worker_asks_for_no_questions_that_its_machine_has(of_the_hub, tmp_path, capfd):
    """The command has fetched them; another version in the cache is not taken for them. No bar is drawn."""
    drawn = draw_items(["far"], 10, 0, tmp_path)["test"]
    benchmark_tasks.load_tasks.cache_clear()  # as in a process of its own
    of_the_hub.clear()
    right = answer_items(MODEL, TOKENIZER, drawn, 4)
    assert of_the_hub.log == [] and len(right) == 10
    benchmark_tasks.load_tasks.cache_clear()
    answer_items(MODEL, TOKENIZER, replace(drawn, content="of others"), 4)
    assert of_the_hub.log
    assert "%|" not in capfd.readouterr().err


# --- refusals -------------------------------------------------------------------------------------


def test_a_task_without_data_is_refused(tmp_path):
    """The sentence names it among others, and what would help."""
    with pytest.raises(UserError, match=r"task 'empty' can't be had .* access to the hub") as refused:
        draw_items(["words", "empty"], 5, 0, tmp_path)
    assert "\n" not in str(refused.value)


def test_a_task_that_is_not_right_or_wrong_is_refused_before_any_work(tmp_path, tasks):
    """A normed accuracy alone is no answer; a file that isn't there is no task; both in one sentence."""
    own = tmp_path / "normed.yaml"
    text = (tasks / "words.yaml").read_text().replace("task: words", "task: normed")
    own.write_text(text.replace("metric: acc,", "metric: acc_norm,"))
    with pytest.raises(UserError, match="task 'normed' is scored by acc_norm: only acc and exact_match"):
        draw_items([str(own)], 5, 0, tmp_path)
    with pytest.raises(UserError, match=r"gone\.yaml: no such file"):
        draw_items([str(tmp_path / "gone.yaml")], 5, 0, tmp_path)


def test_tasks_may_be_given_with_commas():
    """As lm-eval's own command takes them, or apart, or both."""
    assert RunSpec(general_tasks="mmlu,cmmlu").general_tasks == ("mmlu", "cmmlu")
    assert RunSpec(domain_tasks=("a", "b, c")).domain_tasks == ("a", "b", "c")
