"""A run's own numbers as Ray application metrics, which Ray's agents serve to Prometheus as ``ray_…``.

The board's process sets them all: it lives as long as the run, and workers, trials and the command send it
what they know. Ray forgets a gauge that isn't set again within two of its export intervals (10 s each), so
every number that still holds is set every few seconds. A run that is gone vanishes; so do speed and step of a
trial that has ended. What the trial reached stays readable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from adept_ray.engine.job import Metrics

SET_EVERY = 2.0  # seconds
SIDES = ("general", "domain")
TRIAL = ("run", "trial", "k")
# Name → what it is, and its tags. The names of trials and runs are few; nothing that grows is a tag.
SERIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "adept_running": ("1 while the training runs, 0 once it is over", TRIAL),
    "adept_k": ("Expansion depth: layers added", TRIAL),
    "adept_score": ("Weighted change against the untouched backbone, percent", TRIAL),
    "adept_bits_per_byte": ("Held-out bits per byte of a side at the last report", (*TRIAL, "side")),
    "adept_step": ("Optimizer steps done, while it runs", TRIAL),
    "adept_tokens_per_second": (
        "Trained tokens a second as of the last report, scoring left out, while it runs",
        TRIAL,
    ),
    "adept_scale": ("Mean scale of the units of a kind, 0 to 2", (*TRIAL, "unit")),
    "adept_stage_seconds": ("Wall clock of a stage", ("run", "stage")),
}
SeriesValue = tuple[str, float, dict[str, str]]  # series, value, tags


class RunNumbers:
    """What is known of a run's trainings and stages now."""

    def __init__(self) -> None:
        self._trainings: dict[str, Metrics] = {}
        self._stages: dict[str, float] = {}

    def record_training(self, name: str, numbers: Mapping[str, object]) -> None:
        """Keep the latest numbers of a training: ``k``, ``running``, ``step``, what a report has."""
        self._trainings.setdefault(name, {}).update(numbers)

    def find_k(self, name: str) -> int | None:
        """The k of a training; None where it hasn't been said."""
        return self._trainings.get(name, {}).get("k")

    def record_stages(self, seconds: Mapping[str, float]) -> None:
        """Keep the seconds of every stage so far."""
        self._stages = dict(seconds)

    def list_values(self, run: str) -> Iterator[SeriesValue]:
        """Every value that holds now."""
        for name, numbers in self._trainings.items():
            if "k" in numbers:  # else it is no training, or hasn't begun
                tags = {"run": run, "trial": name, "k": str(numbers["k"])}
                yield from list_training_values(numbers, tags)
        for stage, seconds in self._stages.items():
            yield "adept_stage_seconds", seconds, {"run": run, "stage": stage}


def list_training_values(numbers: Metrics, tags: dict[str, str]) -> Iterator[SeriesValue]:
    """Every value of one training that holds now."""
    running = bool(numbers.get("running"))
    yield "adept_running", float(running), tags
    for name in ("k", "score", *(("step", "tokens_per_second") if running else ())):
        if numbers.get(name) is not None:
            yield f"adept_{name}", float(numbers[name]), tags
    for side in SIDES:
        if numbers.get(f"{side}_bpb") is not None:
            yield "adept_bits_per_byte", float(numbers[f"{side}_bpb"]), {**tags, "side": side}
    for unit, scale in numbers.get("scales", {}).items():
        yield "adept_scale", float(scale), {**tags, "unit": unit}


async def serve_metrics(numbers: RunNumbers, run: str) -> None:
    """Set the gauges of the run of that name again and again, until cancelled; for an actor's event loop."""
    from ray.util.metrics import Gauge

    gauges = {name: Gauge(name, about, tags) for name, (about, tags) in SERIES.items()}
    while True:
        for name, value, tags in numbers.list_values(run):
            gauges[name].set(value, tags)
        await asyncio.sleep(SET_EVERY)
