"""A made-up results folder: what an early search left, and what one leaves that has all there is."""

import csv
import json
from pathlib import Path
from typing import Any

import yaml
from common import SIZES

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


def contamination() -> dict[str, Any]:
    """Two of 40 domain documents and one of 200 items stand in training text."""
    piece = {"split": "test", "task": "", "whole": 0, "most": 0, "part": 0, "examples": []}
    shared = {"kind": "most", "share": 0.85, "passage": "an increased <level> of calcium in the blood …"}
    whole = {"kind": "whole", "share": 1.0, "passage": "a word without a space" + "x" * 130}
    corpus = {"documents": 12271, "repeated": 0, "in_earlier": 0, "near": 0, "longest": 4321}
    return {
        "trained_on": {"domain": 15258},
        "corpora": {"general": corpus, "domain": {**corpus, "repeated": 7, "in_earlier": 2, "near": 1}},
        "pieces": [
            {**piece, "side": "general", "texts": 28},
            {**piece, "side": "domain", "texts": 40, "whole": 1, "most": 1, "examples": [whole, shared]},
            {**piece, "side": "domain", "task": "medqa", "texts": 200, "part": 1},
        ],
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


def tied() -> dict[str, Any]:
    """Layers 2, 4 and 1 of the order 2 4 1 3 5 0 could be any of the second to fourth, as could 3."""
    found = importance()
    for layer, places in {2: [0, 0], 4: [1, 3], 1: [1, 2], 3: [2, 3], 5: [4, 4], 0: [5, 5]}.items():
        found["layers"][layer]["places"] = places
    return found


def edited_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_whole_folder(folder: Path) -> Path:
    """A folder with everything that a report can show: ties, an edge, curves, rivals, a model's config."""
    write_folder(folder)
    settings = {"name": folder.name, "domain": "medical", "trials": 12, "seed": 7, "dashboard": False}
    edited_json(folder / "run.json", run=settings, contamination=contamination())
    edited_json(folder / "importance.json", **tied())
    edited_json(folder / "run.json", space={"parameters": {"k": {"int": [1, 3]}}, "judge_after": 5})
    write_csv(folder / "trials.csv", [turned(row) for row in (untouched(), *trials())])
    (folder / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curves()))
    write_csv(folder / "dials.csv", dials())
    write_csv(folder / "comparison.csv", rivals())
    (folder / "best.yaml").write_text(yaml.safe_dump(whole_best()))
    model = folder / "model"
    model.mkdir()
    config = SIZES | {"model_type": "llama", "num_hidden_layers": LAYERS + len(CHOSEN)}
    (model / "config.json").write_text(json.dumps(config))
    (model / "adept.json").write_text(json.dumps({"added_layers": [3, 6], "source_layers": CHOSEN}))
    return folder


def untouched() -> dict[str, Any]:
    numbers = {name: 0.0 for name in ("general_delta", "domain_delta", "score", "score_se")}
    bpb = {"general_bpb": 1.0, "domain_bpb": 1.2}
    row = dict.fromkeys(trials()[0], "") | bpb | numbers
    return row | {"trial": "untouched", "k": 0, "tokens": 0, "seconds": 0.0, "state": "untouched"}


def whole_best() -> dict[str, Any]:
    found = best() | {"score": {"general": 0.3, "domain": 0.7, "retain": True}}
    depths = [
        (0, 1, "untouched", 0.0, 0.0, None, None, None),
        (1, 1, "trial-001", 1.9, 0.2, 1.9, 0.2, True),
        (2, 1, "trial-002", 4.7, 0.21, 2.8, 0.3, True),
        (3, 2, "trial-003", 4.85, 0.21, 0.15, 0.2, False),
    ]
    names = ("k", "trials", "trial", "score", "standard_error", "gain", "gain_error", "differs")
    found["choice"] |= {
        "depths": [dict(zip(names, row, strict=True)) | {"per_layer": row[5]} for row in depths],
        "unfinished": {5: 2},
        "edges": [
            {
                "parameter": "base_lr",
                "value": 0.00123,
                "end": "high",
                "command": "python scripts/tune_k.py --search-space wider.yaml",
            }
        ],
        "hyperparameters": {"k": 0.7, "base_lr": 0.25, "recompute_every": 0.05},
        "hyperparameters_reliable": False,
        "front": ["trial-002", "trial-003"],
        "min_gain_per_layer": 0.5,
    }
    found["choice"] |= {
        "asked": horizon(1_000_000, 3),
        "horizons": [horizon(6144 * 2**i, 2) for i in range(5)],
    }
    plain = {"general_delta": -0.52, "domain_delta": 9.31, "score": 4.395}
    found["test"] |= {"dial": 0.8, "plain": plain, "score_se": 0.17}
    return found


def horizon(tokens: int, k: int) -> dict[str, Any]:
    """What a search answers for a training of so many tokens."""
    rates = {"rate": 2e-3, "low_rate": 1e-3, "high_rate": 4e-3}
    ends = {"low_k": 1, "high_k": 3, "best_k": 3, "end": "tolerance", "tolerance": 0.2}
    about = {"score": 4.8, "error": tokens / 1e5, "beyond": tokens / 6144}
    return {"tokens": tokens, "k": k, "advised_k": k, **rates, **ends, **about}


def curves() -> list[dict[str, Any]]:
    """What every trial reported half-way and at its end."""
    return [
        {
            "trial": row["trial"],
            "step": 24 * half,
            "tokens": 6144 * half,
            "general_delta": row["general_delta"] * half / 2,
            "domain_delta": row["domain_delta"] * half / 2,
            "score": row["score"] * half / 2,
            "loss": 3.5 - 0.1 * half - 0.01 * row["score"],
        }
        for row in trials()
        for half in ((1,) if row["state"] == "stopped" else (1, 2))
    ]


def dials() -> list[dict[str, Any]]:
    """What every finished trial gains at three dials; the best one lies between."""
    return [
        {
            "trial": row["trial"],
            "dial": dial,
            "general_delta": row["general_delta"] + 2 * dial * (0.8 - dial),
            "domain_delta": row["domain_delta"] * dial * (2.2 - dial) / 1.12,
            "score": row["score"] + 0.2 - (dial - 0.8) ** 2,
        }
        for row in trials()
        if row["state"] == "finished"
        for dial in (0.5, 0.8, 1.0)
    ]


def turned(row: dict[str, Any]) -> dict[str, Any]:
    """A row of trials.csv with the trial's dial."""
    if row["state"] != "finished":
        return row | {"dial": "", "plain_score": ""}
    return row | {"dial": 0.8, "plain_score": row["score"] - 0.3}


def rivals() -> list[dict[str, Any]]:
    rows = [
        ("vanilla", 0.0, 0.0, 0.0),
        ("full", 5.5, -1.0, 12.0),
        ("adept", 4.7, 0.4, 9.0),
        ("tasl", "", "", ""),
    ]
    names = ("method", "score", "general_delta", "domain_delta")
    extra = {"score_ci": 0.4, "general_delta_ci": 0.3, "domain_delta_ci": 0.5, "trained_parameters": 9}
    found = [dict(zip(names, row, strict=True)) | extra for row in rows]
    return [row | {"against_adept": "", "against_adept_ci": ""} for row in found]
