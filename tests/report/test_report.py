"""Report and card are whole, safe to open, and say what is missing when they can't be written."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import ANY, patch

import pytest
import yaml
from common import tiny_model
from huggingface_hub import ModelCard
from made_up import (
    CHOSEN,
    FILES,
    LAYERS,
    UNITS,
    best,
    contamination,
    curves,
    edited_json,
    importance,
    run,
    tied,
    trials,
    whole_best,
    write_csv,
    write_folder,
    write_whole_folder,
)
from matplotlib.figure import Figure

from adept_ray.commands.tune_k import find_k
from adept_ray.config.errors import UserError
from adept_ray.config.specs import PickRun, SearchRun
from adept_ray.data.backbones import PRESETS
from adept_ray.report.contamination_section import CONTAMINATION
from adept_ray.report.evidence import read_evidence
from adept_ray.report.layer_figures import draw_importance, save_importance
from adept_ray.report.model_card import write_card
from adept_ray.report.records import Contamination, Importance
from adept_ray.report.rerun import format_rerun
from adept_ray.report.search_page import write_report
from adept_ray.report.trial_figures import draw_curves, draw_trade
from adept_ray.report.trial_sections import explain_curves
from adept_ray.run.flags import parse_flags


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny-medical")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of an untouched folder, for the tests that only look at it."""
    whole = write_folder(tmp_path_factory.mktemp("report") / "tiny-medical")
    return write_report(whole).read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Collects the tags, and refuses a page whose tags do not close in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def text_of(page: str) -> str:
    return " ".join(word for word in Outline(page).words if word)


def words_of(folder: Path) -> str:
    """The text of a new report, written without its figures, which take most of the time."""
    with without_figures():
        return text_of(write_report(folder).read_text(encoding="utf-8"))


def without_figures() -> Any:
    """Have figures drawn, but neither laid out nor written."""
    return patch("adept_ray.report.html.format_svg", lambda figure: '<svg viewBox="0 0 1 1"></svg>')


def test_every_section_and_number_is_there(page: str) -> None:
    """A reader finds the answer, the evidence and the making, with the numbers of the folder."""
    text = text_of(page)
    for title in (
        "Why this k",
        "Domain against general",
        "Importance of each layer",
        "Unit rates",
        "All trials",
        "How this was made",
    ):
        assert title in text
    for number in ("k = 2", "1.2345 → 1.1234", "+9.00 %", "−0.11 %", "± 0.08, no clear change", "6 → 8",
                   "6 min 37 s", "3.490", "0.00123", "12,288", "+4.700", "0123456789abcdef"):  # fmt: skip
        assert number in text, number
    for sentence in (
        best()["choice"]["reason"],
        run()["command"],
        *run()["notes"].values(),
        "Copies of layers 2, 4",
    ):
        assert sentence in text
    for row in trials():
        assert row["trial"] in text


def test_rate_panels_name_copy_and_source(page: str) -> None:
    """A panel per added layer, numbered as in the expanded model, naming the layer it copies."""
    text = text_of(page)
    assert "Layer 3, copy of 2" in text
    assert "Layer 6, copy of 4" in text
    assert text.count("optimizer step") == len(CHOSEN)


