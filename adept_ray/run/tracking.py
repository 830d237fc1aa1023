"""The trackers of a run: they hear of every event, from the beginning of its trainings to its end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from adept_ray.config.errors import UserError
from adept_ray.config.fields import Mark, list_fields
from adept_ray.config.specs import RunSpec, SearchRun
from adept_ray.run.context import Session, redirect_output
from adept_ray.search.trials import Facts
from adept_ray.storage.results import Results
from adept_ray.tracking.courier import Book, Courier, Deliverer
from adept_ray.tracking.deliveries import EventReader, flatten_settings
from adept_ray.tracking.libraries import start_tracker
from adept_ray.tracking.tracker import MAIN, Setting, TrackedRun, TrackerFolder

TRACKING = "tracking.json"  # by which a resumed run goes on in the same runs
FILES = "tensorboard"  # folder of what a tracker writes among the results
PRIVATE = {*list_fields(SearchRun, Mark.PLACE, Mark.COMMAND), "track"}  # passwords are in places
PATIENCE_S, HURRY_S = 120.0, 10.0  # seconds for what is still to be sent when a run is over, or was stopped


@contextmanager
def track_run(session: Session[RunSpec], names: Sequence[str]) -> Iterator[None]:
    """Let the trackers of these names hear of what happens inside; with none nothing is done.

    What their libraries print goes where Ray's output goes. A tracker that fails ends nothing.
    """
    if not names:
        yield
        return
    display, results = session.display, session.results
    reader = EventReader(describe_run(session), results.folder, list_earlier_readings(results))
    couriers, one_at_a_time = start_couriers(session, names), threading.Lock()

    def listen(event: str, facts: Mapping[str, object]) -> None:
        with one_at_a_time:
            deliveries = reader.read(event, facts)
            for courier in couriers:
                courier.send(deliveries)

    state, patience = "interrupted", HURRY_S
    with redirect_output(results):
        display.listeners.append(listen)
        try:
            yield
            state, patience = "finished", PATIENCE_S
        except (UserError, KeyboardInterrupt):
            raise
        except Exception:
            state = "failed"
            raise
        finally:
            display.listeners.remove(listen)
            last = reader.end(state)
            for courier in couriers:
                courier.send(last)
            for courier in couriers:
                if missed := courier.finish(patience):
                    display.warn(missed)


def start_couriers(session: Session[RunSpec], names: Sequence[str]) -> list[Courier]:
    """A courier for each tracker, with what earlier commands of the run have kept of its runs."""
    results = session.results
    results.fetch((TRACKING,))
    file = results.folder / TRACKING
    books = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in names:
        books.setdefault(name, {})

    def store(key: str) -> None:
        results.copy_to_place(f"{FILES}/{key}")

    def start(name: str) -> Deliverer:
        book = Book(books[name], partial(results.write_json, TRACKING, books))
        return Deliverer(start_tracker(name, TrackerFolder(results.folder / FILES, store)), book)

    return [Courier(name, partial(start, name), session.display.warn) for name in names]


def describe_run(session: Session[RunSpec]) -> TrackedRun:
    """The search or the training of a command with its settings; places and passwords are left out."""
    run, record = session.run, session.results.read_record()
    kept = {name: value for name, value in record["run"].items() if name not in PRIVATE}
    settings: dict[str, Setting] = flatten_settings(kept)
    if training := record.get("training"):
        settings |= flatten_settings({"training": training})
    return TrackedRun(MAIN, run.name, run.name if isinstance(run, SearchRun) else "", settings)


def list_earlier_readings(results: Results) -> dict[str, Sequence[Facts]]:
    """Trial → what it reported while earlier commands of the run ran, as far as that was written down."""
    file = results.folder / "trials.json"
    if not file.exists():
        return {}
    rows = json.loads(file.read_text(encoding="utf-8"))["trials"]
    return {row["trial"]: row.get("curve", ()) for row in rows}
