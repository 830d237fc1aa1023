"""The report is whole, safe to open, and says what is missing when it can't be written."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from adept_ray.config import UserError
from adept_ray.evidence import Importance
from adept_ray.figures import draw_importance, importance_figure
from adept_ray.report import write_report

LAYERS = 6
CHOSEN = [2, 4]
UNITS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm")
FILES = ("best.yaml", "trials.csv", "importance.json", "rates.jsonl", "run.json")


def importance() -> dict[str, Any]:
    means = [7.66, 0.31, 0.12, 0.44, 0.15, 1.9]
    return {
        "base_loss": 3.4904,
        "layers": [{"layer": i, "mean": m, "standard_error": 0.05 * m} for i, m in enumerate(means)],
        "order": sorted(range(LAYERS), key=means.__getitem__),
        "units": {},
        "made_from": {"backbone": "tiny", "corpus": "boolq", "tokens": 2048},
        "seconds": 6.1,
    }


def trials() -> list[dict[str, Any]]:
    """Four trials around general 1.0 and domain 1.2 bits per byte; the second one wins."""
    rows = []
    for number, (k, general, domain, state) in enumerate(
        [
            (1, -0.2, 4.0, "finished"),
            (2, -0.1, 9.5, "finished"),
            (3, 0.1, 9.6, "finished"),
            (3, -0.9, 3.0, "stopped"),
        ]
    ):
        rows.append(
            {
                "trial": f"trial-{number + 1:03}",
                "k": k,
                "layers": " ".join(map(str, sorted(importance()["order"][:k]))),
                "recompute_every": 12,
                "base_lr": 0.00123456,
                "general_bpb": 1.0 * (1 - general / 100),
                "domain_bpb": 1.2 * (1 - domain / 100),
                "general_delta": general,
                "domain_delta": domain,
                "score": (general + domain) / 2,
                "score_se": 0.21,
                "tokens": 12288,
                "seconds": 91.5,
                "state": state,
            }
        )
    return rows


def best(k: int = 2) -> dict[str, Any]:
    changed = k > 0
    return {
        "run": {"backbone": "tiny", "general": "boolq", "domain": "medical", "seq_len": 256, "seed": 7},
        "training": {"k": k, "base_lr": 0.00123456, "recompute_every": 12, "normalization": "rank"},
        "layers": CHOSEN if changed else [],
        "choice": {
            "k": k,
            "trial": "trial-002" if changed else None,
            "reason": f"k = {k} is the smallest within one standard error of the best.",
            "best_score": 4.85,
            "best_k": 3,
            "threshold": 4.64,
        },
        "test": {
            "general": {"before_bpb": 1.0111, "after_bpb": 1.0122 if changed else 1.0111,
                        "delta": -0.11 if changed else 0.0, "standard_error": 0.08},
            "domain": {"before_bpb": 1.2345, "after_bpb": 1.1234 if changed else 1.2345,
                       "delta": 9.0 if changed else 0.0, "standard_error": 0.33},
            "score": 4.445 if changed else 0.0,
        },
    }  # fmt: skip


def rates() -> list[dict[str, Any]]:
    """Units of the two copies, which sit at 3 and 6 of the expanded model."""
    return [
        {
            "step": step,
            "unit": f"model.layers.{layer}.{unit}",
            "importance": 1e-6,
            "scale": 0.4 * i + step / 90,
        }
        for step in (0, 12)
        for layer in (3, 6)
        for i, unit in enumerate(UNITS)
    ]


def run() -> dict[str, Any]:
    return {
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "seed": 7,
        "fingerprints": {"backbone": "0123456789abcdef"},
        "seconds": {"assets": 3.0, "probe": 6.1, "search": 380.0, "test": 8.0, "total": 397.1},
        "peak_memory_gib": 3.25,
        "command": "python scripts/tune_k.py --run.domain medical",
        "notes": {
            "backbone": "made up (Apache-2.0)",
            "general": "CC BY-SA 3.0",
            "domain": "see https://example.org",
        },
    }


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "best.yaml").write_text(yaml.safe_dump(best()))
    write_csv(folder / "trials.csv", trials())
    (folder / "importance.json").write_text(json.dumps(importance()))
    (folder / "rates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rates()))
    (folder / "run.json").write_text(json.dumps(run()))
    return folder


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


def test_every_section_and_number_is_there(page: str) -> None:
    """A reader finds the answer, the evidence and the making, with the numbers of the folder."""
    text = text_of(page)
    for title in (
        "Importance of each layer",
        "What the search saw",
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
    """No script, style import or address is fetched: the report opens the same without a network."""
    for tag, attributes in Outline(page).tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base")
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
    # importance, score, trade; a line of the legend per unit; a panel per added layer
    assert len(figures) == 3 + len(UNITS) + len(CHOSEN)
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in figures)


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


def tied() -> dict[str, Any]:
    """Layers 2, 4 and 1 of the order 2 4 1 3 5 0 could be any of the second to fourth, as could 3."""
    found = importance()
    for layer, places in {2: [0, 0], 4: [1, 3], 1: [1, 2], 3: [2, 3], 5: [4, 4], 0: [5, 5]}.items():
        found["layers"][layer]["places"] = places
    return found


@pytest.mark.parametrize(
    "k, pair", [(0, ""), (1, ""), (2, "chosen layers 4 from 1;"), (3, "chosen layers 4 from 3;"), (4, "")]
)
def test_a_doubtful_choice_names_the_layers_in_question(k: int, pair: str) -> None:
    """Of the layers whose place may lie on either side of k, the chosen ones and the others."""
    found = Importance.model_validate(tied())
    sentence = found.doubt(found.order[:k])
    assert pair in sentence and bool(sentence) == bool(pair)


def test_a_long_list_of_doubtful_layers_is_cut() -> None:
    """With nothing decided, eight others are named and the rest counted."""
    rows = [{"layer": i, "mean": float(i), "standard_error": 0.0, "places": [0, 19]} for i in range(20)]
    found = Importance.model_validate({"layers": rows, "order": list(range(20))})
    assert "layers 0 1 from 2 3 4 5 6 7 8 9 and 10 more;" in found.doubt((1, 0))
    assert not found.doubt((0, 7))  # layers that the probe did not choose


def test_a_tie_is_told_in_the_report(folder: Path) -> None:
    """A reader of the report sees which layers could as well have been chosen."""
    (folder / "importance.json").write_text(json.dumps(tied() | {"probe": "raced"}))
    text = text_of(write_report(folder).read_text(encoding="utf-8"))
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
    first = draw_importance(importance(), CHOSEN, tmp_path / "a" / f"one{suffix}")
    second = draw_importance(importance(), CHOSEN, tmp_path / f"two{suffix}")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[:5] == {".png": b"\x89PNG\r", ".svg": b"<?xml"}[suffix]


def test_importance_picture_refuses_other_formats(tmp_path: Path) -> None:
    """An unknown suffix is the caller's mistake and is said in a sentence."""
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        draw_importance(importance(), CHOSEN, tmp_path / "importance.gif")


@pytest.mark.parametrize(
    "means", [[0.5, -0.01, 0.0, 2.0], [0.0, 0.0, -1.0, 0.0], [float("nan"), 1.0, 2.0, 3.0], []]
)
def test_importance_need_not_be_positive(tmp_path: Path, means: list[float]) -> None:
    """A bypass that helps, or that changes nothing, still has its place on the axis."""
    layers = [{"layer": i, "mean": mean, "standard_error": 0.02} for i, mean in enumerate(means)]
    figure = importance_figure({"layers": layers}, [1])
    shown = [mean for mean in means if mean == mean]
    low, high = figure.axes[0].get_ylim()
    assert all(low <= mean <= high for mean in shown)
    draw_importance({"layers": layers}, [1], tmp_path / "importance.png")