def test_the_page_loads_nothing(page: str) -> None:
    """No script, style or address is fetched: the report opens the same without a network."""
    for tag, attributes in Outline(page).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            assert name != "src" and not name.startswith("on")
            assert "href" not in name or (value or "").startswith("#"), (tag, name, value)
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_ids_are_unique_and_resolve(page: str) -> None:
    """Figures share a page: an id that occurs twice would clip one figure with another's frame."""
    ids = [attributes["id"] for _, attributes in Outline(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_every_figure_has_a_name(page: str) -> None:
    """A screen reader hears what each picture shows."""
    figures = [attributes for tag, attributes in Outline(page).tags if tag == "svg"]
    # score, trade, importance for either screen; a line of the legend per unit; a panel per added layer
    assert len(figures) == 4 + len(UNITS) + len(CHOSEN)
    assert all(each.get("role") in ("img", "group") and each.get("aria-label") for each in figures)


def test_text_is_escaped(folder: Path) -> None:
    """Names come from files and command lines: none of them may become markup."""
    rows = trials()
    rows[0] |= {"trial": "<b>bold</b>", "layers": "<i>2</i>"}
    write_csv(folder / "trials.csv", rows)
    (folder / "run.json").write_text(json.dumps(run() | {"command": "tune '<u>&amp;' $title ${first}"}))
    (folder / "rates.jsonl").write_text(json.dumps({"step": 0, "unit": 'm.3.<s>"$x_$', "scale": 1.0}))
    (folder / "importance.json").write_text(
        json.dumps(importance() | {"made_from": {"tokens": 9, "corpus": "<em>"}})
    )
    page = write_report(folder).read_text(encoding="utf-8")
    assert not {"b", "i", "u", "s", "em"} & {tag for tag, attributes in Outline(page).tags if not attributes}
    for text in ("<b>bold</b>", "tune '<u>&amp;' $title ${first}", "of <em>", '<s>"$x_$'):
        assert text in text_of(page)


@pytest.mark.parametrize(
    "k, pair", [(0, ""), (1, ""), (2, "chosen layers 4 from 1;"), (3, "chosen layers 4 from 3;"), (4, "")]
)
def test_a_doubtful_choice_names_the_layers_in_question(k: int, pair: str) -> None:
    """Of the layers whose place may lie on either side of k, the chosen ones and the others."""
    found = Importance.model_validate(tied())
    sentence = found.express_doubt(found.order[:k])
    assert pair in sentence and bool(sentence) == bool(pair)


def test_a_long_list_of_doubtful_layers_is_cut() -> None:
    """With nothing decided, eight others are named and the rest counted."""
    rows = [{"layer": i, "mean": float(i), "standard_error": 0.0, "places": [0, 19]} for i in range(20)]
    found = Importance.model_validate({"layers": rows, "order": list(range(20))})
    assert "layers 0 1 from 2 3 4 5 6 7 8 9 and 10 more;" in found.express_doubt((1, 0))
    assert not found.express_doubt((0, 7))  # layers that the probe did not choose


def test_a_tie_is_told_in_the_report(folder: Path) -> None:
    """A reader of the report sees which layers could as well have been chosen."""
    (folder / "importance.json").write_text(json.dumps(tied() | {"probe": "raced"}))
    text = words_of(folder)
    assert "doesn't tell the chosen layers 4 from 1;" in text and "on fewer sequences" in text


def test_no_layer_added(folder: Path) -> None:
    """k = 0 is an answer too: the report says so and has no rates to show."""
    (folder / "best.yaml").write_text(yaml.safe_dump(best(k=0)))
    (folder / "rates.jsonl").write_text("")
    text = text_of(write_report(folder).read_text(encoding="utf-8"))
    assert "k = 0" in text
    assert "No layer added" in text
    assert "Copies of" not in text
    assert "◆ the chosen" not in text


def test_failed_trials_are_listed_without_numbers(folder: Path, page: str) -> None:
    """A failed trial has empty fields: dashes in the table, no point in a figure."""
    numbers = (
        "general_bpb",
        "domain_bpb",
        "general_delta",
        "domain_delta",
        "score",
        "score_se",
        "tokens",
        "seconds",
    )
    failed = trials()[0] | {"trial": "trial-005", "state": "failed"} | dict.fromkeys(numbers, "")
    write_csv(folder / "trials.csv", [*trials(), failed])
    after = write_report(folder).read_text(encoding="utf-8")
    assert "trial-005" in after
    assert after.count("<td>–</td>") == page.count("<td>–</td>") + len(numbers)
    assert after.count("<use ") == page.count("<use ")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    """One sentence that names the file, and no half-written report."""
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{re.escape(name)}: no such file"):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("best.yaml", lambda text: text.replace("reason:", "why:"), "'choice.reason' is missing"),
        ("best.yaml", lambda text: "a: [", "not readable as YAML"),
        ("importance.json", lambda text: text[:40], "not JSON"),
        ("rates.jsonl", lambda text: text + "{\n", "line 21: not JSON"),
        ("rates.jsonl", lambda text: text.replace('"unit"', '"part"', 1), "line 1: 'unit' is missing"),
        ("run.json", lambda text: "[]", "valid"),
        ("trials.csv", lambda text: text.replace("score_se", "se"), "line 2: 'score_se' is missing"),
        ("trials.csv", lambda text: text.replace("4.7,", "high,"), "line 3: score: .*'high'"),
        ("trials.csv", lambda text: text.splitlines()[0], "holds no trial"),
    ],
)
def test_a_corrupt_file_is_named(folder: Path, name: str, change: Callable[[str], str], words: str) -> None:
    """One sentence says which file, where in it, and what is wrong."""
    path = folder / name
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=rf"{re.escape(name)}.*{words}") as problem:
        write_report(folder)
    assert "\n" not in str(problem.value)


