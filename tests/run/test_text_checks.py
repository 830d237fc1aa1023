"""What a run says of its text: of held-out text in its training text, and of too little text."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.run import text_checks
from adept_ray.run.context import Context
from adept_ray.run.text_checks import ContaminationCheck, check_contamination, explain_small_corpora

COUNTS = {"documents": 3, "repeated": 1, "in_general": 0, "near": 0, "longest": 17}


@pytest.fixture
def make_check(display, tmp_path, monkeypatch):
    """Makes a check of made-up texts; the domain's training split is read into `reads`."""
    reads = []

    def read_split(plan, split, cache):
        reads.append((plan.name, split))
        yield [plan.text]

    held_out = "the baker walks to the market on every second morning of the week"
    monkeypatch.setattr(text_checks, "read_split", read_split)
    monkeypatch.setattr(text_checks, "count_documents", lambda plan, cache: COUNTS)
    monkeypatch.setattr(text_checks, "load_tokenizer", lambda backbone: None)
    monkeypatch.setattr(text_checks, "decode_documents", lambda blocks, tokenizer: [blocks])
    display.show_stage = lambda *_: nullcontext(lambda done, of: None)
    sources = SimpleNamespace(backbone=None, select_items=lambda split: {})

    def make(trained_on=("domain",), fingerprint="a"):
        run = RunSpec(cache=str(tmp_path))
        texts = {"general": "other words", "domain": held_out}
        return ContaminationCheck(
            Context(run, SimpleNamespace(), display, "board", 7),
            sources,
            {side: SimpleNamespace(name=side, text=f"So {held_out}.", splits={"train": 1}) for side in texts},
            trained_on,
            {side: SimpleNamespace(fingerprint=fingerprint) for side in texts},
            {"validation": texts, "test": texts},
        )

    return SimpleNamespace(make=make, reads=reads, lines=display.lines)


def test_the_same_texts_are_looked_through_once(make_check):
    """A second run takes the counts from the cache; other text, or more to train on, is looked through."""
    first = check_contamination(make_check.make())
    assert [(each["side"], each["whole"]) for each in first["pieces"]] == [("general", 0), ("domain", 1)] * 2
    assert first["trained_on"] == {"domain": 1} and make_check.reads == [("domain", "train")]
    assert check_contamination(make_check.make()) == first and len(make_check.reads) == 1
    assert len(make_check.lines) == 2 and all("1 of 1 domain documents" in line for line in make_check.lines)
    check_contamination(make_check.make(fingerprint="b"))
    assert len(make_check.reads) == 2
    assert check_contamination(make_check.make(("domain", "general")))["trained_on"] == {
        "domain": 1,
        "general": 1,
    }


def test_too_little_text_is_explained(monkeypatch, tmp_path):
    """The error says how many documents each corpus has and what of them isn't taken; all is well without."""
    monkeypatch.setattr(text_checks, "count_documents", lambda plan, cache: COUNTS | {"in_general": plan})
    with explain_small_corpora({"general": 0, "domain": 2}, tmp_path):
        pass
    with (
        pytest.raises(UserError) as caught,
        explain_small_corpora({"general": 0, "domain": 2}, tmp_path),
    ):
        raise UserError("corpus 'mine' is too small")
    assert str(caught.value) == (
        "corpus 'mine' is too small (general: 3 documents, 1 repeated, the longest of 17 bytes; domain: 3 "
        "documents, 1 repeated, 2 also in the general corpus, the longest of 17 bytes)"
    )
