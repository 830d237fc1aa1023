"""The trackers by name: which package each needs, and the module that speaks to it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from adept_ray.config.choices import TRACKERS
from adept_ray.config.errors import UserError
from adept_ray.tracking.tracker import Tracker, TrackerFolder

PROJECT = "adept_ray"  # in which runs are kept, unless a variable of the tracker's names another one


def check_trackers(names: Iterable[str]) -> None:
    """Raise :class:`UserError` for a tracker whose package is missing, or that nobody is logged in to."""
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, such as W&B makes, is no package
            raise UserError(
                f"--track {name} needs the package {TRACKERS[name]}, which the extra {name} brings: "
                f"pip install 'adept_ray[{name}]'"
            )
        if name == "wandb":
            from adept_ray.tracking.wandb_runs import check_login

            check_login()


def start_tracker(name: str, folder: TrackerFolder) -> Tracker:
    """The tracker of a name; one that writes files does so in `folder`. Raises what its library does."""
    if name == "wandb":
        from adept_ray.tracking.wandb_runs import WandbRuns

        return WandbRuns(PROJECT, folder)
    if name == "mlflow":
        from adept_ray.tracking.mlflow_runs import MlflowRuns

        return MlflowRuns(PROJECT, folder)
    if name == "trackio":
        from adept_ray.tracking.trackio_runs import TrackioRuns

        return TrackioRuns(PROJECT, folder)
    from adept_ray.tracking.tensorboard_files import TensorBoardFiles

    return TensorBoardFiles(PROJECT, folder)