def test_the_same_folder_gives_the_same_bytes(folder: Path, page: str) -> None:
    """Reports of equal folders can be compared byte by byte, wherever the folders are."""
    path = write_report(folder)
    assert path == folder / "report.html"
    assert path.read_bytes() == page.encode()


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_importance_picture_is_reproducible(tmp_path: Path, suffix: str) -> None:
    """The suffix says the format, and the same numbers give the same file."""
    first = save_importance(importance(), CHOSEN, tmp_path / "a" / f"one{suffix}")
    second = save_importance(importance(), CHOSEN, tmp_path / f"two{suffix}")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[:5] == {".png": b"\x89PNG\r", ".svg": b"<?xml"}[suffix]


def test_importance_picture_refuses_other_formats(tmp_path: Path) -> None:
    """An unknown suffix is the caller's mistake and is said in a sentence."""
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        save_importance(importance(), CHOSEN, tmp_path / "importance.gif")


@pytest.mark.parametrize(
    "means", [[0.5, -0.01, 0.0, 2.0], [0.0, 0.0, -1.0, 0.0], [float("nan"), 1.0, 2.0, 3.0], []]
)
def test_importance_need_not_be_positive(tmp_path: Path, means: list[float]) -> None:
    """A bypass that helps, or that changes nothing, still has its place on the axis."""
    layers = [{"layer": i, "mean": mean, "standard_error": 0.02} for i, mean in enumerate(means)]
    figure = draw_importance({"layers": layers}, [1])
    shown = [mean for mean in means if mean == mean]
    low, high = figure.axes[0].get_ylim()
    assert all(low <= mean <= high for mean in shown)
    save_importance({"layers": layers}, [1], tmp_path / "importance.png")


