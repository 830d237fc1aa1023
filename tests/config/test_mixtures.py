"""Several corpora with weights: how flags and files name them, and what is refused."""

import os

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from adept_ray.config.errors import UserError
from adept_ray.config.mixtures import Mixture, Part, list_words, parse_mixture, parse_part
from adept_ray.config.places import suggest_weight
from adept_ray.config.specs import RunSpec
from adept_ray.config.validation import apply_changes, validate_spec

WORDS = st.builds(
    str.__add__,
    st.sampled_from(["", "s3://b/", "https://h/"]),
    st.text(st.sampled_from("ab=/.3?*"), min_size=1, max_size=8),
)


def test_a_plain_corpus_stays_a_plain_text():
    """In what is written down, as older results have it, and in YAML; a weight of one alone is no weight."""
    assert RunSpec().model_dump(mode="json")["domain"] == "medical" == str(RunSpec().domain)
    assert RunSpec(domain="notes.jsonl=3").domain == RunSpec(domain=["notes.jsonl"]).domain
    assert RunSpec(domain="notes.jsonl").domain.shares == (1.0,)


def test_several_keep_order_and_weights_through_a_file():
    """What is written is read again as the same corpora, in shares that add up to 1."""
    run = RunSpec(domain=["a.jsonl=3", "hf:owner/name=1"], general=["boolq", "b.txt=0.25"])
    assert run.domain == Mixture((Part("a.jsonl", 3.0), Part("hf:owner/name")))
    assert run.domain.shares == (0.75, 0.25) and run.general.shares == (0.8, 0.2)
    assert validate_spec(RunSpec, yaml.safe_load(yaml.safe_dump(run.model_dump(mode="json"))), "x") == run
    assert apply_changes(run, {"seed": 1}).domain == run.domain


@given(st.lists(st.tuples(WORDS, st.floats(0.001, 1000)), min_size=1, unique_by=lambda part: part[0]))
def test_what_is_written_is_what_was_meant(parts):
    """Whatever is in a path and whatever the weight, a written corpus is read again as the same."""
    mixture = Mixture(tuple(Part(*part) for part in parts) if len(parts) > 1 else (Part(parts[0][0]),))
    assume(not any(os.path.exists(part.place) or os.path.exists(str(part)) for part in mixture.parts))
    assert parse_mixture(list_words(mixture)) == mixture


def test_a_path_may_hold_what_looks_like_a_weight(tmp_path):
    """A path that exists is one; with a weight behind it, the last = counts. So does a query's = not."""
    path = tmp_path / "lang=3"
    assert parse_part(str(path)) == Part(str(tmp_path / "lang"), 3.0)
    path.write_text("text")
    assert parse_part(str(path)) == Part(str(path))
    assert parse_part(f"{path}=2") == Part(str(path), 2.0)
    kept = str(Part(str(path)))
    path.unlink()
    assert parse_part(kept) == Part(str(path))
    for whole in ("https://host/a?key=b", "data/lang=en/part.jsonl"):
        assert parse_part(whole) == Part(whole)


@pytest.mark.parametrize(
    ("place", "weighed"),
    [
        ("s3://b/web/year=2024", "s3://b/web/year=2024=3"),
        ("s3://b/web/year=2024", "s3://b/web/year=2024/=3"),
        ("s3://b/web", "s3://b/web/=3"),
        ("s3://b/web/a.jsonl", "s3://b/web/a.jsonl=3"),
        ("https://host/get?id=5", "https://host/get?id=5/=3"),
        ("s3://b/d?region=4", "s3://b/d?region=4/=3"),
        ("data/year=*", "data/year=*=3"),
        ("data/*/year=2024", "data/*/year=2024/=3"),
        ("data/*.jsonl", "data/*.jsonl=3"),
    ],
)
def test_an_equals_sign_of_a_place_is_no_weight(place, weighed):
    """In the last part of a URI or a glob, and in a query; a weight comes behind it."""
    assert parse_part(place) == Part(place)
    assert parse_part(weighed) == Part(place, 3.0)


def test_a_missing_place_says_how_a_weight_is_written():
    """Where its end may have been meant as one."""
    assert suggest_weight("s3://b/web=3") == "; with 3 as its weight it is written s3://b/web/=3"
    assert suggest_weight("s3://b/year=a") == suggest_weight("s3://b/a.jsonl") == ""


@pytest.mark.parametrize("weight", ["x", "", "0", "-1", "nan", "inf"])
def test_a_weight_that_is_no_number_above_0_is_refused(weight):
    """The sentence names flag, corpus and weight, and what would do."""
    with pytest.raises(UserError) as problem:
        validate_spec(RunSpec, {"domain": ["boolq", f"a.jsonl={weight}"]}, "command line")
    assert str(problem.value) == (
        f"command line: domain: a.jsonl={weight}: the weight '{weight}' of 'a.jsonl' must be a number above "
        "0, such as 3 or 0.5"
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["math", "math=2"], "'math' is there twice: give it once, with one weight"),
        ([], "names no corpus: give a preset, a file, a folder or a hub dataset"),
        (3, "must be a corpus, or a list of corpora such as a.jsonl=3, not 3"),
    ],
)
def test_what_names_no_corpora_is_refused(given, sentence):
    """One corpus twice, none at all, and what is no text."""
    with pytest.raises(UserError, match=f"^x: general: {sentence}$"):
        validate_spec(RunSpec, {"general": given}, "x")


def test_one_file_under_two_names_is_there_twice(tmp_path, monkeypatch):
    """A relative and an absolute path lead to the same corpus."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="is there twice"):
        parse_mixture(["a.txt", str(tmp_path / "a.txt")])
