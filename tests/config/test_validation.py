"""Numbers of tokens as people write them."""

import pytest

from adept_ray.config.validation import read_tokens


def test_tokens_are_read_as_people_write_them():
    """With a letter for the size, as a power of ten, with underscores; nothing else is taken."""
    texts = ("50M", "2e7", "50_000_000", "6144", " 1.5k", "2B")
    numbers = [50_000_000, 20_000_000, 50_000_000, 6144, 1500, 2 * 10**9]
    assert [read_tokens(text) for text in texts] == numbers
    for text in ("5Q", "many", "0", "-1", "nan", "inf", "M", "5 M M"):
        with pytest.raises(ValueError, match="is no number of tokens: give one such as 50M"):
            read_tokens(text)
