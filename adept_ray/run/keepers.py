"""What is to keep a search: its folder, its study and its trackers, before it begins."""

from __future__ import annotations

from adept_ray.config.specs import SearchRun
from adept_ray.run.check_list import CheckList
from adept_ray.run.search_settings import check_name
from adept_ray.search.study import open_study
from adept_ray.tracking.libraries import check_trackers


def check_keepers(run: SearchRun, checks: CheckList) -> None:
    """Look whether each of them can be used, as far as it was asked for."""
    if "name" in run.given:
        checks.attempt("--name", lambda: check_name(run), lambda _: "")
    if run.study:
        checks.attempt("--study", lambda: open_study(run.study), lambda _: "can be opened")
    if run.track:
        checks.attempt("--track", lambda: check_trackers(run.track), lambda _: " ".join(run.track))
