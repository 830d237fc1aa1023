"""Our benchmark tasks and lm-eval's own: definitions of all that the paper has, sound questions, refusals."""

import functools
import shutil
from pathlib import Path

import lm_eval.tasks
import pytest
import yaml
from lm_eval.tasks import manager
from openpyxl import Workbook

from adept_ray.config.errors import UserError
from adept_ray.config.places import default_cache
from adept_ray.data import benchmark_tasks
from adept_ray.data.benchmark_tasks import draw_items
from adept_ray.data.corpora import resolve_corpus
from adept_ray.data.shards import read_in_order
from adept_ray.data.tasks import questions

CACHE = default_cache()


ASKED = ("arc", "cmmlu", "gsm8k", "medqa", "mmlu")  # lm-eval's folders of the tasks that the paper has


@pytest.fixture(autouse=True, scope="module")
def registered_once(tmp_path_factory):
    """lm-eval reads its definitions once, and of its fourteen thousand those that are asked for here."""
    folder = tmp_path_factory.mktemp("lm_eval")
    for name in ASKED:
        shutil.copytree(Path(manager.__file__).parent / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "__file__", str(folder / "manager.py"))
        build = functools.cache(benchmark_tasks.build_task_manager)
        patch.setattr(benchmark_tasks, "build_task_manager", build)
        yield


def test_no_task_of_ours_has_a_name_of_lm_evals():
    """It would be asked in place of that."""
    names = {path.stem for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")}
    assert "medqa" in names and not names & {*benchmark_tasks.OWN, *benchmark_tasks.PAPER}


@pytest.mark.slow
def test_a_task_of_lm_eval_without_its_data_names_those_that_need_none():
    """Its own definitions are found beside ours; without a hub the sentence says what works without."""
    with pytest.raises(UserError, match=r"task 'medqa_4options' can't be had.*offline_piqa"):
        draw_items(["medqa_4options"], 5, 0, CACHE)
    with pytest.raises(UserError, match="unknown task 'medqa_4option': did you mean medqa_4options"):
        draw_items(["medqa_4option"], 5, 0, CACHE)


@pytest.mark.slow
def test_every_task_of_the_paper_has_a_definition():
    """lm-eval or we define each, so that its groups can be named like any task."""
    register = benchmark_tasks.build_task_manager(benchmark_tasks.TASKS, True, CACHE)
    for group in benchmark_tasks.PAPER:
        members = yaml.safe_load((benchmark_tasks.TASKS / f"{group}.yaml").read_text())["task"]
        assert {group, *members} <= set(register.all_tasks)


@pytest.mark.assets
def test_offline_tasks_hold_sound_questions():
    """Every item has a question, options that aren't blank, a letter for each, and an answer among them."""
    for name, least in (("mmlu", 2800), ("medqa", 1270), ("medmcqa", 4100), ("openbookqa", 499)):
        rows = getattr(questions, name)()["test"]
        assert len(rows) >= least
        for row in rows:
            assert row["question"] and 0 <= row["answer"] < len(row["choices"]) == len(row["letters"])
            assert all(row["choices"])
    assert {len(row["choices"]) for row in questions.medqa()["test"]} == {5}
    assert {len(row["choices"]) for row in questions.piqa()["test"]} == {2}


@pytest.mark.assets
def test_pubmedqa_and_the_medical_corpus_share_no_abstract():
    """What is trained on is not what is asked about."""
    contexts = {row["context"] for row in questions.pubmedqa()["test"]}
    corpus = resolve_corpus("medical", "text", CACHE)
    texts = set(read_in_order(corpus.shards))
    assert len(contexts) == 500 and not contexts & texts


def test_mmcu_is_read_from_the_workbook_its_authors_hand_out(tmp_path):
    """All sheets, questions with one right answer; without the file the sentence says where to lay it."""
    with pytest.raises(UserError, match=r"lay the workbook of .*MMCU.* down as .*MMCU-Medical\.xlsx"):
        questions.mmcu_medical(str(tmp_path))
    book = Workbook()
    sheets = {
        "一": [["题", "甲", "乙", "丙", "丁", "b"]],
        "二": [["问", 1, 2, 3, 4, "ABC"], ["x", 1, 2, 3, 4, "D"]],
    }
    for sheet, rows in sheets.items():
        page = book.create_sheet(sheet)
        for row in [["题目", "A", "B", "C", "D", "正确答案"], *rows]:
            page.append(row)
    (tmp_path / "benchmarks").mkdir()
    book.save(tmp_path / "benchmarks" / questions.MMCU_FILE)
    found = questions.mmcu_medical(str(tmp_path))["test"]
    assert [(row["question"], row["answer"]) for row in found] == [("题", 1), ("x", 3)]
    assert found[1]["choices"] == ["1", "2", "3", "4"] and found[0]["letters"] == list("ABCD")


def test_cmb_keeps_questions_with_one_right_answer():
    """Null and blank options go, and the answer is counted among those that stay."""
    option = {"A": "甲", "B": " ", "C": "丙", "D": None}
    rows = [{"question": "问", "answer": answer, "option": option} for answer in ("C", "AC", "B")]
    assert list(questions.convert_cmb_rows(rows)) == [
        {"question": "问", "choices": ["甲", "丙"], "answer": 1}
    ]
