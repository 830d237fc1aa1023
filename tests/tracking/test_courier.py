"""Deliveries reach a tracker in order and once, whatever fails on the way, and no run waits for it."""

import threading

import pytest

from adept_ray.tracking import courier as courier_module
from adept_ray.tracking.courier import Book, Courier, Deliverer
from adept_ray.tracking.deliveries import Begin, End, Note, Numbers, Values
from adept_ray.tracking.tracker import MAIN, TrackedRun

SEARCH = TrackedRun(MAIN, "mine", "mine")
TRIAL = TrackedRun("trial-001", "trial-001", "mine", {"k": 2})


class ListingTracker:
    """A tracker that lists its calls; `faults` are raised by the next ones, one each."""

    def __init__(self):
        self.calls, self.faults, self.tried = [], [], threading.Event()

    def __getattr__(self, name):
        def call(*args):
            self.tried.set()
            if self.faults:
                raise self.faults.pop(0)
            if name == "begin_run":
                run, parent = args
                self.calls.append((name, run.key, run.id, parent))
                return f"id of {run.key}"
            self.calls.append((name, *args))

        return call


@pytest.fixture
def tracker():
    return ListingTracker()


def deliver(tracker, runs, *deliveries):
    """Deliver by a new command, which knows what is kept in `runs`."""
    deliverer = Deliverer(tracker, Book(runs))
    for delivery in deliveries:
        deliverer.deliver(delivery)


WHOLE = (
    Begin(SEARCH),
    Begin(TRIAL),
    Values("trial-001", {"score": 1.0}, 4),
    End("trial-001", "finished"),
    End(MAIN, "finished"),
)


def test_a_trial_begins_as_part_of_its_search(tracker):
    deliver(tracker, {}, *WHOLE)
    assert tracker.calls == [
        ("begin_run", MAIN, "", ""),
        ("begin_run", "trial-001", "", "id of main"),
        ("log_values", "trial-001", {"score": 1.0}, 4),
        ("end_run", "trial-001", "finished"),
        ("end_run", MAIN, "finished"),
    ]


def test_a_later_command_goes_on_in_the_same_runs_and_repeats_nothing(tracker):
    """A trial that is over isn't even opened; one that was cut short goes on behind its last step."""
    runs = {}
    cut = TrackedRun("trial-002", "trial-002", "mine", {"k": 3})
    deliver(tracker, runs, *WHOLE[:4], Begin(cut), Values("trial-002", {"score": 2.0}, 4))
    tracker.calls.clear()
    over = Begin(TRIAL, "finished"), *WHOLE[2:4]
    again = Begin(cut), Values("trial-002", {"score": 2.0}, 4), Values("trial-002", {"score": 2.5}, 8)
    deliver(tracker, runs, Begin(SEARCH), *over, *again)
    assert tracker.calls == [
        ("begin_run", MAIN, "id of main", ""),
        ("begin_run", "trial-002", "id of trial-002", "id of main"),
        ("log_values", "trial-002", {"score": 2.5}, 8),
    ]


def test_a_trial_of_the_same_name_with_other_settings_is_another_run(tracker):
    """A kill may lose a trial, whose name the next one gets."""
    runs = {}
    deliver(tracker, runs, *WHOLE[:3])
    tracker.calls.clear()
    other = TrackedRun("trial-001", "trial-001", "mine", {"k": 5})
    deliver(tracker, runs, Begin(SEARCH), Begin(other), Values("trial-001", {"score": 9.0}, 4))
    assert tracker.calls[1:] == [
        ("begin_run", "trial-001", "", "id of main"),
        ("log_values", "trial-001", {"score": 9.0}, 4),
    ]


def test_what_was_missed_of_an_ended_trial_is_added_to_it(tracker):
    """It is opened for that and ends again."""
    runs = {}
    deliver(tracker, runs, *WHOLE[:4])
    tracker.calls.clear()
    deliver(tracker, runs, Begin(SEARCH), Begin(TRIAL, "finished"), Values(TRIAL.key, {}, 8), WHOLE[3])
    assert [call[0] for call in tracker.calls] == ["begin_run", "begin_run", "log_values", "end_run"]


def start(tracker, faults=(), said=None):
    """A courier to a tracker whose first calls fail; `said` gets its warnings."""
    tracker.faults = [OSError(text) for text in faults]
    return Courier("mlflow", lambda: Deliverer(tracker, Book()), (said if said is not None else []).append)


def test_a_tracker_that_fails_is_warned_of_once_and_gets_all_at_the_end(tracker):
    """In the order in which it happened, though two tries failed; whoever sends doesn't wait."""
    said = []
    courier = start(tracker, ["no route to host"], said)
    courier.send(WHOLE[:2])
    assert tracker.tried.wait(20)
    courier.send(WHOLE[2:])
    assert courier.finish(20) == ""
    assert len(said) == 1 and said[0].startswith("--track mlflow: no route to host; the run goes on")
    assert [call[0] for call in tracker.calls] == [
        *("begin_run", "begin_run", "log_values", "end_run", "end_run"),
        "close",
    ]


def test_a_tracker_that_answers_again_gets_the_rest_before_the_end(tracker, monkeypatch):
    """The next try comes by itself."""
    monkeypatch.setattr(courier_module, "AGAIN_AFTER_S", 0.01)
    courier, heard = start(tracker, ["busy", "busy"]), threading.Event()
    tracker.put_note = lambda *_: heard.set()
    courier.send([Begin(SEARCH), Note(MAIN, "x")])
    assert heard.wait(20) and courier.finish(20) == ""


def test_what_can_never_be_delivered_holds_nothing_up_at_the_end(tracker):
    """The rest gets there; a sentence counts what doesn't, and says why."""
    said = []
    courier = start(tracker, said=said)
    tracker.put_numbers = lambda *_: (_ for _ in ()).throw(ValueError("too many\nnumbers"))
    courier.send([Begin(SEARCH), Numbers(MAIN, {}), *WHOLE[1:]])
    assert courier.finish(20) == "--track mlflow: 1 of the last messages didn't get there: too many"
    assert tracker.calls[-2] == ("end_run", MAIN, "finished")


def test_a_tracker_that_hangs_is_left(tracker):
    """A run that is over doesn't wait for ever; it says how much is missing."""
    gate = threading.Event()
    tracker.begin_run = lambda *_: gate.wait(60)
    courier = start(tracker)
    courier.send([Begin(SEARCH), Note(MAIN, "x")])
    assert courier.finish(0.05).endswith(
        "2 of the last messages didn't get there: it took longer than 0.05 s"
    )
    gate.set()


def test_a_library_that_cannot_start_is_a_fault_like_others():
    """It may be a server that isn't there yet."""
    tracker, tried = ListingTracker(), threading.Event()

    def begin():
        if not tried.is_set():
            tried.set()
            raise ImportError("broken")
        return Deliverer(tracker, Book())

    courier = Courier("wandb", begin, lambda text: None)
    courier.send([Begin(SEARCH)])
    assert tried.wait(20) and courier.finish(20) == ""
    assert tracker.calls[0][0] == "begin_run"


def test_where_no_training_began_no_thread_begins(tracker):
    courier = start(tracker)
    courier.send([])
    assert courier.finish(0.0) == "" and not tracker.tried.is_set()
