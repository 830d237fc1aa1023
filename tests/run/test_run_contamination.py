"""What a run says of held-out text in its training text, and when it looks."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from adept_ray.config.specs import RunSpec
from adept_ray.run import contamination
from adept_ray.run.contamination import ContaminationCheck, check_contamination
from adept_ray.run.context import Context


@pytest.fixture
def make_check(display, tmp_path, monkeypatch):
    """Makes a check of made-up texts; the domain's training split is read into `reads`."""
    reads = []

    def read_split(plan, split, cache):
        reads.append((plan.name, split))
        yield [plan.text]

    held_out = "the baker walks to the market on every second morning of the week"
    monkeypatch.setattr(contamination, "read_split", read_split)
    monkeypatch.setattr(contamination, "count_documents", lambda corpus: 1)
    monkeypatch.setattr(contamination, "load_tokenizer", lambda backbone: None)
    monkeypatch.setattr(contamination, "decode_documents", lambda blocks, tokenizer: [blocks])
    display.show_stage = lambda *_: nullcontext(lambda done, of: None)
    sources = SimpleNamespace(backbone=None, select_items=lambda split: {})

    def make(trained_on=("domain",), fingerprint="a"):
        run = RunSpec(cache=str(tmp_path))
        texts = {"general": "other words", "domain": held_out}
        return ContaminationCheck(
            Context(run, SimpleNamespace(), display, "board", 7),
            sources,
            {s: SimpleNamespace(name=s, text=f"So {held_out}.", corpus=s) for s in trained_on},
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