# ---------------------------------------------------------------- all that a folder can hold


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder with everything in it."""
    return write_whole_folder(tmp_path / "tiny-medical")


@pytest.mark.slow
def test_doubt_cost_and_rivals_are_told(whole: Path) -> None:
    """What only newer folders know is on the page: gains per k, edges, costs, what mattered, rivals."""
    text = words_of(whole)
    for words in (
        "+2.80 ± 0.30",  # of k = 2 over k = 1
        "base_lr = 0.00123 lies at the high end of its range",
        "python scripts/tune_k.py --search-space wider.yaml",
        "+15.49 k",
        "+28.3 %, 70.18 k in all",
        "Unreliable: too few trials",
        "A layer had to earn 0.5 points",
        "ADEPT is number 2 of 3 by mean score",
        "4 trials",  # the untouched backbone is none
        "5 2 none finished",
        "Test score (0.3 · min(general Δ, 0) + 0.7 · domain Δ)",
        "int: [1, 3]",
    ):
        assert words in text, words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edge", "words", "command"),
    [
        (
            {"held": "and the backbone has no more than 6 layers to copy"},
            "no more than 6 layers to copy.",
            "",
        ),
        ({"held": "where --max-new-params 9% ends it"}, "where --max-new-params 9% ends it.", "tune more"),
        ({}, "the high end of its range, so the best may lie beyond it.", "tune more"),
    ],
)
def test_an_edge_says_what_ends_it(whole: Path, edge: dict[str, Any], words: str, command: str) -> None:
    """In the report with the command that goes further, if there is one; in the card as a limit."""
    found = best_of(whole)
    edge = {"parameter": "k", "value": 2, "end": "high", "command": command} | edge
    found["choice"]["edges"] = [edge]
    (whole / "best.yaml").write_text(yaml.safe_dump(found))
    text = words_of(whole)
    assert f"{words} This searches further: tune more" in text if command else f"{words}" in text
    assert text.count("This searches further") == bool(command)
    limits = write_card(whole / "model", read_evidence(whole)).read_text().partition("## Limits")[2]
    assert "- k = 2 lies at the high end of its range, " in limits
    assert (edge.get("held") or "so a better value may lie beyond it") in limits


@pytest.mark.slow
def test_the_advice_to_leave_the_model_as_it_is_comes_first(whole: Path) -> None:
    """On the first screen and in the card; of a training at full length the search's advice is none."""
    found = best_of(whole)
    found["choice"] |= {"advised_k": 0, "reason": "Nothing that was tried is better."}
    (whole / "best.yaml").write_text(yaml.safe_dump(found))
    words = "Advice: k = 0 Leave tiny as it is: nothing is surely better. Exported is k = 2: 2 layers"
    card = "**The search that made this model advises against it (k = 0): nothing that it tried is surely"
    assert words in words_of(whole)
    assert (
        write_card(whole / "model", read_evidence(whole))
        .read_text()
        .partition("# tiny-medical\n\n")[2]
        .startswith(card)
    )
    edited_json(whole / "run.json", training={"k": 2})
    assert "Advice" not in words_of(whole)
    assert "advises" not in write_card(whole / "model", read_evidence(whole)).read_text()


@pytest.mark.slow
def test_where_layers_have_a_price_it_is_said_what_each_gained(whole: Path) -> None:
    """Else the table has no such column."""
    found = best_of(whole)
    found["choice"]["depths"][3] |= {"k": 5, "per_layer": 0.05}
    (whole / "best.yaml").write_text(yaml.safe_dump(found))
    text = words_of(whole)
    assert "gain a layer apart" in text and "+0.15 ± 0.20 +0.05 no" in text
    found["choice"]["min_gain_per_layer"] = None
    (whole / "best.yaml").write_text(yaml.safe_dump(found))
    assert "a layer" not in words_of(whole)


def test_the_cost_is_that_of_the_added_layers(whole: Path) -> None:
    """Parameters and operations with and without the copies are those of the models themselves."""
    cost = read_evidence(whole).cost
    biases = {"attention_bias": False, "mlp_bias": False}
    with_copies, without = (tiny_model(layers=n, **biases) for n in (LAYERS + len(CHOSEN), LAYERS))
    count = [sum(p.numel() for p in model.parameters()) for model in (with_copies, without)]
    assert cost is not None and (cost.parameters, cost.added) == (count[0], count[0] - count[1])
    assert cost.flops > cost.flops_before > cost.flops * LAYERS / (LAYERS + len(CHOSEN))


@pytest.mark.slow
def test_a_front_is_drawn_where_one_was_searched_for(whole: Path) -> None:
    """The search's own, in the order of general change; without --pareto trials stay, and no line."""
    found, drawn = best_of(whole), {}
    (whole / "dials.csv").unlink()
    places = {row["trial"]: (row["general_delta"], row["domain_delta"]) for row in trials()}
    for front in (["trial-003", "trial-001", "trial-002"], []):
        found["choice"]["front"] = front
        (whole / "best.yaml").write_text(yaml.safe_dump(found))
        assert read_evidence(whole).front == sorted(places[name] for name in front)
        drawn[len(front)] = {
            str(line.get_label()) for line in draw_trade(read_evidence(whole)).axes[0].get_lines()
        }
        assert ("Dashed: the front" in words_of(whole)) == bool(front)
    assert drawn[3] - drawn[0] == {"front"} and {"finished", "stopped", "chosen", "untouched"} <= drawn[0]


