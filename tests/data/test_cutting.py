"""From documents to blocks, without Ray: no token, no byte and no beginning is lost or counted twice."""

import numpy as np
import pytest
from common import documents, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.data import cutting
from adept_ray.data.cutting import count_token_bytes, cut_blocks, group_texts, pack_records

TOKENIZER = tiny_tokenizer()._tokenizer
EOS, SEQ_LEN = 0, 8


@given(st.lists(st.text("aé€😀 ", min_size=1, max_size=12), min_size=1, max_size=6), st.integers(1, 7))
def test_blocks_are_the_stream_of_documents(texts, at_once):
    """Ids joined by EOS and cut, however many documents are tokenized at a time; the rest at the end goes."""
    ids = [encoding.ids for encoding in TOKENIZER.encode_batch(texts, add_special_tokens=False)]
    stream = [token for document in ids for token in (*document, EOS)]
    begins = np.cumsum([0, *(len(document) + 1 for document in ids)])
    ends = [[end for _, end in TOKENIZER.encode(t, add_special_tokens=False).offsets] for t in texts]
    sizes = [[*count_token_bytes(text, each), 0] for text, each in zip(texts, ends, strict=True)]
    whole = len(stream) // SEQ_LEN * SEQ_LEN
    found = list(cut_blocks(texts, TOKENIZER, EOS, SEQ_LEN, at_once))
    tokens, starts, bytes_ = (
        np.concatenate([getattr(f, c) for f in found]) for c in ("tokens", "starts", "bytes")
    )
    assert tokens.ravel().tolist() == stream[:whole] and tokens.shape[1] == SEQ_LEN
    assert np.flatnonzero(starts).tolist() == [begin for begin in begins if begin < whole]
    every = np.concatenate(sizes)[:whole].reshape(-1, SEQ_LEN)
    assert bytes_.tolist() == every[:, 1:].tolist()


def test_every_byte_of_a_document_counts_once():
    """A character in pieces counts with the first of them, skipped text with the token behind it."""
    assert count_token_bytes("aé€😀", [1, 2, 3, 4]).tolist() == [1, 2, 3, 4]
    assert count_token_bytes("😀a", [1, 1, 1, 2]).tolist() == [4, 0, 0, 1]
    assert count_token_bytes("a  é", [1, 4]).tolist() == [1, 4]
    assert count_token_bytes("a  e", [1, 4, 2]).tolist() == [1, 3, 0]
    assert count_token_bytes("\x7f\x80\u07ff\u0800", [1, 2, 3, 4]).tolist() == [1, 2, 2, 3]
    assert count_token_bytes("\uffff\U00010000", [1, 2]).tolist() == [3, 4]


def test_long_documents_are_tokenized_few_at_a_time(monkeypatch):
    """As many as have so many characters, or so many of short ones; all in their order."""
    monkeypatch.setattr(cutting, "TOKENIZED_CHARACTERS", 10)
    texts = ["a" * size for size in (1, 1, 1, 1, 30, 9, 9, 10, 2)]
    groups = [[len(text) for text in group] for group in group_texts(texts, 3)]
    assert groups == [[1, 1, 1], [1, 30], [9, 9], [10], [2]]


@pytest.mark.parametrize("at_once", [1, 40])
def test_records_hold_all_parts_in_their_order(at_once):
    """As many as there are blocks, each with its own values."""
    parts = list(cut_blocks(documents(40), TOKENIZER, EOS, SEQ_LEN, at_once))
    records = pack_records(parts, "<u2", SEQ_LEN)
    assert records["tokens"].tolist() == np.concatenate([part.tokens for part in parts]).tolist()
    assert records["bytes"].tolist() == np.concatenate([part.bytes for part in parts]).tolist()
    starts = np.unpackbits(records["starts"], axis=1, count=SEQ_LEN).astype(bool)
    assert starts.tolist() == np.concatenate([part.starts for part in parts]).tolist()
    assert len(pack_records(parts[:0], "<u2", SEQ_LEN)) == 0
