"""The table of a search's trials: what a row says, and the files and weights that are kept by it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adept_ray.config.search_space import SEARCHABLE
from adept_ray.config.specs import ScoreWeights, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.search.choice import UNTOUCHED, find_candidates
from adept_ray.storage.files import delete_folder
from adept_ray.storage.results import Results
from adept_ray.training.scoring import score_model
from adept_ray.training.work import TrainWork

LayersFor = Callable[[Mapping[str, Any]], tuple[int, ...]]  # a trial's settings → the layers it copies


MEASURED = (
    "general_bpb",
    "domain_bpb",
    "general_accuracy",
    "domain_accuracy",
    "general_delta",
    "domain_delta",
    "score",
    "score_se",
    "tokens",
    "seconds",
)
HIDDEN = ("saved", "error", "pulls", "curve")  # of a row, not for trials.csv


def title_trial(name: str, config: Mapping[str, Any]) -> str:
    """A trial's name and its most telling settings."""
    digits, _, exponent = f"{config['base_lr']:.1e}".partition("e") if "base_lr" in config else ("", "", "")
    rate = f" lr={float(digits):g}e{int(exponent)}" if digits else ""
    return f"{name} k={config['k']}{rate}"


def final_state(metrics: Mapping[str, Any] | None) -> str:
    """State of a trial that ended without an error."""
    return "finished" if metrics and metrics.get("complete") else "stopped"


def describe_trial(
    name: str, config: Mapping[str, Any], metrics: Mapping[str, Any], state: str, layers_for: LayersFor
) -> dict[str, Any]:
    """A row of trials.csv; numbers are None before the first report.

    Not for the file are the place of what the trial ``saved`` last, the ``pulls`` of documents on its score
    and its learning ``curve``.
    """
    return {
        "trial": name,
        "k": config["k"],
        "layers": " ".join(map(str, layers_for(config))),
        **{key: value for key, value in config.items() if key != "k"},
        **{key: metrics.get(key) for key in MEASURED},
        "state": state,
        "saved": metrics.get("saved"),
        "pulls": metrics.get("pulls"),
        "curve": metrics.get("curve") or [],
    }


def training_from_row(row: Mapping[str, Any], base: TrainingSpec) -> TrainingSpec:
    """The training specification of a trial's row (whose ``layers`` are the placed ones)."""
    return apply_changes(base, {name: row[name] for name in SEARCHABLE if name in row})


def untouched_row(work: TrainWork, blocks: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the backbone as it is: what every trial is measured against.

    `blocks` holds the validation blocks of both sides.
    """
    metrics = score_model(work.before, work.before, blocks, work.by_tasks, work.weights)
    return describe_trial(
        UNTOUCHED, {"k": 0}, {**metrics, "tokens": 0, "seconds": 0.0}, UNTOUCHED, lambda _: ()
    )


def write_trials(results: Results, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write trials.csv, trials.json with all that a later choice needs, and the trials' curves.jsonl."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    varied = [name for name in names if name in SEARCHABLE and name != "k"]
    names = [*names[:3], *varied, *(name for name in names[3:] if name not in (*varied, *HIDDEN))]
    names = [n for n in names if not n.endswith("_accuracy") or any(row[n] is not None for row in rows)]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    results.write("trials.csv", text.getvalue())
    results.write_json("trials.json", {"trials": rows})
    write_curves(results, rows)


def write_curves(results: Results, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write curves.jsonl: what every trial reported as it trained."""
    readings = [{"trial": row["trial"], **reading} for row in rows for reading in row["curve"]]
    results.write("curves.jsonl", "".join(json.dumps(reading) + "\n" for reading in readings))


def delete_weights(rows: Sequence[Mapping[str, Any]], weights: ScoreWeights, pareto: bool) -> list[str]:
    """Delete the weights of trials that are over and can't be chosen: they would be most of the folder.

    Returns the places of what was deleted.
    """
    kept = find_candidates(rows, weights, pareto)
    over = [row for row in rows if row["saved"] and row["state"] in ("finished", "stopped", "failed")]
    gone = [row["saved"] for row in over if row["trial"] not in kept]
    for place in gone:
        delete_folder(place)
    return gone
