"""What a run writes down of itself: run.json, best.yaml, and the last lines on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from adept_ray.config.calls import format_own_call
from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import RunSpec, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.engine import memory
from adept_ray.engine.nodes import list_versions
from adept_ray.report.records import Importance, Test, check_record
from adept_ray.run.context import Session
from adept_ray.run.preparing import Prepared
from adept_ray.run.sources import Sources, list_notes
from adept_ray.run.terminal import Display
from adept_ray.run.training_text import record_text
from adept_ray.storage.records import RunRecord, SpentRecord, TestedRecord
from adept_ray.training.work import TrainWork

SHOWN_FILES = ("report.html", "trials.csv", "best.yaml", "model")


def record_best(
    session: Session[RunSpec],
    prepared: Prepared,
    work: TrainWork,
    test: TestedRecord,
    choice: Mapping[str, object],
    k_max: int,
) -> None:
    """Write best.yaml: all that ``train.py`` needs, and the evidence for it."""
    spec = {n: v for n, v in session.run.model_dump(mode="json").items() if n in RunSpec.flat_fields()}
    best = {
        "run": spec,
        "training": work.training.model_dump(mode="json"),
        "layers": list(work.layers),
        "k_max": k_max,
        "score": work.weights.model_dump(),
        "choice": dict(choice),
        "test": dict(test),
        "backbone": prepared.sources.backbone.fingerprint,
    }
    session.results.write("best.yaml", yaml.safe_dump(best, sort_keys=False, allow_unicode=True))


def record_run(
    session: Session[RunSpec],
    sources: Sources,
    prepared: Prepared | None = None,
    training: TrainingSpec | None = None,
    space: SearchSpace | None = None,
    work: TrainWork | None = None,
) -> None:
    """Write run.json: the settings, and, when `prepared` is given, versions, fingerprints and wall clock.

    With `work`, a training, also what that took of each corpus.

    What an earlier command of the same run wrote stays until this one has ended, so a command that is cut off
    leaves results that can be read. Times of all commands add up.
    """
    run, earlier = session.run, session.results.read_record()
    about = {"command": format_own_call(), **earlier}
    unsigned = apply_changes(run, {side: mixture.unsigned for side, mixture in run.corpora.items()})
    about |= {"run": unsigned.model_dump(mode="json"), "seed": run.seed, "notes": list_notes(sources)}
    about["fingerprints"] = sources.fingerprints | earlier.get("fingerprints", {})
    about["ended"] = prepared is not None
    if training:
        about["training"] = training.model_dump(mode="json")
    if space:
        about["space"] = space.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if prepared:
        about |= {"versions": list_versions(), "fingerprints": prepared.fingerprints}
        if prepared.contamination:
            about["contamination"] = prepared.contamination
        if work:
            about["text"] = record_text(run, prepared.blocks, work)
        about |= sum_spent(earlier, session.display)
        about = {name: value for name, value in about.items() if name not in ("spent", "pick")}
    session.results.write_json("run.json", about)


def sum_spent(about: RunRecord, display: Display) -> SpentRecord:
    """Wall clock in seconds, by stage and in all, and peak memory of a run's commands, this one included.

    `about` is the run.json that the earlier ones left.
    """
    earlier = about.get("spent", about)
    before, now = read_spent_seconds(about), {**display.seconds, "total": display.count_seconds()}
    stages = [name for name in dict.fromkeys([*before, *now]) if name != "total"]
    seconds = {name: round(before.get(name, 0.0) + now.get(name, 0.0), 1) for name in (*stages, "total")}
    peaks = [peak for peak in (earlier.get("peak_memory_gib"), memory.Memory.read_peak()) if peak is not None]
    return {"seconds": seconds, "peak_memory_gib": max(peaks, default=None)}


def read_spent_seconds(about: RunRecord) -> dict[str, float]:
    """Seconds by stage that all commands took until they left this run.json."""
    return about.get("spent", about).get("seconds", {})


def has_ended(about: RunRecord) -> bool:
    """Whether the last command of a run, whose run.json this is, came to its end."""
    return about.get("ended", "seconds" in about)


def show_summary(
    session: Session[RunSpec],
    prepared: Prepared,
    work: TrainWork,
    test: TestedRecord,
    reason: str,
    advised_k: int | None = None,
) -> None:
    """Show the last lines of a run: k, the advised k where it differs, why, what it gained, its files."""
    display, results = session.display, session.results
    layers, k = " ".join(map(str, work.layers)) or "none", work.training.k
    advised_k = k if advised_k is None else advised_k
    head = f"k = {k}" if advised_k == k else f"advice: k = {advised_k}   exported: k = {k}"
    display.show(f"\n{head}   layers copied: {layers}\n{reason}")
    doubt = check_record(Importance, prepared.importance, "importance").express_doubt(work.layers)
    if doubt:
        display.show(doubt)
    tested = check_record(Test, test, "test")
    for side, change in (("general", tested.general), ("domain", tested.domain)):
        display.show(
            f"{side + ':':9} {change.describe_levels('bits per byte')} on the test split, "
            f"{change.delta:+.2f} ± {change.standard_error:.2f} {change.unit} against the untouched backbone"
        )
    if turned := describe_turning(tested):
        display.show(turned)
    files = {name: f"{results.place}/{name}" for name in SHOWN_FILES if results.has(name)}
    for name, place in files.items():
        display.show(f"{name + ':':12} {place}")
    facts = {"k": k, "advised_k": advised_k, "layers": work.layers, "reason": reason, "doubt": doubt}
    display.emit("summary", **facts, test=test, files=files, seconds=display.seconds)


def describe_turning(test: Test) -> str:
    """The line about the dial of the exported model, and its score; empty where it is as it was trained."""
    if not test.is_turned or test.plain is None:
        return ""
    error = "" if test.score_se is None else f" ± {test.score_se:.2f}"
    there = f"score {test.score:.2f}{error} on the test split"
    return f"dial {test.dial:g}: {there}, as trained {test.plain.score:.2f}"
