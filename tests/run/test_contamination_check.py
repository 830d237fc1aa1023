"""What a run says of held-out text in its training text."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from adept_ray.config.specs import RunSpec
from adept_ray.run import contamination_check
from adept_ray.run.contamination_check import ContaminationCheck, check_contamination
from adept_ray.run.context import Context

COUNTS = {"documents": 3, "repeated": 1, "in_earlier": 0, "near": 0, "longest": 17}


@pytest.fixture
def make_check(display, tmp_path, monkeypatch):
    """Makes a check of made-up texts; which training splits are looked through goes into `reads`.

    The last corpus of a side has the text that is held out.
    """
    reads = []

    def read_split(plan, split, cache):
        reads.append((plan.name, split))
        yield [plan.text]

    held_out = "the baker walks to the market on every second morning of the week"
    monkeypatch.setattr(contamination_check, "read_split", read_split)
    monkeypatch.setattr(contamination_check, "load_tokenizer", lambda backbone: None)
    monkeypatch.setattr(contamination_check, "decode_documents", lambda blocks, tokenizer: [blocks])
    display.show_stage = lambda *_: nullcontext(lambda done, of: None)
    sources = SimpleNamespace(backbone=None, select_items=lambda split: {})

    def plan(name, last):
        text = f"So {held_out}." if last else "Something else."
        return SimpleNamespace(name=name, text=text, splits={"train": 1})

    def make(trained_on=("domain",), fingerprint="a", corpora=1):
        run = RunSpec(cache=str(tmp_path))
        texts = {"general": "other words", "domain": held_out}
        parts = {"general": ["general"], "domain": [f"domain {number}" for number in range(1, 1 + corpora)]}
        return ContaminationCheck(
            Context(run, SimpleNamespace(), display, "board", 7),
            sources,
            {side: [plan(name, last=name == names[-1]) for name in names] for side, names in parts.items()},
            trained_on,
            {
                side: SimpleNamespace(
                    fingerprint=fingerprint, sets=[SimpleNamespace(counts=COUNTS)] * len(parts[side])
                )
                for side in texts
            },
            {"validation": texts, "test": texts},
        )

    return SimpleNamespace(make=make, reads=reads, lines=display.lines)


def test_the_same_texts_are_looked_through_once(make_check):
    """A second run takes the counts from the cache; other text, or more to train on, is looked through."""
    first = check_contamination(make_check.make())
    assert [(each["side"], each["whole"]) for each in first["pieces"]] == [("general", 0), ("domain", 1)] * 2
    assert first["trained_on"] == {"domain": 1} and make_check.reads == [("domain 1", "train")]
    assert check_contamination(make_check.make()) == first and len(make_check.reads) == 1
    assert len(make_check.lines) == 2 and all("1 of 1 domain documents" in line for line in make_check.lines)
    check_contamination(make_check.make(fingerprint="b"))
    assert len(make_check.reads) == 2
    assert check_contamination(make_check.make(("domain", "general")))["trained_on"] == {
        "domain": 1,
        "general": 1,
    }


def test_every_corpus_of_a_side_is_looked_through(make_check):
    """The sum of their documents is recorded, and what is taken of each of them."""
    found = check_contamination(make_check.make(corpora=3))
    assert make_check.reads == [(f"domain {number}", "train") for number in (1, 2, 3)]
    assert found["trained_on"] == {"domain": 3} and [each["whole"] for each in found["pieces"]] == [0, 1] * 2
    assert list(found["corpora"]) == ["general", "domain 1", "domain 2", "domain 3"]
