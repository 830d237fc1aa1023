"""The section about longer trainings: a row for each length, the one asked for among them, and the doubts."""

import re

import pytest
import yaml
from made_up import edited_json, whole_best, write_whole_folder

from adept_ray.config.errors import UserError
from adept_ray.report.evidence import read_evidence
from adept_ray.report.horizon_section import build_horizon_section, draw_depths, draw_rates, list_shown
from adept_ray.report.search_page import write_report


@pytest.fixture
def folder(tmp_path):
    return write_whole_folder(tmp_path / "tiny-medical")


def test_each_length_has_its_row_and_its_place_in_the_figures(folder):
    """The length that was asked for stands among those that double."""
    results = read_evidence(folder)
    shown = list_shown(results)
    assert [each.tokens for each in shown] == [6144, 12288, 24576, 49152, 98304, 1_000_000]
    html = build_horizon_section(results)
    assert re.findall(r"<tr><td>([^<]+)</td><td>(\d)</td>", html)[-1] == ("1 M", "3")
    assert "2.0e-03 (1.0e-03 … 4.0e-03)" in html
    for draw, name in ((draw_depths, "advised_k"), (draw_rates, "rate")):
        line = draw(shown).axes[0].get_lines()[-1]
        assert list(line.get_ydata()) == [getattr(each, name) for each in shown]


def test_what_ends_k_and_what_cannot_be_known_is_said(folder):
    """The tolerance by its points, and that nothing was read beyond the longest reading."""
    html = build_horizon_section(read_evidence(folder))
    assert "no more than 0.20 points against the best, with a probability of 80%" in html
    assert "a larger k is expected to score more, but by less than the tolerance" in html
    assert "Beyond 16 times the longest reading this is a guess" in html


def test_an_older_folder_has_no_such_section(folder):
    """Nothing is made up for it."""
    found = whole_best()
    del found["choice"]["horizons"], found["choice"]["asked"]
    (folder / "best.yaml").write_text(yaml.safe_dump(found))
    assert "For longer trainings" not in write_report(folder).read_text()


def test_an_answer_that_lacks_something_is_named(folder):
    """Bad input has its sentence."""
    found = whole_best()
    del found["choice"]["horizons"][1]["rate"]
    (folder / "best.yaml").write_text(yaml.safe_dump(found))
    with pytest.raises(UserError, match=r"best.yaml: 'choice.horizons.1.rate' is missing"):
        read_evidence(folder)


def test_a_longer_training_has_the_reason_of_its_length(folder):
    """Its k is the answer for its tokens, and not what the search chose among its trials."""
    for name in ("trials.csv", "curves.jsonl", "dials.csv"):
        (folder / name).unlink()
    found = whole_best()
    found["training"]["tokens"] = 13000
    (folder / "best.yaml").write_text(yaml.safe_dump(found))
    edited_json(folder / "run.json", training=found["training"])
    said = "for 12.3 k tokens: k = 2 (80%: 1 to 3)"
    assert said in read_evidence(folder).reason and said in write_report(folder).read_text()