@pytest.mark.parametrize(
    "settings",
    [
        {
            "domain": "my texts/",
            "trials": 12,
            "seed": 7,
            "dashboard": False,
            "general_tasks": ["mmlu", "cmmlu"],
        },
        {"backbone": "qwen3-1.7b", "workers": 4, "tokens_per_trial": 6144, "resume": True},
        {},
    ],
)
def test_the_command_on_the_page_does_the_same_again(folder: Path, settings: dict[str, Any]) -> None:
    """Its flags give the settings of the run back, but for the name and whether it was resumed."""
    sizes = PRESETS[settings["backbone"]].sizes if "backbone" in settings else {}
    usual = {name: value for name, value in sizes.items() if name in SearchRun.model_fields}
    ran = SearchRun(**(usual | settings | {"name": "tiny-medical"}))
    edited_json(folder / "run.json", run=json.loads(ran.model_dump_json()))
    script, *flags = shlex.split(format_rerun(read_evidence(folder).run))[1:]
    assert script == "scripts/tune_k.py"
    elsewhere = {"name": "", "resume": False, "precision": ANY}
    assert parse_flags(SearchRun, "", flags) == ran.model_copy(update=elsewhere)


def test_what_was_picked_is_picked_again(folder: Path) -> None:
    """Of the same search under a name of its own, which the second command takes."""
    ran = SearchRun(name="tiny medical", trials=12)
    edited_json(folder / "run.json", run=json.loads(ran.model_dump_json()))
    alone = format_rerun(read_evidence(folder).run)
    edited_json(folder / "run.json", pick={"general": 0.7, "min_gain_per_layer": None})
    search, pick = format_rerun(read_evidence(folder).run).splitlines()
    assert search == f"{alone} --name 'tiny medical-again'"
    script, *flags = shlex.split(pick)[1:]
    assert script == "scripts/pick.py"
    found = parse_flags(PickRun, "", flags)
    assert found.model_fields_set == {"results", "general"}
    assert (found.results, found.general) == ("results/tiny medical-again", 0.7)
    assert " ".join(pick.split()) in " ".join(words_of(folder).split())


def test_a_training_at_full_length_has_a_report_too(folder: Path) -> None:
    """It has no trials, and its learning curve is its own."""
    (folder / "trials.csv").unlink()
    edited_json(folder / "run.json", training={"k": 2})
    (folder / "curves.jsonl").write_text(json.dumps(curves()[0] | {"trial": "training"}))
    text = text_of(write_report(folder).read_text(encoding="utf-8"))
    assert "Learning curves" in text and "training at full length" in text and "k = 2" in text
    assert "All trials" not in text


def test_the_hub_reads_the_card(whole: Path) -> None:
    """huggingface_hub finds in the card's head what was put there, and the text has the page's facts."""
    edited = best_of(whole) | {"run": best_of(whole)["run"] | {"backbone": "smollm2-135m"}}
    (whole / "best.yaml").write_text(yaml.safe_dump(edited))
    card = ModelCard.load(write_card(whole / "model", read_evidence(whole)))
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (card.data.license, card.data.language) == ("apache-2.0", "en")
    assert card.data.library_name == "transformers"
    results = {(each.dataset_type, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert results == {("medical", "bits_per_byte"): 1.1234, ("boolq", "bits_per_byte"): 1.0122}
    for words in (
        "| 3 | 2 |",
        "| 6 | 4 |",
        "+9.00 ± 0.33 %",
        whole_best()["choice"]["reason"],
        "CC BY-SA 3.0",
        "AutoModelForCausalLM.from_pretrained",
        "doesn't tell the chosen layers 4 from 1",
        "best validation score (0.3 · min(general Δ, 0) + 0.7 · domain Δ) | over the next smaller k |",
        "| 2 | +4.70 ± 0.21 | +2.80 ± 0.30 |",
        "What mattered: k 70%, base_lr 25%, recompute_every 5% (a guess: of too few trials).",
        "It took 6 min 37 s and at most 3.2 GiB.",
        "Fingerprints: backbone 0123456789abcdef.",
    ):
        assert words in card.text, words


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({}, "the least important layers are copied as identities and only the copies are trained, each of "),
        ({"placement": "stratified"}, "the least important layers of bands of equal depth are copied"),
        ({"placement": "random"}, "layers chosen by the placement `random`, not by their importance, are"),
        ({"normalization": "none"}, "only the copies are trained, all at one rate."),
        ({"granularity": "block", "sign": "reverse"}, "each of their attention, mlp and norms at a rate of "),
    ],
)
def test_a_card_says_what_was_trained(whole: Path, training: dict[str, str], words: str) -> None:
    """Not what is usually trained."""
    edited = best_of(whole) | {"training": best_of(whole)["training"] | training}
    (whole / "best.yaml").write_text(yaml.safe_dump(edited))
    assert words in write_card(whole / "model", read_evidence(whole)).read_text()


