"""The folder of a search while its trials run: what is written, and which checkpoints and trials go."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pyarrow import fs

from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import ScoreWeights
from adept_ray.search.choice import find_candidates
from adept_ray.search.trials import Facts, Trial, write_trials
from adept_ray.search.verdicts import VERDICTS
from adept_ray.storage.checkpoints import PLATEAU
from adept_ray.storage.files import delete_folder, open_filesystem, read_json, store_json
from adept_ray.storage.results import TRIALS, Results


@dataclass
class TrialFiles:
    """What a search writes as its trials end, and the weights that it deletes."""

    results: Results
    space: SearchSpace
    pareto: bool
    untouched: Trial
    """The untouched backbone, which goes first."""
    _ended: list[str] = field(default_factory=list)
    _deleted: set[str] = field(default_factory=set)

    def update(self, rows: Sequence[Facts]) -> None:
        """Write the trials that are over, if there are more of them than at the last look."""
        over = [Trial.from_row(row) for row in rows if row["state"] != "running"]
        names = [trial.name for trial in over]
        if names != self._ended:
            self._ended = names
            self.write(over)

    def write(self, trials: Sequence[Trial]) -> None:
        """Write these trials, and delete the weights of those that can't be chosen any more."""
        write_trials(self.results, [self.untouched, *trials], self.space.weights)
        kept = [trial for trial in trials if trial.saved not in self._deleted]
        self._deleted.update(delete_checkpoints(kept, self.space.weights, self.pareto))


def delete_checkpoints(trials: Sequence[Trial], weights: ScoreWeights, pareto: bool) -> list[str]:
    """Delete what was saved of trials that are over and can't be chosen: it would be most of the folder.

    Returns the places of what was deleted.
    """
    candidates = find_candidates(trials, weights, pareto)
    over = [trial for trial in trials if trial.saved and trial.state in ("finished", "stopped", "failed")]
    for trial in over:
        if place := find_leftovers(trial, trial.name in candidates):
            delete_folder(place)
    return [trial.checkpoint for trial in over if trial.name not in candidates]


def find_leftovers(trial: Trial, may_be_chosen: bool) -> str:
    """Place of the folder that nobody needs of a trial that is over; empty if it has none.

    One that was stopped may be gone on with from its plateau. One that came to its end, or failed, may not.
    """
    weights = trial.checkpoint.rpartition("/")[0]
    if trial.folder == trial.name:
        return "" if may_be_chosen else weights  # one that failed may have left more than its last report did
    whole = weights.rpartition("/")[0]
    if may_be_chosen:
        return f"{whole}/{PLATEAU}"
    return weights if trial.state == "stopped" else whole


def has_trials(storage: str) -> bool:
    """Whether anything that trials saved is there."""
    filesystem, path = open_filesystem(f"{storage}/{TRIALS}")
    every = fs.FileSelector(path, allow_not_found=True, recursive=True)
    return any(info.is_file for info in filesystem.get_file_info(every))


def forget_trials(storage: str, names: Collection[str]) -> None:
    """Delete what trials other than those of these `names` saved, and the verdicts on them.

    Tune lost them in a kill. In a study that others share it may give their names to other settings.
    """
    filesystem, path = open_filesystem(f"{storage}/{TRIALS}")
    for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        if info.base_name not in names:
            delete_folder(f"{storage}/{TRIALS}/{info.base_name}")
    if memory := read_json(f"{storage}/{VERDICTS}"):
        for verdicts in (memory["decided"], memory["behind"]):
            for key in [key for key in verdicts if key.partition("/")[0] not in names]:
                del verdicts[key]
        memory["best"] = {at: best for at, best in memory["best"].items() if best["trial"] in names}
        store_json(f"{storage}/{VERDICTS}", memory)
