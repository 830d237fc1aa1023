"""Weights & Biases: a search is a group of runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import wandb

from adept_ray.config.errors import UserError
from adept_ray.tracking.tracker import TrackedRun, TrackerFolder

ONLINE = ("", "online", "run", "shared")  # values of WANDB_MODE with which something is sent
QUIET = wandb.Settings(console="off", silent=True, x_disable_stats=True)  # the trials run elsewhere


def check_login() -> None:
    """Raise :class:`UserError` where runs are to be sent and W&B doesn't know by whom: it would ask."""
    if os.environ.get("WANDB_MODE", "") not in ONLINE:
        return
    wandb.setup(QUIET)
    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            "--track wandb: nobody is logged in: run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline and send the runs later with `wandb sync`"
        )


class WandbRuns:
    """Keeps runs in the project that ``WANDB_PROJECT`` names, or in `project`."""

    def __init__(self, project: str, folder: TrackerFolder) -> None:
        self._project = os.environ.get("WANDB_PROJECT") or project
        self._runs: dict[str, wandb.Run] = {}

    def begin_run(self, run: TrackedRun, parent: str) -> str:
        """Begin or go on with a run of the search's group."""
        begun = wandb.init(
            project=self._project,
            group=run.group or None,
            job_type=("trial" if run.is_trial else "search") if run.group else "training",
            name=run.name,
            id=run.id or None,
            resume="allow" if run.id else None,
            config=dict(run.settings),
            allow_val_change=True,
            reinit="create_new",  # several trials may run at once
            settings=QUIET,
        )
        self._runs[run.key] = begun
        return begun.id

    def log_values(self, key: str, values: Mapping[str, float], step: int) -> None:
        """Add values to the curves of a run."""
        self._runs[key].log(dict(values), step=step)

    def put_numbers(self, key: str, numbers: Mapping[str, float]) -> None:
        """Numbers without a step are in the summary of a run."""
        self._runs[key].summary.update(dict(numbers))

    def put_note(self, key: str, text: str) -> None:
        """The notes of a run."""
        self._runs[key].notes = text

    def put_file(self, key: str, path: Path) -> None:
        """Keep a file as an artifact of a run; HTML is shown on its page, too."""
        run = self._runs[key]
        artifact = wandb.Artifact(f"{run.id}-{path.stem}", type="result")
        artifact.add_file(str(path))
        run.log_artifact(artifact)
        if path.suffix == ".html":
            run.log({path.stem: wandb.Html(path.read_text(encoding="utf-8"), inject=False)})

    def end_run(self, key: str, state: str) -> None:
        """Wait until all of a run is sent."""
        self._runs[key].summary["state"] = state
        self._runs.pop(key).finish(exit_code=0 if state in ("finished", "stopped") else 1)

    def close(self) -> None:
        """Nothing: a run that is over has been sent."""