def test_a_curve_is_called_by_the_state_of_its_trial(whole: Path) -> None:
    """One that failed isn't called finished."""
    results = read_evidence(whole)
    states = {trial.state for trial in results.trials if trial.name in results.curves}
    figure = draw_curves(results, "loss")
    assert {text.get_text() for text in figure.legends[0].get_texts()} == states | {"chosen"}
    failed = [dataclasses.replace(trial, state="failed") for trial in results.trials]
    figure = draw_curves(dataclasses.replace(results, trials=failed), "loss")
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"failed", "chosen"}


def test_a_page_says_of_what_the_readings_of_a_plateau_are(whole: Path) -> None:
    """By wsd those of a trial are the ends of branches, those of a training are on the way to its end."""
    results = read_evidence(whole)
    by_wsd = {"schedule": "wsd"}
    trials = results.run.model_copy(update={"run": results.run.run | by_wsd})
    training = results.run.model_copy(update={"training": by_wsd})
    branches = dataclasses.replace(results, run=trials)
    alone = dataclasses.replace(results, run=training, trials=[])
    assert explain_curves(results) == ""
    assert "the end of a branch, a whole training" in explain_curves(branches)
    assert "on the plateau, before the decay" in explain_curves(alone)


@pytest.mark.slow
def test_a_grown_model_is_drawn_as_one_line(whole: Path) -> None:
    """Each depth goes on where the one before ended, the first from the backbone; trials begin at 0 alike."""
    ends = [
        {**reading, "tokens": 6144 * number, "step": 24 * number}
        for number, reading in enumerate((row for row in curves() if row["step"] == 48), 1)
    ]
    (whole / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ends))
    scores = [(row["tokens"] / 1000, row["score"]) for row in ends]
    losses = [(row["tokens"] / 1000, row["loss"]) for row in ends]
    for strategy, begins in (("grow", [(0.0, 0.0), *scores[:-1]]), ("trials", [(0.0, 0.0)] * len(scores))):
        edited_json(whole / "run.json", run={"strategy": strategy})
        drawn = lines_in(draw_curves(read_evidence(whole), "score"))
        assert drawn == [list(pair) for pair in zip(begins, scores, strict=True)]
        text = words_of(whole)
        assert ("Each depth continues from the end of the one before." in text) == (strategy == "grow")
        assert ("copies that it took over have what they had" in text) == (strategy == "grow")
        assert ("the one at step 0 was made on the source layers" in text) == (strategy != "grow")
        if strategy == "grow":
            drawn = lines_in(draw_curves(read_evidence(whole), "loss"))
            assert drawn == [losses[:1], losses[:2], losses[1:]]


def lines_in(figure: Figure) -> list[list[tuple[float, float]]]:
    """The points of every line that is drawn but for what a reader points at."""
    lines = [line for line in figure.axes[0].get_lines() if line.get_label() != "_"]
    return [[(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)] for line in lines]


def best_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "best.yaml").read_text())


def test_a_card_says_nothing_that_is_not_known(whole: Path) -> None:
    """A backbone of one's own has no id on the hub and no licence that this project could know."""
    edited = best_of(whole) | {"run": {"backbone": str(whole), "general": "boolq", "domain": "my.jsonl"}}
    (whole / "best.yaml").write_text(yaml.safe_dump(edited))
    data = ModelCard.load(write_card(whole / "model", read_evidence(whole))).data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "language"} & set(data)


