"""From documents to blocks, without Ray: no token, no byte and no beginning is lost or counted twice."""

import numpy as np
import pytest
from common import documents, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from adept_ray.data.cutting import count_token_bytes, cut_blocks, pack_records

TOKENIZER = tiny_tokenizer()._tokenizer
EOS, SEQ_LEN = 0, 8


@given(st.lists(st.text("aé€😀 ", min_size=1, max_size=12), min_size=1, max_size=6), st.integers(1, 7))
def test_blocks_are_the_stream_of_documents(texts, at_once):
    """Ids joined by EOS and cut, however many documents are tokenized at a time; the rest at the end goes."""
    ids = [encoding.ids for encoding in TOKENIZER.encode_batch(texts, add_special_tokens=False)]
    stream = [token for document in ids for token in (*document, EOS)]
    begins = np.cumsum([0, *(len(document) + 1 for document in ids)])
    sizes = [[*count_token_bytes(t, TOKENIZER.encode(t, add_special_tokens=False).offsets), 0] for t in texts]
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
    assert count_token_bytes("aé€😀", [(0, 1), (1, 2), (2, 3), (3, 4)]).tolist() == [1, 2, 3, 4]
    assert count_token_bytes("😀a", [(0, 1), (0, 1), (0, 1), (1, 2)]).tolist() == [4, 0, 0, 1]
    assert count_token_bytes("a  é", [(0, 1), (3, 4)]).tolist() == [1, 4]
    assert count_token_bytes("\x7f\x80\u07ff\u0800", [(0, 1), (1, 2), (2, 3), (3, 4)]).tolist() == [
        1,
        2,
        2,
        3,
    ]
    assert count_token_bytes("\uffff\U00010000", [(0, 1), (1, 2)]).tolist() == [3, 4]


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
