"""Tune's own files of a search that goes on: they are made whole, and made to agree.

Tune saves its records of the trials, the state of its generator and that of Optuna one after the other, and
copies each to the results by itself. A kill in between leaves files of different moments, or half of one. A
command has one file of each kind, which it writes again and again, so a copy of them is kept that is whole.
"""

from __future__ import annotations

import datetime
import io
import json
import pickle
import pickletools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs
from ray import cloudpickle

from adept_ray.search.study import BegunTrial
from adept_ray.storage.files import open_filesystem, store_bytes

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

TUNER, RECORDS, GENERATOR, SEARCHER = "tuner", "experiment_state", "search_gen_state", "searcher-state"
KINDS = TUNER, RECORDS, GENERATOR, SEARCHER
KEPT = "-kept.pkl"  # what the name of the copy ends with, beside the folder of Tune's
SESSION = "%Y-%m-%d_%H-%M-%S"  # how Tune names the files of a command: the last one's come last


def keep_files(saved: Path, experiment: str) -> None:
    """Keep a copy, whole or not at all, of what Tune has `saved` here and not yet in its folder."""
    files = {name: content for name, _, content in _read_files(experiment, (TUNER,))}
    for kind in (RECORDS, GENERATOR, SEARCHER):
        if found := sorted(saved.glob(f"{kind}*")):
            files[found[-1].name] = found[-1].read_bytes()
    store_bytes(f"{experiment}{KEPT}", memoryview(pickle.dumps(files)))


def mend_files(experiment: str) -> list[str]:
    """Replace Tune's files that a kill or a full disk cut short, or kept from being there, by the kept copy.

    What the copy hasn't either, that of an earlier command takes its place. Returns the names of files that
    were cut short.
    """
    broken = drop_broken_files(experiment)
    if broken or not is_restorable(experiment):
        filesystem, folder = open_filesystem(experiment)
        there = {name for name, _, _ in _read_files(experiment)}
        for name, content in _read_kept(experiment).items():
            if name not in there:
                with filesystem.open_output_stream(f"{folder}/{name}") as stream:
                    stream.write(content)
    return broken


def _read_kept(experiment: str) -> Mapping[str, bytes]:
    """Name → content of the files that were kept; none where there is no whole copy."""
    filesystem, path = open_filesystem(f"{experiment}{KEPT}")
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return {}
    with filesystem.open_input_file(path) as stream:
        content = stream.read()
    kept: Mapping[str, bytes] = pickle.loads(content) if is_whole_pickle(content) else {}
    return kept


def drop_broken_files(experiment: str) -> list[str]:
    """Delete Tune's files that a kill or a full disk cut short; those of earlier commands take their places.

    Returns the names of what was deleted.
    """
    broken = []
    for name, path, content in _read_files(experiment):
        if not (is_whole_json(content) if name.startswith(RECORDS) else is_whole_pickle(content)):
            open_filesystem(experiment)[0].delete_file(path)
            broken.append(name)
    return broken


def is_restorable(experiment: str) -> bool:
    """Whether all is there that Tune restores a search from."""
    names = [name for name, _, _ in _read_files(experiment)]
    return all(any(name.startswith(kind) for name in names) for kind in KINDS)


def is_whole_json(content: bytes) -> bool:
    """Whether that is JSON from its beginning to its end."""
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def is_whole_pickle(content: bytes) -> bool:
    """Whether that is a pickle from its beginning to its end; nothing in it is run."""
    try:
        for _ in pickletools.genops(io.BytesIO(content)):
            pass
    except Exception:  # whatever half of an operation makes of itself
        return False
    return True


def describe_begun(trial: TuneTrial) -> BegunTrial:
    """What Tune has records of."""
    return BegunTrial(
        trial.trial_id, dict(trial.config), dict(trial.last_result or {}), trial.status == "TERMINATED"
    )


def mend_generator(experiment: str, begun: Sequence[TuneTrial], trials: int, crews: int) -> None:
    """Let a search, ended or not, go on after the trials that `begun`, up to so many `trials` in all.

    There is one at a time for each of so many crews. Tune keeps these numbers with the state of its
    generator, and takes no others when it restores that. A trial that failed counts as one that runs: Tune
    trains it again, and would else propose the next one beside it and keep its end to itself.
    """
    filesystem, folder = open_filesystem(experiment)
    states = {name: content for name, _, content in _read_files(experiment) if name.startswith(GENERATOR)}
    state = cloudpickle.loads(states[max(states)])
    live = {trial.trial_id for trial in begun if trial.status != "TERMINATED"}
    for part in (part for part in state.values() if isinstance(part, dict)):
        if "max_concurrent" in part:
            part.update(max_concurrent=crews, live_trials=live, num_unfinished_live_trials=len(live))
    numbers = [int(trial.experiment_tag.partition("_")[0]) for trial in begun]
    last = max(numbers)
    state.update(counter=last, total_samples=last + trials - len(begun), finished=False)
    name = f"{GENERATOR}-{datetime.datetime.now().strftime(SESSION)}.json"
    with filesystem.open_output_stream(f"{folder}/{name}") as stream:
        stream.write(cloudpickle.dumps(state))


def _read_files(experiment: str, kinds: tuple[str, ...] = KINDS) -> Iterator[tuple[str, str, bytes]]:
    """Name, path and content of each file that Tune restores a search from."""
    filesystem, folder = open_filesystem(experiment)
    for info in filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
        if info.base_name.startswith(kinds):
            with filesystem.open_input_file(info.path) as stream:
                yield info.base_name, info.path, stream.read()
