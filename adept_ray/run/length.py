"""What a training takes from a search for its length: k and rate, and how far that is from any reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from adept_ray.config.specs import TrainingSpec, TrainRun
from adept_ray.method.importance import LayerImportance
from adept_ray.method.placement import resolve_layers
from adept_ray.report.records import check_record
from adept_ray.run.terminal import Display
from adept_ray.search.answers import FAR, Horizon, find_horizon, format_tokens
from adept_ray.storage.records import BestRecord


def find_answer(args: TrainRun, best: BestRecord) -> Horizon | None:
    """What the search of a best.yaml answers for the length of a training; None where it isn't asked.

    An older file has no answers: then the chosen trial's k and rate are taken, as its version did.
    """
    rows = cast("Sequence[object]", best.get("choice", {}).get("horizons") or ())
    if args.settings == "trial" or not rows:
        return None
    horizons = tuple(check_record(Horizon, row, f"{args.config}: choice.horizons") for row in rows)
    return find_horizon(horizons, args.tokens)


def list_settings(answer: Horizon | None) -> dict[str, object]:
    """The settings of a training that an answer gives."""
    return {} if answer is None else {"k": answer.k, "base_lr": float(f"{answer.rate:.3g}")}


def find_layers(
    best: BestRecord, training: TrainingSpec, importance: LayerImportance, seed: int
) -> tuple[int, ...]:
    """The layers that a training copies: those of the chosen trial, or where k is another one its own."""
    searched = list_searched_layers(best, training)
    return resolve_layers(importance, training, seed) if searched is None else searched


def list_searched_layers(best: BestRecord, training: TrainingSpec) -> tuple[int, ...] | None:
    """The layers that the chosen trial copied; None where `training` has another k."""
    return tuple(best["layers"]) if training.k == len(best["layers"]) else None


def tell_settings(args: TrainRun, answer: Horizon | None, display: Display) -> None:
    """Say where k and rate come from, and warn where little speaks for them."""
    if answer is None:
        display.say(f"k and rate are those of the trial that {args.config} chose")
        return
    length, longest = format_tokens(args.tokens), answer.tokens / answer.beyond
    display.say(
        f"for {length} tokens: {answer.describe_settings()}, by readings of up to {format_tokens(longest)} "
        "tokens; --settings trial takes those of the chosen trial"
    )
    if not answer.advised_k:
        display.warn(
            f"for {length} tokens nothing is surely better than the untouched backbone: leave that as it is, "
            "or search with more --tokens-per-trial"
        )
    elif args.tokens > FAR * longest:
        display.warn(
            f"this training is {args.tokens / longest:,.0f} times as long as anything that was read, so its "
            "k and its rate are a guess: search with more --tokens-per-trial"
        )
