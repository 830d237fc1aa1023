"""What a page says of the dial: the curves, the exported model there and as it was trained, the front."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up import (
    curves,
    dials,
    edited_json,
    trials,
    whole_best,
    write_csv,
    write_folder,
    write_whole_folder,
)

from adept_ray.config.errors import UserError
from adept_ray.report.dial_section import build_dial_section, describe_dial
from adept_ray.report.evidence import Evidence, read_evidence
from adept_ray.report.first_screen import build_first_screen
from adept_ray.report.model_card import build_card
from adept_ray.report.trial_figures import draw_dial, draw_trade
from adept_ray.report.trial_sections import build_trials_section


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_whole_folder(tmp_path / "tiny-medical")


def change_best(folder: Path, **test: Any) -> None:
    """Write the whole best.yaml with other numbers of the test."""
    found = whole_best()
    found["test"] |= test
    (folder / "best.yaml").write_text(yaml.safe_dump(found))


def lines_of(results: Evidence) -> dict[str, list[tuple[float, float]]]:
    """Label → the points of a line in the figure of the dial; the last one of that label."""
    lines = draw_dial(results).axes[0].get_lines()
    return {str(line.get_label()): list(zip(*line.get_data(), strict=True)) for line in lines}


def test_the_curve_is_what_was_read_and_begins_at_the_backbone(whole: Path) -> None:
    """Score and both changes of the chosen trial, the exported dial marked, the others' scores thin."""
    results = read_evidence(whole)
    own = [row for row in dials() if row["trial"] == "trial-002"]
    lines = lines_of(results)
    for label, column in {"score": "score", "general Δ": "general_delta", "domain Δ": "domain_delta"}.items():
        assert lines[label] == [(0, 0), *((row["dial"], row[column]) for row in own)]
    assert lines["chosen"] == [(0.8, own[1]["score"])]
    thin = [line for line in draw_dial(results).axes[0].get_lines() if line.get_linewidth() == 0.6]
    assert len(thin) == len({row["trial"] for row in dials()}) - 1
    html = build_dial_section(results)
    assert f"<td>0.8</td><td>+{own[1]['general_delta']:.2f}".replace("+-", "−") in html


def test_a_sentence_says_which_dial_and_the_score_there_and_as_trained(whole: Path) -> None:
    """And where another one was asked for, which of those that were tried is the best."""
    words = describe_dial(read_evidence(whole))
    assert words.startswith("Exported is dial 0.8, the best of those tried.")
    assert "is +4.70, as it was trained +4.40." in words
    change_best(whole, dial=0.3)
    words = describe_dial(read_evidence(whole))
    assert words.startswith("Exported is dial 0.3, as it was asked for. Of those tried 0.8 is the best:")
    assert "chosen" not in lines_of(read_evidence(whole))  # what wasn't measured has no point


def test_the_first_screen_and_the_card_have_the_test_at_the_dial_and_as_trained(whole: Path) -> None:
    """Both scores in a line; where the model is as it was trained there is one."""
    words = "+4.445 at dial 0.8; as it was trained +4.395 (general Δ −0.52, domain Δ +9.31)."
    assert words in build_first_screen(read_evidence(whole))
    card = str(build_card(read_evidence(whole)))
    assert "turned to dial 0.8" in card and "Test score there +4.45, as it was trained +4.39" in card
    for dial in (1.0, None):
        change_best(whole, dial=dial)
        results = read_evidence(whole)
        assert "dial" not in build_first_screen(results) + str(build_card(results))


def test_the_table_of_trials_has_dial_and_score_as_trained(whole: Path, tmp_path: Path) -> None:
    """An older table has neither, and no sentence about them."""
    html = build_trials_section(read_evidence(whole))
    assert "<th>dial</th>" in html and "<th>as trained</th>" in html and "As trained: the score at" in html
    assert "<td>0.8</td><td>+4.400</td>" in html
    old = build_trials_section(read_evidence(write_folder(tmp_path / "old")))
    assert "dial" not in old and "s trained" not in old


def test_a_training_at_full_length_has_its_own_curve(whole: Path) -> None:
    """Its scores are those of its last reading."""
    (whole / "trials.csv").unlink()
    edited_json(whole / "run.json", training={"k": 2})
    write_csv(whole / "dials.csv", [row | {"trial": "training"} for row in dials()[:3]])
    last = curves()[-1] | {"trial": "training", "score": 2.5, "plain_score": 2.25, "dial": 0.8}
    (whole / "curves.jsonl").write_text(json.dumps(last))
    results = read_evidence(whole)
    assert len(lines_of(results)["score"]) == 4 and "scores of other trials" not in lines_of(results)
    assert "is +2.50, as it was trained +2.25." in describe_dial(results)


def test_the_front_goes_through_the_dials(whole: Path) -> None:
    """No point of a finished trial at any dial, nor the backbone, beats one of it; the figure draws it."""
    change_best(whole, dial=0.8)
    found = whole_best() | {"score": {"general": 0.5, "domain": 0.5}}
    (whole / "best.yaml").write_text(yaml.safe_dump(found))
    results = read_evidence(whole)
    every = [(row["general_delta"], row["domain_delta"]) for row in dials()]
    assert len(results.front) > 2 and set(results.front) <= {*every, (0.0, 0.0)} | {
        (row["general_delta"], row["domain_delta"]) for row in trials()
    }
    for point in results.front:
        assert not [each for each in every if each != point and each[0] >= point[0] and each[1] >= point[1]]
    labels = [str(line.get_label()) for line in draw_trade(results).axes[0].get_lines()]
    assert labels.count("front") == 1 and labels.count("chosen, by its dial") == 1


def test_a_dial_that_diverged_leaves_its_point_out(whole: Path) -> None:
    """What isn't finite is no point of a curve nor of the front."""
    rows = [row | ({"general_delta": "nan", "score": "nan"} if row["dial"] == 1 else {}) for row in dials()]
    write_csv(whole / "dials.csv", rows)
    results = read_evidence(whole)
    assert [dial for dial, _ in lines_of(results)["score"]] == [0, 0.5, 0.8]
    assert [dial for dial, _ in lines_of(results)["domain Δ"]] == [0, 0.5, 0.8, 1]
    assert "–" in build_dial_section(results) and len(results.front) > 0


def test_a_damaged_file_is_named(whole: Path) -> None:
    """With the line and what is wrong there."""
    rows = dials()
    rows[1]["dial"] = "much"
    write_csv(whole / "dials.csv", rows)
    with pytest.raises(UserError, match=re.escape("dials.csv, line 3: dial:")):
        read_evidence(whole)
