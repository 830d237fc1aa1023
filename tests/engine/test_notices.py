"""Who watches a run finds the latest of every job and trial, and every remark once."""

from adept_ray.engine.notices import Notices


def test_the_latest_progress_and_row_are_kept():
    """In the order in which jobs and trials were first heard of."""
    notices = Notices()
    for job, done in (("probe", 1), ("trial-001", 1), ("probe", 3)):
        notices.record_progress(job, done, 3)
    for trial, state in (("trial-001", "running"), ("trial-002", "running"), ("trial-001", "finished")):
        notices.record_row({"trial": trial, "state": state})
    progress, rows = notices.read_progress()
    assert progress == {"probe": (3, 3), "trial-001": (1, 3)}
    assert [(row["trial"], row["state"]) for row in rows] == [
        ("trial-001", "finished"),
        ("trial-002", "running"),
    ]


def test_remarks_are_read_from_where_one_was():
    notices = Notices()
    assert notices.read_remarks(0) == []
    for text in "ab":
        notices.add_remark(text)
    assert notices.read_remarks(0) == ["a", "b"] and notices.read_remarks(1) == ["b"]


def test_a_report_is_a_reading_that_stays():
    """With the k of its training, and without what is as long as the held-out text; steps alone are none."""
    notices = Notices()
    notices.record_numbers("trial-001", {"k": 2, "running": True})
    notices.record_progress("trial-001", 7, 9)
    for report in (1, 2):
        notices.record_numbers("trial-001", {"report": report, "step": 4 * report, "pulls": [0.0] * 999})
    readings = [{"trial": "trial-001", "k": 2, "step": step} for step in (4, 8)]
    assert notices.read_readings(0) == readings and notices.read_readings(1) == readings[1:]


def test_metrics_hear_of_steps_states_and_stages():
    """Of a training whose k is known: how far it is, whether it runs, what it reported."""
    notices = Notices()
    notices.record_numbers("trial-001", {"k": 2, "score": 1.5})
    notices.record_progress("trial-001", 7, 9)
    notices.record_row({"trial": "trial-001", "state": "running"})
    notices.record_progress("probe", 1, 3)
    notices.record_stage_times({"probe": 4.0})

    def list_values():
        return {name: value for name, value, _ in notices.numbers.list_values("a run")}

    reached = {"adept_k": 2.0, "adept_score": 1.5, "adept_stage_seconds": 4.0}
    assert list_values() == reached | {"adept_running": 1.0, "adept_step": 7.0}
    notices.record_row({"trial": "trial-001", "state": "finished"})
    assert list_values() == reached | {"adept_running": 0.0}
