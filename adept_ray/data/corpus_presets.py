"""Corpora with a name, as data: where each comes from, and under which licence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adept_ray.data.archives import Members
from adept_ray.data.assets import Asset
from adept_ray.data.corpus_texts import (
    BOOLQ,
    GSM_00_49,
    GSM_50_99,
    GSM_UTILS,
    HPO,
    PUBMEDQA,
    build_boolq,
    build_math,
    build_medical,
    describe_assets,
)
from adept_ray.data.hub_corpora import HubSource


@dataclass(frozen=True)
class CorpusPreset:
    """A corpus with a name: built from pinned assets, or read from the hub."""

    note: str
    assets: tuple[Asset, ...] = ()
    build: Callable[[list[Path]], Iterator[str]] | None = None
    hub: tuple[HubSource, ...] = ()
    """The largest first: it fills up what the others lack."""


def take_medicine(language: str) -> CorpusPreset:
    """The paper's medical corpora as they lie on the hub, with instructions in one of their two languages.

    English.zip of MMedC has a .txt file for each document and a folder for each source.
    """
    return CorpusPreset(
        "MMedC (English, CC BY-NC-SA 4.0), IndustryInstruction (health and medicine, its rows in "
        f"'{language}'; which language the paper took isn't known; Apache-2.0), MMedBench (English training "
        "questions, CC BY-NC 4.0)",
        hub=(
            HubSource(
                "Henrychur/MMedC",
                archive="English.zip",
                members=Members("*.txt", skip=("cultural_filtered_data_used", "__MACOSX")),
            ),
            HubSource(
                "BAAI/IndustryInstruction_Health-Medicine",
                ("conversations",),
                keep=(("lang", language),),
            ),
            HubSource(
                "Henrychur/MMedBench",
                ("question", "options", "answer", "rationale"),
                archive="MMedBench.zip",
                members=Members("MMedBench/Train/English.jsonl"),
            ),
        ),
    )


CORPORA: dict[str, CorpusPreset] = {
    "boolq": CorpusPreset(describe_assets(BOOLQ), (BOOLQ,), build_boolq),
    "medical": CorpusPreset(describe_assets(HPO, PUBMEDQA), (HPO, PUBMEDQA), build_medical),
    "math": CorpusPreset(describe_assets(GSM_UTILS), (GSM_UTILS, GSM_00_49, GSM_50_99), build_math),
    # In English, as its other two corpora, of which the paper names the English parts.
    "medical-paper": take_medicine("en"),
    "medical-paper:zh": take_medicine("zh"),
    "math-paper": CorpusPreset(
        "OpenWebMath (ODC-By 1.0), AceReason-Math (CC BY 4.0)",
        hub=(
            HubSource("open-web-math/open-web-math"),
            HubSource("nvidia/AceReason-Math", ("problem", "answer")),
        ),
    ),
}
