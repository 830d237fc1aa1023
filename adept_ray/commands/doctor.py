"""doctor.py: what stands in the way of a search, and how long it will take, before it begins."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adept_ray.config.calls import format_command
from adept_ray.config.errors import UserError
from adept_ray.config.specs import DoctorRun
from adept_ray.config.validation import apply_changes, refuse_flags
from adept_ray.engine import cluster
from adept_ray.report.rerun import format_flags
from adept_ray.run.check_list import Check, CheckList
from adept_ray.run.context import Session, redirect_output
from adept_ray.run.examination import examine_cluster
from adept_ray.run.measuring import measure_search
from adept_ray.run.preview import preview_search
from adept_ray.run.settings import resolve_settings
from adept_ray.run.terminal import Display
from adept_ray.storage.files import delete_folder
from adept_ray.storage.results import Results

OF_SEARCHES = ("resume", "more_trials", "report_only", "comparison")
SMALLEST = {"workers": 1, "min_workers": 0, "concurrent": 1, "gpus_per_worker": 0}


def examine_search(run: DoctorRun) -> None:
    """Look for all that stands in the way of a search, and measure how long it will take.

    Raises :class:`UserError` if something is wrong, once all of it was shown.
    """
    refuse_flags(run, OF_SEARCHES, "goes on with a search: doctor looks at one that is to begin")
    display = Display(run.json_lines)
    checks = CheckList(display)
    run = resolve_settings(run, "doctor")
    preview = preview_search(run, checks, display)
    with open_temporarily(run, checks, display) as session, redirect_output(session.results):
        try:
            with cluster.connect_cluster(session.run):
                examine_cluster(preview.plan_examination(run), checks.show, display)
                measure_search(session, preview, checks)
        except UserError as problem:
            checks.show(Check("cluster", "can't do what is asked", (str(problem),)))
            # What else is wrong with it shows as soon as less is asked.
            with suppress(UserError), cluster.connect_cluster(apply_changes(session.run, SMALLEST)):
                examine_cluster(preview.plan_examination(run), checks.show, display)
    faults = checks.faults
    display.emit("doctor", faults=faults)
    if faults:
        number = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UserError(f"{number} found; the lines marked ✗ say what mends what")
    display.say(f"nothing stands in the way: {format_command(f'tune-k {format_flags(run)}'.strip())}")


@contextmanager
def open_temporarily(run: DoctorRun, checks: CheckList, display: Display) -> Iterator[Session[DoctorRun]]:
    """A session whose results lie where those of the search would, and are deleted in the end.

    Where nothing can be written there, they lie in a temporary folder, and that is a fault.
    """
    name = f"{run.name}-examined"
    with tempfile.TemporaryDirectory() as elsewhere:
        run = apply_changes(run, {"name": name})
        results = Results(run.storage, name)
        try:
            results.open(resume=False)
        except UserError as problem:
            checks.show(Check("--storage", run.storage, (str(problem),)))
            run = apply_changes(run, {"storage": elsewhere})
            results = Results(elsewhere, name)
            results.open(resume=False)
        try:
            yield Session(run, results, display)
        finally:
            results.release()
            with suppress(OSError):
                delete_folder(results.place)
            shutil.rmtree(results.folder, ignore_errors=True)
            with suppress(OSError):  # others' results are there, or it is a URI
                Path(run.storage).rmdir()
