"""Held-out text in training text: what is found agrees with a plain search, however the text comes."""

import random

import numpy as np
import pytest
from common import documents
from hypothesis import given, settings
from hypothesis import strategies as st

from adept_ray.data.contamination import FEWEST, MOST, NGRAM, PART, SHOWN, HeldOutIndex, split_words

TEXTS = documents(30, domain="medical")
LETTERS = st.text("ab", min_size=0, max_size=40).map(" ".join)
WORDS = " ".join(f"w{number}" for number in range(100)).split()


def judge(held_out, *parts):
    """What is found of held-out texts in training documents that come in parts."""
    index = HeldOutIndex(held_out)
    for part in parts:
        index.pass_documents(part)
    return index.judge_texts()


def search_plainly(held_out, training):
    """(whole, share) of a text, by sets of n-grams and by trying every place."""
    own, others = split_words(held_out), [split_words(text) for text in training]
    size = len(own)
    if size < FEWEST:
        whole = size > 0 and own in others
        return whole, float(whole)
    length = min(NGRAM, size)
    known = {tuple(each[i : i + length]) for each in others for i in range(len(each) - length + 1)}
    covered = np.zeros(size, bool)
    for i in range(size - length + 1):
        if tuple(own[i : i + length]) in known:
            covered[i : i + length] = True
    whole = any(each[i : i + size] == own for each in others for i in range(len(each)))
    return whole, float(covered.mean())


@settings(max_examples=60, deadline=None)
@given(st.lists(LETTERS, min_size=1, max_size=4), st.lists(LETTERS, max_size=5))
def test_what_is_found_agrees_with_a_plain_search(held_out, training):
    """Whether a text stands in one document as a whole, which share of its words matches, and its kind."""
    for found, (whole, share) in zip(
        judge(held_out, training), (search_plainly(text, training) for text in held_out), strict=True
    ):
        kind = "whole" if whole else "most" if share >= MOST else "part" if share >= PART else None
        assert (found.kind, found.share) == (kind, pytest.approx(share))
        assert bool(found.passage) == (share > 0)


def test_neither_order_nor_parts_of_the_training_text_matter():
    """Documents that come one by one, or in another order, give the same."""
    training = [f"{a} {b}" for a, b in zip(TEXTS[::3], TEXTS[1::3], strict=True)]
    shuffled = random.Random(0).sample(training, len(training))
    found = judge(TEXTS, training)
    assert found == judge(TEXTS, *([text] for text in training)) == judge(TEXTS, shuffled)
    assert {each.kind for each in found} == {"whole", None}


def test_a_match_goes_through_no_two_documents():
    """Halves of a text in two documents that follow one another aren't the whole text."""
    text = " ".join(WORDS[:20])
    halves = [" ".join(WORDS[:10]), " ".join(WORDS[10:20])]
    assert judge([text], halves)[0].share == 0.0
    (found,) = judge([text], [" ".join(WORDS[:15]), " ".join(WORDS[5:20])])
    assert (found.kind, found.share) == ("most", 1.0)  # all its words match, but in two documents


def test_case_punctuation_and_layout_do_not_matter():
    """Nor do forms of a character that mean the same."""
    plain = "the first office of the doctor is open on ﬁve days from 9 to 12"
    dressed = "THE first\n\noffice — of “the Doctor” — is open on\tfive days: from ９ to 12!"
    assert judge([plain], [f"As known, {dressed} And so on."])[0].kind == "whole"


def test_a_short_text_is_found_only_as_a_whole_document():
    """Fewer than eight words occur anywhere by chance; blank text occurs nowhere."""
    short = "Yes, it is."
    assert judge([short], ["Then he said: yes, it is. So it was."])[0].kind is None
    assert judge([short], ["yes it is"])[0].kind == "whole"
    assert judge([" … "], [" … ", ""])[0].kind is None


def test_signs_are_words_where_words_are_not_written_apart():
    """Thirteen Chinese signs in a row match; a whole sentence isn't one word."""
    text = "糖尿病是一种以高血糖为特征的代谢性疾病"
    (found,) = judge([text], [f"请问{text[:15]}吗"])
    assert found.kind == "part" and found.passage == text[:15]


def test_the_passage_is_the_longest_one_in_common():
    """It comes without what is around it, and not longer than can be read at a glance."""
    text = " ".join([*WORDS[:14], "x", *WORDS[20:80], "y", *WORDS[80:94]])
    (found,) = judge([text], [" ".join(WORDS[:15]), " ".join(WORDS[15:90])])
    assert found.passage.startswith("w20 w21") and found.passage.endswith(" …")
    assert len(found.passage) <= SHOWN + 2
    (found,) = judge([text], [" ".join(WORDS[:15])])
    assert found.passage == " ".join(WORDS[:14])


def test_a_word_keeps_its_marks():
    """Vowels and other signs on letters tear no word apart; English is as ever."""
    hindi = "भारत एक विशाल देश है जहाँ कई भाषाएँ बोली जाती हैं"
    assert split_words(hindi) == hindi.split()
    assert split_words("İstanbul, na\u0303o x\u0323\u0302") == ["i\u0307stanbul", "não", "x\u0323\u0302"]
    assert split_words("It's a well-known (e.g.) word_1") == [
        "it",
        "s",
        "a",
        "well",
        "known",
        "e",
        "g",
        "word_1",
    ]
    assert len(split_words("ភាសាខ្មែរ")) == 9 and len(split_words("မြန်မာ")) == 6
