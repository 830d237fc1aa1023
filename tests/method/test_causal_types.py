"""Every type of causal LM that transformers knows is expanded bit for bit, or refused, as the page says."""

import re

import pytest
from causal_types import PAGE, README, TYPES, find_obstacle, read_table

TABLE = read_table()


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_a_type_is_expanded_or_refused_as_the_page_says(kind):
    """Copies of every layer leave the logits as they were, after export and reload too, or one sentence."""
    assert bool(find_obstacle(kind)) == bool(TABLE[kind])


def test_the_page_names_every_type():
    """And counts those that are expanded, which are 120 at least; the README has the same numbers."""
    assert list(TABLE) == TYPES
    good = sum(not why for why in TABLE.values())
    counts = re.search(r"Of (\d+) types (\d+) are expanded bit for bit", PAGE.read_text())
    assert counts and [int(count) for count in counts.groups()] == [len(TABLE), good] and good >= 120
    quoted = re.search(r"Of the (\d+) types of .* transformers (\d+) work", README.read_text())
    assert quoted and quoted.groups() == counts.groups()
