"""What a run writes down of itself: run.json and best.yaml."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from adept_ray.config.calls import format_own_call
from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import RunSpec, TrainingSpec
from adept_ray.config.validation import apply_changes
from adept_ray.engine import memory
from adept_ray.engine.nodes import list_versions
from adept_ray.run.context import Session
from adept_ray.run.preparing import Prepared
from adept_ray.run.sources import Sources, list_notes
from adept_ray.run.terminal import Display
from adept_ray.run.training_text import record_text
from adept_ray.storage.records import RunRecord, SpentRecord, TestedRecord
from adept_ray.training.work import TrainWork


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
