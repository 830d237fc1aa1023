"""What makes the blocks of a run's corpora, and what is said where there are too few."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from adept_ray.config.errors import UserError
from adept_ray.config.specs import RunSpec
from adept_ray.data.corpora import CorpusFiles
from adept_ray.data.loading import Backbone
from adept_ray.data.mixing import MixedCorpus
from adept_ray.run.block_sets import SPLITS, explain_small_corpora, name_plans, plan_packing
from adept_ray.run.sources import Sources

COUNTS = {"documents": 3, "repeated": 1, "in_earlier": 0, "near": 0, "longest": 17}
A, B, C, D = (CorpusFiles(Path(), name, name, "") for name in "abcd")


@pytest.mark.parametrize("near", [None, 0.8])
def test_a_corpus_is_kept_apart_from_all_before_it(near):
    """Those of its own side, too; the general ones come first, and near-duplicates are left out of all."""
    sources = Sources(Backbone("m", "m"), None, MixedCorpus((A, B)), MixedCorpus((C, D)))
    plans = plan_packing(RunSpec(near_duplicates=near), sources)
    apart = {name: (plan.corpus, plan.apart_from) for name, plan in name_plans(plans).items()}
    assert apart == {
        "general 1": (A, ()),
        "general 2": (B, (A,)),
        "domain 1": (C, (A, B)),
        "domain 2": (D, (A, B, C)),
    }
    for side, own in plans.items():
        assert all((plan.splits, plan.near_duplicates) == (SPLITS[side], near) for plan in own)


def test_what_a_corpus_shares_with_the_general_text_is_said():
    """The only domain corpus is kept apart from the general ones alone, and one document is no plural."""
    counts = COUNTS | {"documents": 1, "repeated": 0, "in_earlier": 1}
    sets = {"domain": SimpleNamespace(sets=[SimpleNamespace(counts=counts)])}
    with pytest.raises(UserError) as caught, explain_small_corpora(sets):
        raise UserError("too small")
    assert str(caught.value) == (
        "too small (domain: 1 document, 1 also in the general text, the longest of 17 bytes)"
    )


def test_too_little_text_is_explained():
    """The error says how many documents each corpus has and what of them isn't taken; all is well without."""
    counts = {"general": [0], "domain": [2, 0]}
    sets = {
        side: SimpleNamespace(sets=[SimpleNamespace(counts=COUNTS | {"in_earlier": each}) for each in own])
        for side, own in counts.items()
    }
    with explain_small_corpora(sets):
        pass
    with pytest.raises(UserError) as caught, explain_small_corpora(sets):
        raise UserError("corpus 'mine' is too small")
    assert str(caught.value) == (
        "corpus 'mine' is too small (general: 3 documents, 1 repeated, the longest of 17 bytes; domain 1: 3 "
        "documents, 1 repeated, 2 also in an earlier corpus, the longest of 17 bytes; domain 2: 3 documents, "
        "1 repeated, the longest of 17 bytes)"
    )
