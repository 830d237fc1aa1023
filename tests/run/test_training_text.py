"""The text of a training: the corpora it has, what it takes of each, and what is said of short ones."""

import numpy as np
import pytest
from common import one_document_each

from adept_ray.config.specs import RunSpec, ScoreWeights, TrainingSpec
from adept_ray.data.loading import Backbone
from adept_ray.run.sources import Needs, name_parts
from adept_ray.run.training_text import Passes, list_passes, record_text, show_passes
from adept_ray.training.learner import order_text
from adept_ray.training.work import TrainWork

RUN = RunSpec(domain=["a=3", "b"], general=["c", "d"], seq_len=8)


def text(blocks, token=0):
    return one_document_each(np.full((blocks, 8), token))


def training(run, **settings):
    """A training of 100 steps of one block each."""
    spec = TrainingSpec(tokens=800, tokens_per_step=8, **settings)
    fixed = {"units": {}, "before": {}, "weights": ScoreWeights(), "seq_len": 8, "micro_batch": 1, "seed": 0}
    return TrainWork(Backbone("m", "m"), spec, (), **fixed, parts=name_parts(run))


BLOCKS = {"train 1": text(100, 1), "train 2": text(10, 2), "replay 1": text(50, 3), "replay 2": text(50, 4)}


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, {"train 1": 0.75, "train 2": 0.25}),
        ({"replay": 0.5}, {"train 1": 0.375, "train 2": 0.125, "replay 1": 0.25, "replay 2": 0.25}),
        ({"text": "general"}, {"replay 1": 0.5, "replay 2": 0.5}),
    ],
)
def test_the_corpora_of_both_sides_are_one_mixture(settings, shares):
    """Those of the domain have what replay leaves them, and the text is in those shares."""
    work = training(RUN, **settings)
    assert work.text_shares == shares
    joined, order = order_text(work, BLOCKS)
    tokens = joined.tokens[order.list_batch(0, 100)][:, 0]
    for name, share in shares.items():
        assert abs((tokens == BLOCKS[name].tokens[0, 0]).sum() - 100 * share) <= 1


def test_plain_replay_is_the_share_that_was_asked_for():
    """To the last bit, whatever the number: one domain corpus and one general one, as in older runs."""
    for replay in (0.1, 0.3, 1 / 3, 0.7):
        assert training(RunSpec(seq_len=8), replay=replay).text_shares["replay"] == replay
    assert training(RunSpec(seq_len=8)).text_shares == {"train": 1.0}


def test_the_record_says_what_was_taken_of_each_corpus():
    """Tokens, share and passes; those of a corpus that isn't trained on aren't there."""
    rows = record_text(RUN, BLOCKS, training(RUN))
    assert [(row["corpus"], row["weight"], row["tokens"], row["passes"]) for row in rows] == [
        ("a", 3.0, 600, 0.75),
        ("b", 1.0, 200, 2.5),
    ]


def test_a_corpus_that_ends_before_its_tokens_is_warned_of(display):
    """With the number of passes; others are only counted, and one alone that is enough is no line at all."""
    said, warned = [], []
    display.show, display.warn = said.append, warned.append
    show_passes(list_passes(RUN, BLOCKS, Needs(4, 800)), display)
    assert warned == [
        "'b' ends before the tokens asked for: its training text holds 80 of 200, so a training goes through "
        "it up to 2.5 times"
    ]
    assert said == ["'a': up to 600 tokens to train on, 0.75 passes"]
    show_passes(list_passes(RunSpec(seq_len=8), {"train": text(100)}, Needs(4, 800)), display)
    assert len(said) == len(warned) == 1


def test_trainings_that_share_a_text_ask_for_a_piece_each(display):
    """A piece that is gone through on purpose is no warning; text that all share for want of more is."""
    plain = RunSpec(seq_len=8)
    needs = Needs(4, 800, trainings=4, passes=3)
    assert list_passes(plain, {"train": text(100)}, needs) == [Passes("medical", 600, 200, 0, 4)]
    assert list_passes(plain, {"train": text(20)}, needs) == [Passes("medical", 600, 160, 800, 4)]
    for blocks in (100, 15):
        show_passes(
            list_passes(plain, {"train": text(blocks)}, Needs(4, 200, trainings=4, passes=3)), display
        )
    assert display.lines == [
        "'medical' ends before the tokens asked for: its training text holds 120 of 200, so all trainings "
        "share it, and each goes through it up to 1.2 times"
    ]