def test_contamination_is_shown_piece_by_piece(folder: Path) -> None:
    """Counts and shares of each kind and examples; an older folder, which knows nothing of it, has none."""
    assert CONTAMINATION not in words_of(folder)
    edited_json(folder / "run.json", contamination=contamination())
    text = words_of(folder)
    assert f"{CONTAMINATION} 3 of 268 held-out texts share passages with the training documents" in text
    assert "15,258 domain ones" in text and "domain: items of medqa, test 200 – – 1 (0.5 %) 199" in text
    assert "domain: documents, test 40 1 (2.5 %) 1 (2.5 %) – 38" in text
    assert "general 12,271 documents, the longest of 4,321 bytes domain 12,271 documents, 7 repeated" in text
    assert "2 also in the general text, 1 nearly equal to another one" in text
    assert "domain: documents, test, 85 % an increased <level> of calcium in the blood …" in text


def test_much_contamination_is_warned_of_by_name(folder: Path) -> None:
    """A sentence names the pieces that share a twentieth of their texts, and the first screen has it."""
    shared = zip(contamination()["pieces"], (1, 2, 10), strict=True)
    few, *much = ({**piece, "whole": 0, "most": 0, "part": part} for piece, part in shared)
    found = {"trained_on": {"domain": 9}, "pieces": [few, *much]}
    edited_json(folder / "run.json", contamination=found)
    with without_figures():
        header = write_report(folder).read_text().partition("</header>")[0]
    assert "with 2 of 40 domain documents held out for test, 10 of 200 items of medqa held" in header
    assert Contamination(trained_on={"domain": 9}, pieces=[few]).express_warning() == ""


@pytest.mark.slow
@pytest.mark.parametrize("remote", [False, True])
def test_report_only_writes_page_and_card_again(tmp_path: Path, remote: bool) -> None:
    """From the folder alone, here or behind a URI, with the rivals of a comparison from then on."""
    storage = tmp_path.as_uri() if remote else str(tmp_path)
    folder = write_whole_folder(tmp_path / "tiny-medical")
    (folder / "comparison.csv").rename(made(tmp_path / "rivals") / "comparison.csv")
    settings = {"backbone": "tiny", "general": "boolq", "domain": "medical"}
    (tmp_path / "rivals" / "run.json").write_text(json.dumps({"run": settings, "fingerprints": {}}))
    edited_json(folder / "run.json", run=settings | {"name": "tiny-medical"})
    run = SearchRun(storage=storage, name="tiny-medical", report_only=True)
    with without_figures():
        assert find_k(run).rstrip("/").endswith("tiny-medical")
        assert "Rivals" not in text_of((folder / "report.html").read_text())
        find_k(run.model_copy(update={"comparison": f"{storage}/rivals"}))
    text = text_of((folder / "report.html").read_text())
    assert "Rivals" in text and "tiny-medical" in text
    assert (folder / "model" / "README.md").read_text().startswith("---\n")
    others = {"general corpus": "00", "domain corpus": "11"}
    edited_json(folder / "run.json", fingerprints=others)
    edited_json(tmp_path / "rivals" / "run.json", fingerprints=others | {"domain corpus": "22"})
    with pytest.raises(UserError, match="its domain corpus has the name but not the content of"):
        find_k(run.model_copy(update={"comparison": f"{storage}/rivals"}))
    edited_json(tmp_path / "rivals" / "run.json", run=settings | {"domain": "math"})
    with pytest.raises(UserError, match=r"its domain is math, that of .*tiny-medical medical"):
        find_k(run.model_copy(update={"comparison": f"{storage}/rivals"}))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["", "nobody"])
def test_report_only_of_nothing_is_refused(tmp_path: Path, name: str) -> None:
    """A sentence says that there are no results, and which flags name some."""
    with pytest.raises(UserError, match="holds no results: --report-only takes --name"):
        find_k(SearchRun(storage=str(tmp_path), name=name, report_only=True))
